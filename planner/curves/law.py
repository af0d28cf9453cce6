"""A fitted scaling law: what was fitted, how sure it is, and what it predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from planner.curves.arrays import FloatArray, safe_exp, standard_noise
from planner.curves.checks import LARGEST_COUNT, is_fraction, require_level
from planner.curves.forms import find_form
from planner.curves.isoflop import IsoflopProfile, SizeFrontier
from planner.curves.points import FLOPS_PER_PARAM_TOKEN
from planner.errors import ConfigError, FitError, NotFoundError

__all__ = [
    "Backtest",
    "Coefficient",
    "Component",
    "ExtrapolationError",
    "FitWarning",
    "FittedRange",
    "Prediction",
    "ScalingLaw",
    "variables_of",
]

SCHEMA = "planner.scaling-law/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """A named number of the law with its interval; `None` is an unbounded end."""

    name: str
    value: float
    lower: float | None
    upper: float | None
    level: float
    method: str = "bootstrap"
    """Of the interval: `bootstrap`, `profile` where a direction is flat, or `none`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitWarning:
    """Something in the data that the reader of the law must know."""

    code: str
    message: str
    """What was found, with the number, and what to do."""
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedRange:
    """(least, largest) of what the law was fitted on."""

    num_params: tuple[float, float]
    num_tokens: tuple[float, float]
    train_flops: tuple[float, float]
    loss: tuple[float, float]

    def beyond(
        self, num_params: FloatArray, num_tokens: FloatArray, flops_factor: FloatArray
    ) -> FloatArray:
        """Return how far outside the fit a training lies, as a ratio of compute, at least 1.

        A size or a token count outside counts as its square, which is how compute grows with
        either when both grow alike.
        """
        ratios = [flops_factor]
        for values, (least, most) in (
            (num_params, self.num_params),
            (num_tokens, self.num_tokens),
        ):
            ratios += [(values / most) ** 2, (least / values) ** 2]
        return np.asarray(np.maximum(np.max(ratios, axis=0), 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """One form, fitted on the smaller trainings and scored on the larger ones of the table."""

    form: str
    train_max_flops: float
    flops_ratio: float
    num_train: int
    num_test: int
    median_error_fraction: float
    expected_error_fraction: float | None = None
    """Deviation that draws and noise of that fit foretold; only of the first form, in a mixture the
    anchored one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtrapolationError:
    """Standard deviation of log loss that no bootstrap sees: the form itself is wrong.

    `floor + growth * ln(ratio)` at `ratio` times the largest fitted compute.
    """

    floor: float
    growth: float

    def standard_deviation(self, ratio: FloatArray) -> FloatArray:
        """Return the deviation of log loss at each ratio."""
        return np.asarray(self.floor + self.growth * np.log(np.maximum(ratio, 1.0)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Component:
    """One form of the law with its share of the mixture."""

    form: str
    weight: float
    params: FloatArray
    """The fit itself, shape (p,)."""
    draws: FloatArray
    """Bootstrap fits, shape (s, p)."""
    objective_value: float

    def log_loss(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return log of the predicted loss, shape (k,)."""
        return np.asarray(np.log(find_form(self.form).predict(self.params[None, :], columns)[0]))

    def log_loss_draws(self, columns: Mapping[str, FloatArray], num: int) -> FloatArray:
        """Return log of the predicted loss of the first `num` draws, shape (num, k)."""
        return np.asarray(np.log(find_form(self.form).predict(self.draws[:num], columns)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Loss at given points, in the unit of the table (nats per token); arrays of one shape."""

    loss: FloatArray
    loss_lower: FloatArray
    """Prediction interval: a training run there would fall between these two."""
    loss_upper: FloatArray
    confidence_lower: FloatArray
    """Confidence interval of the curve, from resampling and choice of form alone."""
    confidence_upper: FloatArray
    extrapolation_factor: FloatArray
    """Training compute over the largest compute in the fit."""
    level: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScalingLaw:
    """A fitted law. `predict` and `optimal_allocation` are what it is for."""

    form: str
    """A name of `curve_forms()`, or `mixture`."""
    components: tuple[Component, ...]
    coefficients: tuple[Coefficient, ...]
    """Those of the reference law, or of the form asked for."""
    objective: str
    objective_value: float
    num_rows: int
    dropped: Mapping[str, int]
    warnings: tuple[FitWarning, ...]
    fitted_range: FittedRange
    irreducible_loss: Coefficient
    noise: float
    """Standard deviation of log loss around the fit."""
    extrapolation: ExtrapolationError
    backtests: tuple[Backtest, ...] = ()
    profiles: tuple[IsoflopProfile, ...] = ()
    """The IsoFLOP curve of every budget that has one."""
    frontiers: Mapping[str, SizeFrontier] = field(default_factory=dict)
    """The power law of the best size by each method that gives one: `isoflop`, `envelope`."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why each other method gives none."""
    checklist: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    flops_convention: str = "6 N D"
    level: float = 0.9
    seed: int = 0
    planner_version: str = ""

    @property
    def variables(self) -> tuple[str, ...]:
        """The quantities that its forms read."""
        return variables_of(self.components)

    @property
    def needs_only_size_and_tokens(self) -> bool:
        """Whether a prediction needs nothing else."""
        return set(self.variables) <= {"num_params", "num_tokens"}

    def predict(
        self,
        num_params: ArrayLike,
        num_tokens: ArrayLike,
        *,
        level: float | None = None,
        train_flops: ArrayLike | None = None,
        **columns: ArrayLike,
    ) -> Prediction:
        """Predict the final loss of trainings.

        Args:
            num_params: Parameters, counted as in the fitted table. Any shape.
            num_tokens: Training tokens, broadcast with `num_params`.
            level: Of the intervals, in (0, 1); absent means the level of the fit.
            train_flops: Compute, for the extrapolation factor; absent means 6 N D.
            columns: What else the form needs, e.g. `unique_tokens`.

        Raises:
            ConfigError: A value is not positive and finite, or the level is not in (0, 1).
            FitError: The form needs a column that was not given.
        """
        share = self.level if level is None else require_level(level)
        given = {"num_params": num_params, "num_tokens": num_tokens, **columns}
        if train_flops is not None:
            given["train_flops"] = train_flops
        arrays = _broadcast(given)
        shape = arrays["num_params"].shape
        flat = {name: value.ravel() for name, value in arrays.items()}
        for component in self.components:
            missing = set(find_form(component.form).columns) - set(flat)
            if missing:
                raise FitError(
                    f"form {component.form} needs {', '.join(sorted(missing))} to predict."
                )
        flops = flat.get("train_flops")
        if flops is None:
            flops = FLOPS_PER_PARAM_TOKEN * flat["num_params"] * flat["num_tokens"]
        factor = flops / self.fitted_range.train_flops[1]
        return self._intervals(flat, factor, share, shape)

    def _intervals(
        self, flat: dict[str, FloatArray], factor: FloatArray, level: float, shape: tuple[int, ...]
    ) -> Prediction:
        center = np.sum([c.weight * c.log_loss(flat) for c in self.components], axis=0)
        draws = self.log_loss_draws(flat)
        tails = [0.5 - 0.5 * level, 0.5 + 0.5 * level]
        confidence = np.quantile(draws, tails, axis=0)
        beyond = self.fitted_range.beyond(flat["num_params"], flat["num_tokens"], factor)
        spread = np.hypot(self.noise, self.extrapolation.standard_deviation(beyond))
        standard = standard_noise(draws.shape[0], self.seed)
        predicted = np.quantile(draws + standard[:, None] * spread, tails, axis=0)
        low, high = np.minimum(predicted[0], center), np.maximum(predicted[1], center)
        return Prediction(
            loss=safe_exp(center).reshape(shape),
            loss_lower=safe_exp(low).reshape(shape),
            loss_upper=safe_exp(high).reshape(shape),
            confidence_lower=safe_exp(np.minimum(confidence[0], center)).reshape(shape),
            confidence_upper=safe_exp(np.maximum(confidence[1], center)).reshape(shape),
            extrapolation_factor=factor.reshape(shape),
            level=level,
        )

    def log_loss_draws(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return draws of log loss pooled over the forms by weight, shape (about s, k)."""
        parts = [c.log_loss_draws(columns, num) for c, num in self.shares_of_draws()]
        return np.concatenate(parts)

    def shares_of_draws(self) -> list[tuple[Component, int]]:
        """Return how many draws of each component make the pooled sample."""
        total = min(len(c.draws) / c.weight for c in self.components)
        shares = [(c, round(c.weight * total)) for c in self.components]
        return [(c, num) for c, num in shares if num]

    def extrapolation_factor(self, train_flops: ArrayLike) -> FloatArray:
        """Return compute over the largest compute in the fit."""
        return np.asarray(train_flops, dtype=np.float64) / self.fitted_range.train_flops[1]

    def coefficient(self, name: str) -> Coefficient:
        """Return the coefficient of this name.

        Raises:
            NotFoundError: The law has none.
        """
        for item in self.coefficients:
            if item.name == name:
                return item
        names = ", ".join(item.name for item in self.coefficients)
        raise NotFoundError(f"law {self.form} has no coefficient {name!r}. It has {names}.")

    def to_json(self) -> str:
        """Return the law as one JSON document (the content of laws.json)."""
        document = {"schema": SCHEMA, **asdict(self)}
        return json.dumps(document, default=_plain, indent=None, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ScalingLaw:
        """Return the law of a document that `to_json` wrote.

        Raises:
            ConfigError: It is not such a document.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"a law is a JSON document: {error}") from error
        found = document.get("schema") if isinstance(document, dict) else None
        if found != SCHEMA:
            raise ConfigError(
                f"a law has the schema {SCHEMA}: got {found!r}.",
                hint="Write it again with `planner fit`.",
            )
        return _from_document(document)

    def save(self, path: str | Path) -> None:
        """Write the law to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ScalingLaw:
        """Read a law from a file.

        Raises:
            NotFoundError: There is no such file.
            ConfigError: It does not hold a law.
        """
        if not Path(path).is_file():
            raise NotFoundError(f"no law at {path}.", hint="Write one with `planner fit`.")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{path} is no law: it is not text.", hint="Give the laws.json of `planner fit`."
            ) from error
        return cls.from_json(text)


def _broadcast(given: Mapping[str, ArrayLike]) -> dict[str, FloatArray]:
    arrays = {}
    for name, value in given.items():
        array = np.asarray(value, dtype=np.float64)
        is_share = name.endswith("_fraction")
        if is_share and not is_fraction(name, array).all():
            raise ConfigError(f"{name} must lie in 0 to 1: got {array.min():g} to {array.max():g}.")
        if not is_share and not (is_good := (array > 0) & (array < LARGEST_COUNT)).all():
            raise ConfigError(
                f"{name} must be positive and finite, below {LARGEST_COUNT:g}: "
                f"{int((~is_good).sum())} of {array.size} are not, the first is "
                f"{array[~is_good].flat[0]:g}."
            )
        arrays[name] = array
    try:
        shape = np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ConfigError(f"shapes must broadcast: got {shapes}.") from None
    return {name: np.broadcast_to(array, shape) for name, array in arrays.items()}


def variables_of(components: Sequence[Component]) -> tuple[str, ...]:
    """Return the quantities that forms read, each once."""
    return tuple(dict.fromkeys(v for c in components for v in find_form(c.form).columns))


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a law")


def _from_document(document: dict[str, Any]) -> ScalingLaw:
    values = {name: value for name, value in document.items() if name != "schema"}
    try:
        values["components"] = tuple(
            Component(
                **{
                    **c,
                    "params": np.array(c["params"], float),
                    "draws": np.array(c["draws"], float),
                }
            )
            for c in values["components"]
        )
        values["coefficients"] = tuple(Coefficient(**c) for c in values["coefficients"])
        values["warnings"] = tuple(FitWarning(**w) for w in values["warnings"])
        values["backtests"] = tuple(Backtest(**b) for b in values["backtests"])
        values["profiles"] = tuple(IsoflopProfile(**p) for p in values["profiles"])
        values["frontiers"] = {m: SizeFrontier(**f) for m, f in values["frontiers"].items()}
        values["irreducible_loss"] = Coefficient(**values["irreducible_loss"])
        values["fitted_range"] = FittedRange(
            **{name: tuple(pair) for name, pair in values["fitted_range"].items()}
        )
        values["extrapolation"] = ExtrapolationError(**values["extrapolation"])
        law = ScalingLaw(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"this law is damaged: {error}", hint="Write it again with `planner fit`."
        ) from error
    for component in law.components:
        find_form(component.form)
    return law
