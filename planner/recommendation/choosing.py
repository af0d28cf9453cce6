"""`recommend`: a law, a budget and a study to the configuration to train."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from planner.budget import Budget, format_amount
from planner.costs import Cluster, ClusterConfig, count_params, resolve_cluster
from planner.curves import ScalingLaw, best_sizes, optimal_allocation
from planner.curves.points import FLOPS_PER_PARAM_TOKEN
from planner.errors import InfeasibleError
from planner.recommendation.answer import Option, Recommendation, RunnerUp, TunedSetting, rank
from planner.recommendation.cautions import Findings, cautions, confidence
from planner.recommendation.evidence import Evidence, gather_evidence
from planner.recommendation.options import (
    BREAKS,
    MIN_STEPS,
    Table,
    Terms,
    build_table,
    counted_params,
    law_params,
)
from planner.recommendation.runners import runners_up
from planner.recommendation.shapes import ladder
from planner.recommendation.sizing import Sizing, size_at
from planner.recommendation.speed import calibrate
from planner.recommendation.tuned import rows_of, swept_settings, tune
from planner.results import Results
from planner.study import Study
from planner.trial import ModelConfig
from planner.units import SECONDS_PER_HOUR, format_bytes, format_count

__all__ = ["law_digest", "recommend"]

_BEYOND_OPTIMUM: Final = 8.0
"""The ladder ends at this multiple of the law's optimum, or of the largest tried model."""
_CRITICAL_BATCH_EXPONENT: Final = 0.47
"""Growth of the critical batch with data (Zhang et al. 2024, arXiv:2410.21676)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Settled:
    """The choice, and what it was made under: size, rate and batch at its own compute."""

    terms: Terms
    table: Table
    choice: Option
    size: Sizing
    batch: TunedSetting
    growth: float


def law_digest(law: ScalingLaw) -> str:
    """Return a short hash of a law."""
    return hashlib.sha256(law.to_json().encode()).hexdigest()[:12]


def recommend(
    law: ScalingLaw,
    budget: Budget,
    study: Study,
    *,
    results: Results | None = None,
    cluster: ClusterConfig | None = None,
    max_params: int | None = None,
    num_runners_up: int = 3,
    level: float = 0.9,
) -> Recommendation:
    """Return the configuration to train at a budget.

    Every shape of a ladder around the study's own is priced on the cluster in every precision and
    layout that fits its memory, trained until the tightest limit of the budget ends it, and given
    the law's prediction; the least predicted loss wins (`RANKED_BY`).

    Args:
        law: A law fitted to the study's trials.
        budget: Limits in any units; the tightest binds. `seconds` is a deadline.
        study: The study; its cluster is used unless another is given.
        results: Its results: they choose learning rate and batch and calibrate the speed.
        cluster: Where the recommended configuration is to run.
        max_params: Largest model, all parameters counted.
        num_runners_up: How many of them.
        level: Of the prediction intervals, in (0, 1).

    Raises:
        InfeasibleError: Nothing can be trained; the message says the smallest change that helps.
        ConfigError: The budget limits money or energy, and the cluster does not say what they are.
    """
    place = resolve_cluster(cluster or study.cluster)
    evidence = gather_evidence(study, results)
    terms, batch = _terms(law, budget, study, evidence, place, level)
    if max_params is not None:
        terms = replace(terms, most_tokens_per_param=math.inf)
    shapes = _shapes(evidence, terms, max_params)
    settled = _settle(shapes, terms, batch, evidence)
    found = _findings(settled, evidence, shapes, max_params)
    choice, options = settled.choice, settled.table.options
    return _answer(
        settled,
        found,
        study,
        runners_up=runners_up(choice, options, num_runners_up),
        binding=_binding(choice, settled.table, law, max_params),
        max_params=max_params,
    )


def _answer(
    settled: _Settled,
    found: Findings,
    study: Study,
    *,
    runners_up: tuple[RunnerUp, ...],
    binding: tuple[str, ...],
    max_params: int | None,
) -> Recommendation:
    """Return the recommendation that a settled choice amounts to."""
    terms, table, choice, size = settled.terms, settled.table, settled.choice, settled.size
    limits = terms.budget.limits()
    warnings = cautions(found)
    word, reasons = confidence(found, warnings)
    return Recommendation(
        study=study.name,
        question=study.question,
        budget=limits,
        cluster=str(terms.cluster),
        config=table.config(choice),
        choice=choice,
        runners_up=runners_up,
        binding=binding,
        headroom={name: limit - _spent(choice, name) for name, limit in limits.items()},
        level=terms.level,
        best_num_params=(size.num_params, size.lower, size.upper),
        best_sizes=best_sizes(
            terms.law,
            FLOPS_PER_PARAM_TOKEN * size.num_params * size.num_tokens,
            level=terms.level,
        ),
        size_shift=terms.size_shift,
        most_tokens_per_param=_finite(terms.most_tokens_per_param),
        unique_tokens=terms.unique_tokens,
        extrapolation_factor=found.extrapolation_factor,
        confidence=word,
        reasons=reasons,
        warnings=warnings,
        learning_rate=terms.learning_rate,
        tokens_per_step=settled.batch,
        calibration=terms.calibration,
        law_form=terms.law.form,
        law_digest=law_digest(terms.law),
        table=table.options,
        rejected=table.rejected,
        max_params=max_params,
        planner_version=terms.law.planner_version,
    )


def _settle(
    shapes: Sequence[ModelConfig], terms: Terms, batch: TunedSetting, evidence: Evidence
) -> _Settled:
    """Return the choice, once size, rate and batch hold at the compute that the budget reaches.

    Raises:
        InfeasibleError: Nothing can be trained.
    """
    law = terms.law
    table = build_table(shapes, terms)
    choice = _least(table, terms.cluster)
    num_params = law_params(law, table.config(choice).model)
    size = size_at(law, num_params, choice.train_tokens, terms.level)
    terms = replace(terms, size_shift=size.shift)
    growth = _batch_growth(law, choice.train_tokens)
    swept = swept_settings(evidence.finished, evidence.sizes(law), num_params, choice.train_tokens)
    if swept is not None:
        rate, batch = swept
        sequences = _power_of_two(batch.value / terms.template.model.sequence_length)
        terms = replace(terms, learning_rate=rate, sequences_per_step=sequences)
        growth = 1
    table = build_table(shapes, terms)
    choice = _least(table, terms.cluster)
    if growth > 1:
        larger = replace(terms, sequences_per_step=terms.sequences_per_step * growth)
        grown = build_table(shapes, larger)
        if _is_worth(grown, choice):
            terms, table, choice = larger, grown, _least(grown, terms.cluster)
        else:
            growth = 1
    return _Settled(
        terms=terms, table=table, choice=choice, size=size, batch=batch, growth=float(growth)
    )


def _findings(
    settled: _Settled, evidence: Evidence, shapes: Sequence[ModelConfig], max_params: int | None
) -> Findings:
    terms, choice = settled.terms, settled.choice
    return Findings(
        law=terms.law,
        choice=choice,
        size=law_params(terms.law, settled.table.config(choice).model),
        best_size=settled.size,
        extrapolation_factor=choice.train_flops / terms.law.fitted_range.train_flops[1],
        tried_params=tuple(count_params(model).total for model in evidence.models),
        tried_precisions=evidence.precisions,
        is_last_shape=max_params is None and _is_last(choice, shapes),
        learning_rate=terms.learning_rate,
        tokens_per_step=settled.batch,
        batch_growth=settled.growth,
        calibration=terms.calibration,
        unique_tokens=evidence.unique_tokens,
        most_tokens_per_param=terms.most_tokens_per_param,
    )


def _power_of_two(value: float) -> int:
    return int(2 ** max(0, round(math.log2(value))))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _least(table: Table, cluster: Cluster) -> Option:
    """Return the best eligible option.

    Raises:
        InfeasibleError: There is none.
    """
    eligible = [row for row in table.options if row.is_eligible]
    if not eligible:
        raise _infeasible(table, cluster)
    return min(eligible, key=rank)


def _is_worth(grown: Table, choice: Option) -> bool:
    """Return whether a larger batch trains visibly better or faster: else the proven one stays."""
    best = min((row for row in grown.options if row.is_eligible), key=rank, default=None)
    if best is None or best.predicted_loss > choice.predicted_loss * 1.001:
        return False
    return (
        best.predicted_loss < choice.predicted_loss * 0.998
        or best.device_hours_seconds < choice.device_hours_seconds * 0.8
    )


def _spent(option: Option, field: str) -> float:
    amount = option.train_flops if field == "flops" else getattr(option, field)
    return float(amount)


def _terms(
    law: ScalingLaw,
    budget: Budget,
    study: Study,
    evidence: Evidence,
    cluster: Cluster,
    level: float,
) -> tuple[Terms, TunedSetting]:
    """Return what all options share, and how the batch was chosen."""
    template = evidence.template
    rate = _tuned("learning_rate", law, evidence, template.optimizer.learning_rate)
    batch = _tuned("tokens_per_step", law, evidence, float(template.tokens_per_step))
    length = template.model.sequence_length
    tried = {config.batch.sequences_per_step for _, config in evidence.finished}
    sequences = min(
        tried or {template.batch.sequences_per_step},
        key=lambda s: abs(math.log(s * length / batch.value)),
    )
    terms = Terms(
        template=template,
        cluster=cluster,
        budget=budget,
        law=law,
        level=level,
        precisions=_precisions(evidence.precisions, cluster),
        learning_rate=rate,
        sequences_per_step=sequences,
        calibration=calibrate(evidence.trials, study.cluster, cluster),
        most_tokens_per_param=evidence.most_tokens_per_param(law),
        unique_tokens=evidence.unique_tokens,
        constraints=tuple(each for each in study.constraints if each.is_of_a_step),
    )
    return terms, batch


def _tuned(name: str, law: ScalingLaw, evidence: Evidence, best: float) -> TunedSetting:
    rows = rows_of(evidence.finished, law, evidence.sizes(law), name)
    return tune(name, rows, best)


def _batch_growth(law: ScalingLaw, num_tokens: float) -> int:
    """Return the power of two by which the batch grows beyond the trials'.

    (tokens / largest of the fit)^0.47, rounded down: 1 within 4.4 times the fit's tokens.
    """
    ratio = max(num_tokens / law.fitted_range.num_tokens[1], 1.0)
    return int(2 ** math.floor(math.log2(ratio**_CRITICAL_BATCH_EXPONENT)))


def _precisions(tried: frozenset[str], cluster: Cluster) -> tuple[str, ...]:
    """Return the precisions to consider: the tried ones, and bf16 on an accelerator."""
    wanted = tried if cluster.device.is_cpu else tried | {"bf16"}
    return tuple(sorted(p for p in wanted if p in cluster.device.peaks)) or ("fp32",)


def _most_flops(budget: Budget, cluster: Cluster) -> float:
    """Return FLOPs that no training within the budget exceeds; at the peak rate, if need be."""
    peak = max(cluster.device.peaks.values())
    hours = [
        amount
        for amount in (
            budget.device_hours,
            budget.seconds and budget.seconds / SECONDS_PER_HOUR * cluster.num_devices,
            budget.usd and cluster.usd_per_device_hour
            and budget.usd / cluster.usd_per_device_hour,
            budget.kwh and cluster.device.power_watts
            and budget.kwh * 4e3 / cluster.device.power_watts,
        )
        if amount
    ]  # fmt: skip
    limits = [amount * SECONDS_PER_HOUR * peak for amount in hours]
    if budget.flops is not None:
        limits.append(budget.flops)
    return min(limits, default=peak)


def _shapes(evidence: Evidence, terms: Terms, max_params: int | None) -> list[ModelConfig]:
    optimum = optimal_allocation(terms.law, _most_flops(terms.budget, terms.cluster)).num_params
    largest = max(count_params(model).total for model in evidence.models)
    smallest = min(count_params(model).total for model in evidence.models)
    most = _BEYOND_OPTIMUM * max(optimum, largest)
    shapes = ladder(evidence.models, most if max_params is None else min(most, max_params))
    if not shapes:
        raise InfeasibleError(
            f"no shape has at most {format_count(max_params or 0)} parameters: the smallest one "
            f"considered has more.",
            hint=f"Raise --max-params; the smallest trained model has {format_count(smallest)}.",
        )
    return shapes


def _is_last(choice: Option, shapes: Sequence[ModelConfig]) -> bool:
    ends = (count_params(shapes[0]).total, count_params(shapes[-1]).total)
    return choice.num_params in ends


def _binding(
    choice: Option, table: Table, law: ScalingLaw, max_params: int | None
) -> tuple[str, ...]:
    """Return what holds the choice: its limit, and the cap or the memory if more would be better."""
    held = [choice.binding]
    optimum = optimal_allocation(law, choice.train_flops).num_params
    size = counted_params(law, choice)
    if max_params is not None and size < optimum:
        larger = [row for row in table.options if row.num_params > choice.num_params]
        if not larger:
            held.append("max_params")
    if any(size < counted_params(law, misfit) <= optimum for misfit in table.too_large):
        held.append("memory")
    return tuple(held)


def _infeasible(table: Table, cluster: Cluster) -> InfeasibleError:
    """Return the error that names the smallest change which makes something feasible."""
    broken = [reason for reason in table.rejected if reason.startswith(BREAKS)]
    if broken:
        return InfeasibleError(
            f"an option must keep the study's constraints, and none does: {broken[0]} "
            f"({table.rejected[broken[0]]} options).",
            hint="Loosen the constraint, or widen the space towards it.",
        )
    if table.shortfalls:
        best = min(table.shortfalls, key=lambda s: (len(s.others), s.factor))
        also = f" (and more {', '.join(best.others)})" if best.others else ""
        return InfeasibleError(
            f"a budget must pay for at least {MIN_STEPS} optimizer steps: the cheapest option "
            f"({format_count(best.num_params)} parameters) needs "
            f"{format_amount(best.limit, best.need)}, the budget is "
            f"{format_amount(best.limit, best.have)}.",
            hint=f"Smallest change: raise {best.limit} to at least "
            f"{format_amount(best.limit, best.need * 1.01)}{also}.",
        )
    if not table.too_large:
        return InfeasibleError(f"no layout of the batch has a place on {cluster}.")
    least = min(table.too_large, key=lambda misfit: misfit.peak_memory_bytes)
    return InfeasibleError(
        f"nothing fits the memory of {cluster}: the smallest shape "
        f"({format_count(least.num_params)} parameters) needs "
        f"{format_bytes(least.peak_memory_bytes)} per device, usable are "
        f"{format_bytes(least.memory_capacity_bytes)}.",
        hint="Smallest change: a device with that much memory, or more devices to shard over.",
    )
