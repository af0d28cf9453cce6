"""The table of options: every shape, precision and layout that fits, trained to the budget's end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from planner.budget import Budget
from planner.costs import Cluster, CostEstimate, count_params, estimate
from planner.curves import ScalingLaw
from planner.errors import ConfigError
from planner.objectives import MetricConstraint
from planner.planning import charge
from planner.recommendation.answer import Calibration, Option, TunedSetting
from planner.recommendation.sizing import predict, worth
from planner.recommendation.speed import speed_ratio
from planner.trial import ModelConfig, TrialConfig, divisors

__all__ = [
    "BREAKS",
    "MIN_STEPS",
    "Shortfall",
    "Table",
    "Terms",
    "build_table",
    "counted_params",
    "law_params",
]

MIN_STEPS: Final = 20
"""Fewer optimizer steps are no training: warm-up and decay need some."""
_MOST_STEPS: Final = 1e12
BREAKS: Final = "breaks the study's constraint"
"""Beginning of the reason for which an option is rejected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What all options share."""

    template: TrialConfig
    cluster: Cluster
    budget: Budget
    law: ScalingLaw
    level: float
    precisions: tuple[str, ...]
    learning_rate: TunedSetting
    sequences_per_step: int
    calibration: Calibration
    most_tokens_per_param: float = math.inf
    """No option is trained on more tokens per parameter (as the law counts) than this."""
    size_shift: float = 1.0
    """See `sizing.py`."""
    unique_tokens: float | None = None
    """Tokens there are; beyond them they repeat, and are worth less."""
    constraints: tuple[MetricConstraint, ...] = ()
    """Those of the study that bind a training of any length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortfall:
    """An option that the budget cannot train: what the least training would need."""

    limit: str
    need: float
    have: float
    num_params: int
    others: tuple[str, ...] = ()
    """Further limits that it exceeds."""

    @property
    def factor(self) -> float:
        """Need over have of the limit that falls shortest."""
        return self.need / self.have


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Options that fit, and why the others do not."""

    options: tuple[Option, ...]
    configs: tuple[TrialConfig, ...]
    """Of each option, not yet of its length."""
    too_large: tuple[CostEstimate, ...]
    """Of shapes that fit no layout."""
    shortfalls: tuple[Shortfall, ...]
    rejected: dict[str, int]

    def config(self, option: Option) -> TrialConfig:
        """Return the whole configuration of an option."""
        config = self.configs[option.option]
        train = config.train.replace(tokens=option.train_tokens, tokens_per_param=None, flops=None)
        return config.replace(train=train)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """One way to train a shape, with its price per step."""

    config: TrialConfig
    cost: CostEstimate
    start: dict[str, float]
    """What the start charges, by field of Budget."""
    per_step: dict[str, float]

    @property
    def balance(self) -> float:
        """Devices x (seconds per step)^2: device-hours times seconds, whatever the length."""
        return self.cost.num_devices * self.per_step["seconds"] ** 2


def law_params(law: ScalingLaw, model: ModelConfig) -> int:
    """Return the parameters of a model as the law's table counted them."""
    count = count_params(model)
    return count.non_embedding if _is_bare(law) else count.total


def counted_params(law: ScalingLaw, item: Option | CostEstimate) -> int:
    """Return the parameters of an option or an estimate as the law's table counted them."""
    return item.num_params_non_embedding if _is_bare(law) else item.num_params


def _is_bare(law: ScalingLaw) -> bool:
    return "non_embedding" in law.columns.get("num_params", "")


def build_table(shapes: Sequence[ModelConfig], terms: Terms) -> Table:
    """Return every option of the shapes.

    Raises:
        ConfigError: The budget limits money or energy, and the cluster does not say what they are.
    """
    rows: list[Option] = []
    configs: list[TrialConfig] = []
    too_large: list[CostEstimate] = []
    shortfalls: list[Shortfall] = []
    rejected: Counter[str] = Counter()
    for model in shapes:
        for precision in terms.precisions:
            layouts, misfit = _layouts(model, precision, terms)
            rejected["does not fit the memory"] += misfit is not None
            if not layouts and misfit is not None:
                too_large.append(misfit)
            best = min((layout.balance for layout in layouts), default=0.0)
            for layout in layouts:
                row = _option(layout, terms, len(rows), layout.balance <= best)
                if isinstance(row, Shortfall):
                    shortfalls.append(row)
                    rejected[f"{row.limit} do not last for {MIN_STEPS} steps"] += 1
                elif (broken := _broken(row, terms.constraints)) is not None:
                    rejected[f"{BREAKS} {broken}"] += 1
                else:
                    rows.append(row)
                    configs.append(layout.config)
    return Table(
        options=tuple(_with_losses(rows, configs, terms)),
        configs=tuple(configs),
        too_large=tuple(too_large),
        shortfalls=tuple(shortfalls),
        rejected={reason: count for reason, count in rejected.items() if count},
    )


