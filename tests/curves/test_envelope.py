"""The envelope of training curves."""

from __future__ import annotations

import numpy as np
import pytest

from planner.curves import fit_envelope
from planner.curves.closed_forms import optimal_params
from planner.errors import ConfigError, FitError

BASE = np.array([[1.8, 480.0, 2100.0, 0.35, 0.37]])
EXPONENT = 0.37 / 0.72


def _rows(
    num_sizes: int = 9, *, noise: float = 0.0, low: float = 2e7, high: float = 5e9
) -> tuple[np.ndarray, ...]:
    n = np.repeat(np.geomspace(low, high, num_sizes), 40)
    flops = np.tile(np.geomspace(1e17, 1e22, 40), num_sizes)
    e, a, b, alpha, beta = BASE[0]
    loss = e + a / n**alpha + b / (flops / (6 * n)) ** beta
    loss *= np.exp(noise * np.random.default_rng(0).standard_normal(n.size))
    return flops, loss, n, np.repeat(np.arange(num_sizes), 40)


@pytest.mark.parametrize("num_sizes", [6, 9, 30])
def test_the_sizes_on_the_envelope_follow_the_law_of_the_best_size(num_sizes):
    frontier = fit_envelope(*_rows(num_sizes)).frontier
    assert frontier.slope == pytest.approx(EXPONENT, abs=0.003)
    best = float(optimal_params(BASE, 1e21)[0])
    assert frontier.size_interval(1e21, 0.9)[0] == pytest.approx(best, rel=0.02)


def test_intervals_hold_the_truth_under_noise_and_grow_with_distance():
    frontier = fit_envelope(*_rows(12, noise=0.002)).frontier
    low, high = frontier.exponent_interval(0.9)
    assert low < EXPONENT < high < low + 0.15
    for flops in (1e20, 1e24):
        _, least, most = frontier.size_interval(flops, 0.9)
        assert least < optimal_params(BASE, flops)[0] < most
    assert most / least > 1.2 * np.divide(*frontier.size_interval(1e20, 0.9)[:0:-1])


def test_the_envelope_falls_and_no_run_lies_below_it():
    flops, loss, n, run = _rows()
    envelope = fit_envelope(flops, loss, n, run)
    assert (np.diff(envelope.loss) < 0).all()
    at = np.interp(np.log(flops), np.log(envelope.train_flops), envelope.loss)
    assert (loss >= at * 0.999).all()
    assert envelope.num_runs == 9


def test_levels_whose_best_size_is_at_the_edge_are_not_used():
    envelope = fit_envelope(*_rows(9, low=3e8, high=5e9))
    truth = np.array([optimal_params(BASE, c)[0] for c in envelope.train_flops])
    assert not envelope.is_inside[truth < 3e8].any()
    assert envelope.is_inside[(truth > 6e8) & (truth < 2e9)].all()


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (_rows(2), "60 are reached by fewer than 3 sizes"),
        (_rows(9, low=2e11, high=2e12), "at 60 the lowest is the smallest"),
    ],
    ids=["two sizes", "all too large"],
)
def test_too_few_sizes_on_the_envelope_are_refused_with_the_reason(rows, why):
    with pytest.raises(FitError, match=rf"at least 3 sizes.*got 0.*{why}"):
        fit_envelope(*rows)


def test_runs_of_one_size_are_taken_together():
    flops, loss, n, run = _rows()
    half = np.arange(flops.size) % 40 < 22
    joined = fit_envelope(flops, loss, n, np.where(half, run, run + 100))
    assert joined.num_runs == 18
    assert joined.frontier.slope == pytest.approx(EXPONENT, abs=0.01)


def test_a_loss_that_is_not_finite_is_refused():
    flops, loss, n, run = _rows()
    loss[5] = np.nan
    with pytest.raises(ConfigError, match="positive and finite"):
        fit_envelope(flops, loss, n, run)
