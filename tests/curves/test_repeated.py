"""Repeated data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from planner.curves import Points, fit_repeated
from planner.curves.repeated import MUENNIGHOFF_C4, effective_tokens
from planner.errors import FitError


def _epochs(sweep, most: float, r_d: float = 12.0, noise: float = 0.003) -> Points:
    tokens = np.tile(np.repeat(np.geomspace(1e9, 1e11, 6), 6), 4)
    epochs = np.repeat(np.geomspace(1.0, most, 4), 36)
    return sweep(
        form="repeated",
        truth=(*MUENNIGHOFF_C4, r_d, 6.0),
        copies=4,
        noise=noise,
        unique_tokens=tokens / epochs,
    )


def test_a_first_epoch_counts_fully_and_later_ones_less():
    assert effective_tokens(1e9, 1e9, 15.0) == 1e9
    assert effective_tokens(1e9, 2e9, 15.0) == 1e9
    gains = np.diff(effective_tokens(1e9 * np.arange(1, 60), 1e9, 15.0))
    assert (gains < 1e9).all()
    assert (np.diff(gains) < 0).all()


def test_effective_data_never_exceed_one_plus_the_limit_times_the_unique():
    assert effective_tokens(1e15, 1e9, 15.0) == pytest.approx(16e9)


def test_many_epochs_close_the_interval_around_the_truth(sweep):
    fit = fit_repeated(_epochs(sweep, 200.0))
    c = fit.repeat_tokens
    assert c.lower is not None
    assert c.upper is not None
    assert c.lower <= 12.0 <= c.upper
    assert c.upper < 100


def test_few_epochs_leave_the_interval_open_above_and_that_is_said(sweep):
    fit = fit_repeated(_epochs(sweep, 1.3, noise=0.01))
    assert fit.repeat_tokens.upper is None
    assert "no upper bound" in fit.describe()


def test_data_without_repeats_are_refused(sweep):
    p = _epochs(sweep, 100.0)
    with pytest.raises(FitError, match="more than one epoch: got 0"):
        fit_repeated(dataclasses.replace(p, unique_tokens=p.num_tokens))
    with pytest.raises(FitError, match="unique_tokens"):
        fit_repeated(dataclasses.replace(p, unique_tokens=None))