def _broken(row: Option, constraints: Sequence[MetricConstraint]) -> MetricConstraint | None:
    """Return the first constraint that an option breaks, or None."""
    for constraint in constraints:
        is_time = constraint.metric == "step_seconds"
        value = row.tokens_per_step / row.tokens_per_second if is_time else None
        found = getattr(row, constraint.metric) if value is None else value
        if constraint.violation(found) > 0:
            return constraint
    return None


def _layouts(
    model: ModelConfig, precision: str, terms: Terms
) -> tuple[list[_Layout], CostEstimate | None]:
    """Return the layouts that fit the memory, and an estimate of one that does not."""
    found: list[_Layout] = []
    misfit: CostEstimate | None = None
    threads = terms.template.execution.threads_per_worker if terms.cluster.device.is_cpu else 1
    for workers in divisors(terms.sequences_per_step):
        if workers * threads > terms.cluster.num_devices:
            break
        for config in _configs(model, precision, workers, terms):
            cost = estimate(config, terms.cluster)
            if cost.fits:
                found.append(_priced(config, cost, terms))
                break
            misfit = cost
    return found, misfit


def _configs(
    model: ModelConfig, precision: str, workers: int, terms: Terms
) -> Iterator[TrialConfig]:
    """Yield configurations from the fastest to the most frugal with memory.

    Plain data parallelism first, then sharding over all workers; whole shares first, then smaller
    micro-batches; recomputation last.
    """
    template = terms.template
    share = terms.sequences_per_step // workers
    micro = template.batch.micro_batch_sequences or share
    micros = sorted({d for d in divisors(share) if d <= micro}, reverse=True)
    sharded = [False, True] if workers > 1 and not terms.cluster.device.is_cpu else [False]
    own = template.execution.activation_checkpointing
    modes = dict.fromkeys((own, "full"))
    for mode in modes:
        for is_sharded in sharded:
            for size in micros[:: max(1, len(micros) // 6)] + micros[-1:]:
                yield _config(model, precision, workers, is_sharded, size, mode, terms)


def _config(
    model: ModelConfig, precision: str, workers: int, is_sharded: bool, micro: int, mode: str,
    terms: Terms,
) -> TrialConfig:  # fmt: skip
    template = terms.template
    rate = terms.learning_rate.at(law_params(terms.law, model))
    layout = template.layout.replace(
        data_parallel=1 if is_sharded else workers,
        shard_parallel=workers if is_sharded else 1,
        tensor_parallel=1, pipeline_parallel=1, context_parallel=1, expert_parallel=1,
        virtual_pipeline=1,
    )  # fmt: skip
    return TrialConfig(
        model=model,
        train=template.train.replace(
            tokens=MIN_STEPS * terms.sequences_per_step * model.sequence_length,
            tokens_per_param=None,
            flops=None,
        ),
        batch=template.batch.replace(
            sequences_per_step=terms.sequences_per_step, micro_batch_sequences=micro
        ),
        optimizer=template.optimizer.replace(learning_rate=float(f"{rate:.3g}")),
        schedule=template.schedule,
        precision=template.precision.replace(compute=precision),
        layout=layout,
        execution=template.execution.replace(activation_checkpointing=mode),
        data=template.data,
    )


def _priced(config: TrialConfig, cost: CostEstimate, terms: Terms) -> _Layout:
    """Return the layout with what its start and each step charge, at the measured speed."""
    ratio = speed_ratio(terms.calibration, cost.num_params, config.layout.num_workers)
    whole = charge(cost)
    start_share = cost.startup_seconds / (cost.startup_seconds + cost.train_seconds)
    start = {"flops": 0.0}
    per_step = {"flops": cost.train_flops / cost.num_steps}
    for name in ("seconds", "device_hours", "usd", "kwh"):
        amount = getattr(whole, name)
        start[name] = amount * start_share
        per_step[name] = amount * (1.0 - start_share) / ratio / cost.num_steps
    return _Layout(config=config, cost=cost, start=start, per_step=per_step)


def _option(layout: _Layout, terms: Terms, number: int, is_balanced: bool) -> Option | Shortfall:
    """Return the layout trained to the end of the budget; its loss is filled in later."""
    limits = terms.budget.limits()
    _require_known(limits, layout.cost)
    config, cost = layout.config, layout.cost
    steps = {
        name: (limit - layout.start[name]) / layout.per_step[name] for name, limit in limits.items()
    }
    if min(steps.values()) * (1 + 1e-9) >= MIN_STEPS:
        most = terms.most_tokens_per_param * law_params(terms.law, config.model)
        steps["tokens_per_param"] = max(most / config.tokens_per_step, MIN_STEPS)
    binding = min(steps, key=lambda name: steps[name])
    num_steps = math.floor(min(steps[binding] * (1 + 1e-9), _MOST_STEPS))
    if num_steps < MIN_STEPS:
        needs = {n: layout.start[n] + MIN_STEPS * layout.per_step[n] for n in limits}
        worst = max(limits, key=lambda name: needs[name] / limits[name])
        others = tuple(n for n in limits if n != worst and needs[n] > limits[n])
        return Shortfall(
            limit=worst, need=needs[worst], have=limits[worst], num_params=cost.num_params,
            others=others,
        )  # fmt: skip
    spent = {name: layout.start[name] + num_steps * layout.per_step[name] for name in layout.start}
    return Option(
        option=number,
        num_layers=config.model.num_layers,
        d_model=config.model.d_model,
        num_heads=config.model.heads,
        num_params=cost.num_params,
        num_params_non_embedding=cost.num_params_non_embedding,
        precision=config.precision.compute,
        num_workers=config.layout.num_workers,
        shard_parallel=config.layout.shard_parallel,
        sequences_per_step=config.batch.sequences_per_step,
        micro_batch_sequences=config.micro_batch_sequences,
        activation_checkpointing=config.execution.activation_checkpointing,
        learning_rate=config.optimizer.learning_rate,
        tokens_per_step=config.tokens_per_step,
        num_steps=num_steps,
        train_tokens=num_steps * config.tokens_per_step,
        train_flops=spent["flops"],
        seconds=spent["seconds"],
        device_hours=spent["device_hours"],
        usd=None if cost.usd is None else spent["usd"],
        kwh=None if cost.kwh is None else spent["kwh"],
        peak_memory_bytes=cost.peak_memory_bytes,
        tokens_per_second=config.tokens_per_step / layout.per_step["seconds"],
        predicted_loss=math.nan,
        loss_lower=math.nan,
        loss_upper=math.nan,
        binding=binding,
        is_eligible=is_balanced or "seconds" in limits,
        device_hours_seconds=spent["device_hours"] * spent["seconds"],
    )


def _require_known(limits: dict[str, float], cost: CostEstimate) -> None:
    for unit, setting in (("usd", "usd_per_device_hour"), ("kwh", "device_overrides.power_watts")):
        if unit in limits and getattr(cost, unit) is None:
            raise ConfigError(
                f"a budget in {unit} needs to know what a device costs, and the cluster gives no "
                f"{setting}.",
                hint=f"Set cluster.{setting} in the study, or give the budget in another unit.",
            )


def _with_losses(
    rows: Sequence[Option], configs: Sequence[TrialConfig], terms: Terms
) -> Iterator[Option]:
    """Yield the rows with their predicted losses, computed together."""
    if not rows:
        return
    sizes = [law_params(terms.law, config.model) for config in configs]
    prediction = predict(
        terms.law,
        np.array(sizes, float),
        worth(np.array([row.train_tokens for row in rows], float), terms.unique_tokens),
        shift=terms.size_shift,
        level=terms.level,
        train_flops=np.array([row.train_flops for row in rows]),
    )
    for i, row in enumerate(rows):
        yield replace(
            row,
            predicted_loss=float(prediction.loss[i]),
            loss_lower=float(prediction.loss_lower[i]),
            loss_upper=float(prediction.loss_upper[i]),
        )
