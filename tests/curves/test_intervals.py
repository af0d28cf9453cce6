"""Prediction intervals cover what they say, under a law that is known."""

from __future__ import annotations

import numpy as np
import pytest

from planner.curves import Points, curve_forms, fit


@pytest.mark.slow
def test_ninety_percent_prediction_intervals_cover_far_trainings():
    generator = np.random.default_rng(7)
    inside = []
    for _ in range(15):
        alpha, beta = generator.normal(0.35, 0.05, 2).clip(0.22)
        shares = generator.dirichlet((4, 4))
        truth = np.array(
            [[1.8, shares[0] * 1e8**alpha * 2, shares[1] * 2e9**beta * 2, alpha, beta]]
        )
        n = np.exp(generator.uniform(np.log(2e7), np.log(4e8), 36))
        d = n * np.exp(generator.uniform(np.log(4), np.log(100), 36))
        columns = {"num_params": n, "num_tokens": d}
        law_loss = curve_forms()["chinchilla"].predict(truth, columns)[0]
        table_loss = law_loss * np.exp(0.004 * generator.standard_normal(36))
        law = fit(Points(loss=table_loss, **columns), num_bootstraps=50)
        far = {"num_params": np.array([4e9, 1e10]), "num_tokens": np.array([8e10, 2e11])}
        p = law.predict(**far)
        seen = curve_forms()["chinchilla"].predict(truth, far)[0]
        seen = seen * np.exp(0.004 * generator.standard_normal(2))
        inside += list((p.loss_lower <= seen) & (seen <= p.loss_upper))
    assert np.mean(inside) >= 0.8
