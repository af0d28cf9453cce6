"""What to warn of, and how far to trust a recommendation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from planner.curves import ScalingLaw
from planner.recommendation.answer import Calibration, Caution, Option, TunedSetting
from planner.recommendation.sizing import Sizing
from planner.units import format_count, format_number

__all__ = ["Findings", "cautions", "confidence", "size_range"]

_FAR: Final = 3.0
"""Extrapolation in compute from which it is said."""
_VERY_FAR: Final = 30.0
_FEW_ROWS: Final = 12
_WIDE: Final = 0.10
"""Half width of the prediction interval, as a share of the loss, from which confidence is low."""
_NARROW: Final = 0.03
_LOOSE: Final = 3.0
"""Factor to either side from which the best size counts as loosely known."""
_MUCH_LARGER: Final = 4.0
_NO_MODEL: Final = 100.0
_NO_CLUSTER: Final = 1e16
"""Sizes outside of these mean that the data do not bound the size on that side."""
_MANY_EPOCHS: Final = 4.0
"""Repeating data this often is nearly as good as new data; beyond it pays less and less
(Muennighoff et al. 2023, arXiv:2305.16264)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What a recommendation was made from, as far as warnings depend on it."""

    law: ScalingLaw
    choice: Option
    size: float
    """Parameters of the choice, counted as the law counts."""
    best_size: Sizing
    extrapolation_factor: float
    tried_params: tuple[int, ...]
    """Parameters of the trained models, all counted."""
    tried_precisions: frozenset[str]
    is_last_shape: bool
    """Whether the choice is the largest or the smallest shape considered, unasked."""
    learning_rate: TunedSetting
    tokens_per_step: TunedSetting
    batch_growth: float
    """Batch over the best tried one."""
    calibration: Calibration
    unique_tokens: float | None
    most_tokens_per_param: float


def cautions(found: Findings) -> tuple[Caution, ...]:
    """Return the warnings, the gravest first."""
    return (
        *_of_range(found),
        *_of_setting(found.learning_rate, found),
        *_of_growth(found),
        *_of_setting(found.tokens_per_step, found),
        *_of_training(found),
        *_of_law(found.law),
    )


def _of_range(found: Findings) -> Iterator[Caution]:
    factor, row, law = found.extrapolation_factor, found.choice, found.law
    if factor > _FAR:
        yield Caution(
            code="extrapolation",
            value=factor,
            message=f"extrapolates {format_number(factor)}x beyond the largest compute of the "
            f"fit; a trial in between would narrow the interval.",
        )
    low, high = min(found.tried_params), max(found.tried_params)
    if not low <= row.num_params <= high:
        side = "above" if row.num_params > high else "below"
        yield Caution(
            code="edge_of_space",
            value=row.num_params,
            message=f"the recommended size, {format_count(row.num_params)} parameters, lies {side} the "
            f"trained ones ({format_count(low)} to {format_count(high)}): add such a size to "
            f"the search space.",
        )
    elif row.num_params in (low, high) and low < high:
        yield Caution(
            code="edge_of_space",
            value=row.num_params,
            message=f"the recommended size, {format_count(row.num_params)} parameters, is at the edge of "
            f"the trained ones: add sizes beyond it to the search space.",
        )
    if found.is_last_shape:
        yield Caution(
            code="edge_of_ladder",
            value=row.num_params,
            message="the best shape is the last one considered: the optimum may lie beyond it.",
        )
    yield from _of_size(found)
    least, most = law.fitted_range.num_tokens
    if row.train_tokens > _FAR * most or row.train_tokens < least / _FAR:
        yield Caution(
            code="tokens_outside_fit",
            value=row.train_tokens,
            message=f"{format_count(row.train_tokens)} tokens lie outside of the fitted "
            f"{format_count(least)} to {format_count(most)}.",
        )


def _of_size(found: Findings) -> Iterator[Caution]:
    """Yield what is not known of the best size."""
    best, row = found.best_size, found.choice
    if best.upper > _LOOSE**2 * best.lower:
        yield Caution(
            code="size_uncertain",
            value=best.upper / best.lower,
            message=f"the best size is known only to lie {size_range(best.lower, best.upper)}.",
        )
    wanted = best.num_tokens / best.num_params
    ratio = row.train_tokens / found.size
    if wanted > found.most_tokens_per_param and ratio < wanted:
        yield Caution(
            code="held_tokens_per_param",
            value=found.most_tokens_per_param,
            message=f"the law would train {format_number(wanted)} tokens per parameter; options "
            f"are held to {format_number(found.most_tokens_per_param)}, twice the most of any "
            f"trial: longer trials of small models would tell.",
        )


def size_range(lower: float, upper: float) -> str:
    """Return an interval of sizes as people read it, an end that nothing bounds being named.

    >>> size_range(1.2e6, 3e6), size_range(1e-4, 3e6)
    ('between 1.2M and 3M parameters', 'below 3M parameters')
    """
    if lower < _NO_MODEL and upper > _NO_CLUSTER:
        return "anywhere"
    if lower < _NO_MODEL:
        return f"below {format_count(upper)} parameters"
    if upper > _NO_CLUSTER:
        return f"above {format_count(lower)} parameters"
    return f"between {format_count(lower)} and {format_count(upper)} parameters"


def _of_setting(setting: TunedSetting, found: Findings) -> Iterator[Caution]:
    name = setting.name.replace("_", " ")
    written = _written(setting, setting.value)
    if setting.method == "study":
        yield Caution(
            code=f"{setting.name}_not_swept",
            message=f"the {name} was not swept: {written} is the study's own.",
        )
        return
    if setting.method == "best trial":
        yield Caution(
            code=f"{setting.name}_not_identified",
            message=f"the trials do not show where the best {name} lies: "
            f"{written} is the best trial's value.",
        )
    low = setting.tried_lower or setting.value
    high = setting.tried_upper or setting.value
    if setting.value <= low * 1.02 or setting.value >= high / 1.02:
        yield Caution(
            code=f"{setting.name}_at_edge",
            value=setting.value,
            message=f"the best {name}, {written}, is at the edge of the tried "
            f"{_written(setting, low)} to {_written(setting, high)}: widen its range.",
        )
    at_size = setting.at(found.size)
    if setting.exponent and not low <= at_size <= high:
        yield Caution(
            code=f"{setting.name}_extrapolated",
            value=at_size,
            message=f"the {name} {_written(setting, at_size)} follows the trials' power law in size "
            f"(exponent {setting.exponent:.2f}) outside of the tried values.",
        )


def _of_growth(found: Findings) -> Iterator[Caution]:
    """Yield that a learning rate was carried over to a much larger model."""
    largest = max(found.tried_params)
    if found.choice.num_params > _MUCH_LARGER * largest and not found.learning_rate.exponent:
        yield Caution(
            code="learning_rate_not_scaled",
            value=found.choice.num_params / largest,
            message=f"the learning rate is that of models of at most {format_count(largest)} "
            "parameters: larger ones usually want less (published exponents in size lie between "
            "-0.2 and -0.7). Sweep it at two sizes more, or try a short run.",
        )


def _written(setting: TunedSetting, value: float) -> str:
    return format_count(value) if setting.name == "tokens_per_step" else format_number(value)


def _of_training(found: Findings) -> Iterator[Caution]:
    row = found.choice
    if found.batch_growth > 1:
        yield Caution(
            code="batch_grown",
            value=found.batch_growth,
            message=f"the batch is {found.batch_growth:g}x the trials' best one: the critical "
            "batch grows with data, about as D^0.47 (Zhang et al. 2024, arXiv:2410.21676). The "
            "learning rate was left as it is; a short run at this batch would tell.",
        )
    if row.precision not in found.tried_precisions:
        yield Caution(
            code="precision_not_tried",
            message=f"no trial ran in {row.precision}: that its loss equals that of "
            f"{', '.join(sorted(found.tried_precisions))} is assumed.",
        )
    if row.shard_parallel > 1:
        yield Caution(
            code="needs_sharding",
            value=row.shard_parallel,
            message=f"the states do not fit one device: they are sharded over "
            f"{row.shard_parallel} workers.",
        )
    if not found.calibration.is_measured:
        yield Caution(code="speed_not_measured", message=f"{found.calibration.note}.")
    elif row.num_workers > 1 and max(found.calibration.num_workers) == 1:
        yield Caution(
            code="workers_not_measured",
            value=row.num_workers,
            message=f"every measured trial ran on one worker: what {row.num_workers} gain is "
            "estimated.",
        )
    if found.unique_tokens and row.train_tokens > _MANY_EPOCHS * found.unique_tokens:
        epochs = row.train_tokens / found.unique_tokens
        yield Caution(
            code="repeated_data",
            value=epochs,
            message=f"the corpus has {format_count(found.unique_tokens)} tokens, so that each is "
            f"seen {epochs:.3g} times; repeated tokens count for less in the prediction, as published "
            "(Muennighoff et al. 2023, arXiv:2305.16264), not as measured here.",
        )


def _of_law(law: ScalingLaw) -> Iterator[Caution]:
    if law.num_rows < _FEW_ROWS:
        yield Caution(
            code="few_rows",
            value=law.num_rows,
            message=f"the law rests on {law.num_rows} finished trials.",
        )
    for warning in law.warnings:
        yield Caution(code=f"law:{warning.code}", message=warning.message, value=warning.value)


def confidence(found: Findings, warnings: Sequence[Caution]) -> tuple[str, tuple[str, ...]]:
    """Return `high`, `medium` or `low`, and the figures behind it."""
    row, law = found.choice, found.law
    half = (row.loss_upper - row.loss_lower) / 2 / row.predicted_loss
    factor = found.extrapolation_factor
    reasons = (
        f"{format_number(factor)}x the largest compute of the fit",
        f"the interval reaches {half:.1%} of the loss to either side",
        f"law fitted on {law.num_rows} trials, noise {law.noise:.2%} of the loss",
        f"{len(warnings)} warning{'s' if len(warnings) != 1 else ''}",
    )
    if factor > _VERY_FAR or half > _WIDE or law.num_rows < _FEW_ROWS // 2 + 2:
        return "low", reasons
    edges = any("edge" in warning.code for warning in warnings)
    if factor <= _FAR and half <= _NARROW and law.num_rows >= _FEW_ROWS and not edges:
        return "high", reasons
    return "medium", reasons
