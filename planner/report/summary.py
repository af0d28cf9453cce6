"""The sentences of a report: what was decided, what it rests on, and how to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from planner.budget import format_amount
from planner.curves import curve_forms
from planner.recommendation import Recommendation
from planner.recommendation.cautions import size_range
from planner.report.contents import Contents
from planner.trial import TrialState
from planner.units import format_count, format_flops, format_number

__all__ = ["commands", "decision", "method", "overview", "rows_text"]


def overview(contents: Contents) -> str:
    """Return what was run, in a sentence."""
    results = contents.results
    counts = [
        f"{number} {str(state).replace('_', ' ')}"
        for state in TrialState
        if (number := results.count(state))
    ]
    spent = [
        format_amount(name, getattr(results.spend, name)) for name in results.study.budget.limits()
    ]
    return (
        f"{len(results.trials)} trials ({', '.join(counts)}) spent {', '.join(spent)} of "
        f"{results.study.budget}."
    )


def decision(answer: Recommendation, contents: Contents) -> Iterator[tuple[str, str]]:
    """Yield the lines of the decision box: a name and what it says."""
    row = answer.choice
    yield (
        "Predicted loss",
        f"{row.predicted_loss:.3f} nats per token; {answer.level:.0%} of such trainings should end "
        f"between {row.loss_lower:.3f} and {row.loss_upper:.3f}",
    )
    size, low, high = answer.best_num_params
    yield (
        "Best size",
        f"{format_count(size)} parameters by the law, {answer.level:.0%} interval "
        f"{size_range(low, high)}",
    )
    if contents.losses is not None:
        yield "Best trial so far", losses_text(contents)
    costs = [format_amount("seconds", row.seconds), format_amount("device_hours", row.device_hours)]
    costs += [format_amount(n, v) for n, v in (("usd", row.usd), ("kwh", row.kwh)) if v is not None]
    yield "Cost", ", ".join(costs)
    constraints = contents.results.study.constraints
    if constraints:
        yield "Constraints", "; ".join(map(str, constraints))
    left = [
        f"{format_amount(name, max(value, 0.0))} of {format_amount(name, answer.budget[name])}"
        for name, value in answer.headroom.items()
    ]
    yield "Headroom", f"{', '.join(left)}; what binds: {_words(answer.binding)}"
    yield "Confidence", f"{answer.confidence}: {'; '.join(answer.reasons)}"


def losses_text(contents: Contents) -> str:
    """Return the best loss beside the unigram entropy of the corpus."""
    losses = contents.losses
    if losses is None:
        return "no trial completed"
    text = f"{losses.best:.3f} nats per token"
    if losses.unigram_entropy is not None and losses.below_fraction is not None:
        side = "below" if losses.below_fraction >= 0 else "above"
        text += (
            f", {abs(losses.below_fraction):.0%} {side} the unigram entropy of its corpus "
            f"({losses.unigram_entropy:.3f})"
        )
    return text


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(name.replace("_", "-") for name in names)


def method(contents: Contents) -> Iterator[tuple[str, str]]:
    """Yield how the answer came about: a name and what it says."""
    study, law, answer = contents.results.study, contents.law, contents.recommendation
    search = study.search
    yield "Search", f"{search.algorithm}, scheduler {search.scheduler.name}, seed {search.seed}"
    yield "Cluster of the trials", _cluster_text(contents)
    if law is not None:
        known = curve_forms()
        lines = [
            f"{component.weight:.0%} {component.form}: {known[component.form].equation} "
            f"({known[component.form].source})"
            for component in law.components
        ]
        yield "Law", "; ".join(lines)
        yield "Objective of the fit", law.objective
        yield "Rows", rows_text(contents)
        low, high = law.fitted_range.train_flops
        yield (
            "Fitted range",
            f"{format_flops(low)} to {format_flops(high)}, "
            f"{format_count(law.fitted_range.num_params[0])} to "
            f"{format_count(law.fitted_range.num_params[1])} parameters, "
            f"{format_count(law.fitted_range.num_tokens[0])} to "
            f"{format_count(law.fitted_range.num_tokens[1])} tokens",
        )
        yield "Noise around the fit", f"{law.noise:.2%} of the loss"
        yield "Seed of the intervals", str(law.seed)
    if answer is not None:
        yield (
            "Options compared",
            f"{len(answer.table)}, the least of {', '.join(answer.ranked_by)} among "
            f"{sum(row.is_eligible for row in answer.table)} eligible ones",
        )
        yield "Learning rate", _setting_text(answer)
        yield "Speed", _speed_text(answer)
    yield "planner", law.planner_version if law is not None else _version()


def _version() -> str:
    from planner import __version__

    return __version__


def rows_text(contents: Contents) -> str:
    """Return how many rows the law used, and why it left out the others."""
    law = contents.law
    if law is None:
        return "no law was fitted"
    text = f"{law.num_rows} used"
    for reason, number in law.dropped.items():
        text += f"; {number} left out: {reason}"
    return text


def _cluster_text(contents: Contents) -> str:
    cluster = contents.results.study.cluster
    nodes = f"{cluster.num_nodes} node{'s' if cluster.num_nodes != 1 else ''}"
    each = f" of {cluster.devices_per_node} devices" if cluster.devices_per_node else ""
    price = ""
    if cluster.usd_per_device_hour is not None:
        dated = f", {cluster.price_date}" if cluster.price_date else ""
        price = f", {cluster.usd_per_device_hour:g} USD per device-hour{dated}"
    return f"{cluster.device}, {nodes}{each}{price}"


def _setting_text(answer: Recommendation) -> str:
    setting = answer.learning_rate
    text = f"{format_number(setting.value)} by {setting.method} over {setting.num_trials} trials"
    if setting.lower is not None and setting.upper is not None:
        text += (
            f"; within 0.25 % of the least loss from {format_number(setting.lower)} to "
            f"{format_number(setting.upper)}"
        )
    if setting.exponent:
        text += f"; moves as params^{setting.exponent:.2f}"
    return text


def _speed_text(answer: Recommendation) -> str:
    measured = answer.calibration
    if not measured.is_measured:
        return f"as estimated: {measured.note}"
    low, high = min(measured.ratios), max(measured.ratios)
    return (
        f"{low:.2f} to {high:.2f} of the estimate by size, measured on {measured.num_trials} "
        f"trials ({measured.note})"
    )


def commands(contents: Contents) -> list[str]:
    """Return the commands that do the same again, and that train what is recommended."""
    study, name = contents.results.study, contents.folder.name
    overrides = "".join(f" --set {shlex.quote(text)}" for text in study.overrides)
    lines = [
        f"planner sweep {shlex.quote(study.name)}{overrides} --name {shlex.quote(name)}",
        f"planner fit {shlex.quote(name)}",
    ]
    answer = contents.recommendation
    if answer is not None:
        amounts = ", ".join(f"{value:g} {unit}" for unit, value in answer.budget.items())
        cap = "" if answer.max_params is None else f" --max-params {answer.max_params}"
        lines.append(
            f"planner recommend {shlex.quote(name)} --budget {shlex.quote(amounts)} "
            f"--cluster {answer.cluster}{cap}"
        )
    lines.append(f"planner report {shlex.quote(name)}")
    if answer is not None:
        lines.append(f"planner sweep {shlex.quote(f'runs/{name}/exports/study.yaml')}")
    return lines
