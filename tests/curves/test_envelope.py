"""The envelope of training curves."""

from __future__ import annotations

import numpy as np
import pytest

from planner.curves import fit_envelope
from planner.curves.allocation import optimal_params
from planner.errors import ConfigError, FitError

BASE = np.array([[1.8, 480.0, 2100.0, 0.35, 0.37]])


def _rows(num_sizes: int = 9) -> tuple[np.ndarray, ...]:
    n = np.repeat(np.geomspace(2e7, 5e9, num_sizes), 40)
    flops = np.tile(np.geomspace(1e17, 1e22, 40), num_sizes)
    e, a, b, alpha, beta = BASE[0]
    loss = e + a / n**alpha + b / (flops / (6 * n)) ** beta
    return flops, loss, n, np.repeat(np.arange(num_sizes), 40)


def test_the_sizes_on_the_envelope_follow_the_law_of_the_best_size():
    envelope = fit_envelope(*_rows())
    assert envelope.size_law.exponent == pytest.approx(0.37 / 0.72, abs=0.04)
    best = float(optimal_params(BASE, 1e20)[0])
    assert envelope.size_law.predict(1e20) == pytest.approx(best, rel=0.25)


def test_the_envelope_falls_and_no_run_lies_below_it():
    flops, loss, n, run = _rows()
    envelope = fit_envelope(flops, loss, n, run)
    assert (np.diff(envelope.loss) < 0).all()
    at = np.interp(np.log(flops), np.log(envelope.train_flops), envelope.loss)
    assert (loss >= at * 0.999).all()


def test_two_sizes_are_too_few():
    with pytest.raises(FitError, match="at least 3 sizes"):
        fit_envelope(*_rows(2))


def test_a_loss_that_is_not_finite_is_refused():
    flops, loss, n, run = _rows()
    loss[5] = np.nan
    with pytest.raises(ConfigError, match="positive and finite"):
        fit_envelope(flops, loss, n, run)
