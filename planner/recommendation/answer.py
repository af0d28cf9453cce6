"""What a recommendation says, and its JSON.

The table of options is part of the answer: the chosen one is the least of `RANKED_BY` among the
options that are eligible, and whoever doubts it can compute that again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from planner.budget import format_amount
from planner.config import parse_config
from planner.curves import SizeByMethod
from planner.errors import ConfigError
from planner.trial import TrialConfig
from planner.units import format_count, format_number, format_seconds, format_usd

__all__ = [
    "RANKED_BY",
    "SCHEMA",
    "Calibration",
    "Caution",
    "Option",
    "Recommendation",
    "RunnerUp",
    "TunedSetting",
    "rank",
]

SCHEMA: Final = "planner.recommendation/2"

RANKED_BY: Final = ("predicted_loss", "device_hours_seconds", "num_params")
"""Columns of the table, the first one deciding; only rows with `is_eligible` take part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One row of the table: a configuration trained for as long as the budget lasts."""

    option: int
    """Number of the row."""
    num_layers: int
    d_model: int
    num_heads: int
    num_params: int
    """All parameters; the tied head counts once."""
    num_params_non_embedding: int
    precision: str
    num_workers: int
    shard_parallel: int
    """Workers over which one replica is sharded; 1 is plain data parallelism."""
    sequences_per_step: int
    micro_batch_sequences: int
    activation_checkpointing: str
    learning_rate: float
    tokens_per_step: int
    num_steps: int
    train_tokens: int
    train_flops: float
    seconds: float
    """Wall clock, start-up included, at the measured speed where there is one."""
    device_hours: float
    usd: float | None
    kwh: float | None
    peak_memory_bytes: float
    tokens_per_second: float
    predicted_loss: float
    """Nats per token."""
    loss_lower: float
    """Prediction interval: a training run would end between these two."""
    loss_upper: float
    binding: str
    """What ends the training: a limit of the budget, or `tokens_per_param`, twice the most tried."""
    is_eligible: bool
    """Whether it takes part in the ranking: without a deadline only one layout per model and
    precision does, the one with the least device_seconds x seconds per token."""
    device_hours_seconds: float
    """device_hours x seconds: halving the time may cost up to twice the device-hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerUp:
    """An option that is nearly as good, and what choosing it would mean."""

    title: str
    option: Option
    gives_up: str
    gains: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Caution:
    """Something that whoever acts on the recommendation must know."""

    code: str
    message: str
    value: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedSetting:
    """The best value of a swept setting and how it was read off: value x (params / at)^exponent."""

    name: str
    value: float
    at_num_params: float | None = None
    """Size at which the value holds; None where it is the same for all sizes."""
    exponent: float = 0.0
    lower: float | None = None
    """Between lower and upper the loss is within 0.25 % of its least; None if not known."""
    upper: float | None = None
    tried_lower: float | None = None
    tried_upper: float | None = None
    num_trials: int = 0
    method: str = "study"
    """`law of rate and batch`, `power law`, `quadratic`, `best trial` or `study` (it was not swept)."""

    def at(self, num_params: float) -> float:
        """Return the value for a model of this many parameters."""
        if self.at_num_params is None or self.exponent == 0.0:
            return self.value
        return float(self.value * (num_params / self.at_num_params) ** self.exponent)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Measured over estimated speed of the run's own trials, by size."""

    is_measured: bool
    num_trials: int = 0
    num_params: tuple[float, ...] = ()
    """Sizes that were measured, rising."""
    ratios: tuple[float, ...] = ()
    """Measured tokens per second over the estimate's, one per size; held beyond the ends."""
    multi_worker_factor: float = 1.0
    """Further factor for more than one worker."""
    num_workers: tuple[int, ...] = ()
    """Numbers of workers that were measured."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """The configuration to train at a budget, what it will give, and the runners-up."""

    study: str
    question: str
    budget: Mapping[str, float]
    """Limits by field of Budget."""
    cluster: str
    config: TrialConfig
    """What to train."""
    choice: Option
    runners_up: tuple[RunnerUp, ...]
    binding: tuple[str, ...]
    """What holds the choice where it is: a limit of the budget, `tokens_per_param`, `max_params`,
    `memory`."""
    headroom: Mapping[str, float]
    """What is left of each limit."""
    level: float
    """Of the prediction interval."""
    best_num_params: tuple[float, float, float]
    """Compute-optimal size by all methods of the law, and its interval; counted as the law counts."""
    best_sizes: tuple[SizeByMethod, ...]
    """What each method says of it at the same compute, or why it says nothing."""
    size_shift: float
    """Ratio of sizes by which the predicted losses are centred on it (`sizing.py`)."""
    most_tokens_per_param: float | None
    """No option was trained longer than this; None where `max_params` asked for it."""
    unique_tokens: float | None
    """Tokens of the corpus: what is seen again counts for less. None where the trials do not say."""
    extrapolation_factor: float
    """Training compute over the largest compute of the fit."""
    confidence: str
    """`high`, `medium` or `low`."""
    reasons: tuple[str, ...]
    """Why the confidence is what it is."""
    warnings: tuple[Caution, ...]
    learning_rate: TunedSetting
    tokens_per_step: TunedSetting
    calibration: Calibration
    law_form: str
    law_digest: str
    """Of laws.json: a recommendation from another law is out of date."""
    table: tuple[Option, ...]
    rejected: Mapping[str, int]
    """Why options are not in the table, with their number."""
    max_params: int | None = None
    """The largest model that was asked for, all parameters counted."""
    ranked_by: tuple[str, ...] = RANKED_BY
    planner_version: str = ""

    @property
    def predicted_loss(self) -> float:
        """Loss that the law expects, in nats per token."""
        return self.choice.predicted_loss

    @property
    def interval(self) -> tuple[float, float]:
        """Prediction interval of the loss."""
        return self.choice.loss_lower, self.choice.loss_upper

    def __str__(self) -> str:
        """Return the answer in one sentence."""
        row = self.choice
        workers = "1 worker" if row.num_workers == 1 else f"{row.num_workers} workers"
        spent = [
            format_seconds(row.seconds),
            format_amount("device_hours", row.device_hours),
            *([format_usd(row.usd)] if row.usd is not None else []),
        ]
        return (
            f"Train a model of {row.num_layers} layers, width {row.d_model} "
            f"({format_count(row.num_params)} parameters) on {format_count(row.train_tokens)} "
            f"tokens, {format_count(row.tokens_per_step)} tokens a step, peak learning rate "
            f"{format_number(row.learning_rate)}, {row.precision} on {workers}: "
            f"predicted loss {row.predicted_loss:.3f} ({self.level:.0%} interval "
            f"{row.loss_lower:.3f} to {row.loss_upper:.3f}), {', '.join(spent)}."
        )

    def to_json(self) -> str:
        """Return the recommendation as one JSON document."""
        document = asdict(self) | {"config": self.config.model_dump(mode="json")}
        return json.dumps({"schema": SCHEMA, **document}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recommendation:
        """Return the recommendation of a document that `to_json` wrote.

        Raises:
            ConfigError: It is not such a document.
        """
        again = "Write it again with `planner recommend`."
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"recommendation.json is not JSON: {error}.", hint=again) from error
        found = document.pop("schema", None) if isinstance(document, dict) else None
        if found != SCHEMA:
            raise ConfigError(
                f"a recommendation has the schema {SCHEMA}: got {found!r}.", hint=again
            )
        try:
            return cls(**_nested(document))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"this recommendation is damaged: {error}.", hint=again) from error


def _nested(document: dict[str, Any]) -> dict[str, Any]:
    calibration = document["calibration"]
    return document | {
        "config": parse_config(document["config"], TrialConfig),
        "choice": Option(**document["choice"]),
        "table": tuple(Option(**row) for row in document["table"]),
        "runners_up": tuple(
            RunnerUp(**item | {"option": Option(**item["option"])})
            for item in document["runners_up"]
        ),
        "best_sizes": tuple(SizeByMethod(**item) for item in document["best_sizes"]),
        "warnings": tuple(Caution(**item) for item in document["warnings"]),
        "learning_rate": TunedSetting(**document["learning_rate"]),
        "tokens_per_step": TunedSetting(**document["tokens_per_step"]),
        "calibration": Calibration(
            **calibration
            | {name: tuple(calibration[name]) for name in ("num_params", "ratios", "num_workers")}
        ),
        **{
            name: tuple(document[name])
            for name in ("binding", "reasons", "ranked_by", "best_num_params")
        },
    }


def rank(option: Option) -> tuple[float, ...]:
    """Return what an option is ranked by; the least wins."""
    return tuple(float(getattr(option, name)) for name in RANKED_BY)
