"""Optimizers: one step by hand, a small task, and sharded beside unsharded."""

from __future__ import annotations

import pytest
import torch

from planner.engine import train
from planner.engine.optimizers import build_optimizer
from planner.errors import ConfigError
from planner.trial import OptimizerConfig, TrialState

RATE, DECAY, EPS = 0.1, 0.01, 1e-8


def one_step(name: str, start: list[float], gradient: list[float], **settings: float):
    """Return a 2 x 1 matrix after one step from `start` on `gradient`."""
    parameter = torch.nn.Parameter(torch.tensor(start).reshape(2, 1))
    config = OptimizerConfig(name=name, learning_rate=RATE, weight_decay=DECAY, **settings)
    optimizer = build_optimizer(config, [("layers.0.w.weight", parameter)], d_model=2)
    parameter.grad = torch.tensor(gradient).reshape(2, 1)
    optimizer.step()
    return parameter.detach().flatten().tolist()


def test_sgd_steps_along_the_gradient_plus_decay():
    assert one_step("sgd", [1.0, 2.0], [0.5, -1.0]) == pytest.approx(
        [1 - RATE * (0.5 + DECAY * 1), 2 - RATE * (-1 + DECAY * 2)]
    )


def test_nesterov_looks_one_momentum_ahead():
    gradient = 0.5 + DECAY
    assert one_step("sgd", [1.0, 1.0], [0.5, 0.5], momentum=0.9, nesterov=True) == pytest.approx(
        [1 - RATE * (gradient + 0.9 * gradient)] * 2
    )


def test_adamw_first_step_is_the_sign_of_the_gradient_after_decay():
    expected = [1 * (1 - RATE * DECAY) - RATE, 2 * (1 - RATE * DECAY) + RATE]
    assert one_step("adamw", [1.0, 2.0], [0.5, -1.0]) == pytest.approx(expected, rel=1e-5)


def test_adam_puts_decay_into_the_gradient():
    assert one_step("adam", [1.0, 2.0], [0.5, -1.0]) == pytest.approx([0.9, 2.1], rel=1e-5)


def test_adagrad_first_step_is_the_sign_of_the_gradient():
    assert one_step("adagrad", [1.0, 2.0], [0.5, -1.0]) == pytest.approx([0.9, 2.1], rel=1e-5)


def test_rmsprop_divides_by_the_root_of_the_running_square():
    step = RATE / (1 - 0.75) ** 0.5
    assert one_step("rmsprop", [1.0, 2.0], [0.5, -1.0], beta2=0.75) == pytest.approx(
        [1 - step, 2 + step], rel=1e-5
    )


def test_lamb_scales_the_step_to_the_norm_of_the_parameter():
    update = [1 + DECAY * 3, -1 + DECAY * 4]  # the sign of the gradient, plus decay
    trust = 5.0 / (update[0] ** 2 + update[1] ** 2) ** 0.5
    assert one_step("lamb", [3.0, 4.0], [0.5, -1.0]) == pytest.approx(
        [3 - RATE * trust * update[0], 4 - RATE * trust * update[1]], rel=1e-5
    )


def test_adafactor_moves_a_matrix_of_equal_gradients_as_a_sign_step():
    # First step: beta2_t = 0, the factored mean is the square itself, so the update is the sign,
    # clipped to rms 1; the step is min(lr, 1 / sqrt(1)) times the parameter's rms.
    start = [2.0, 2.0]
    expected = [2 - RATE * 2.0] * 2
    parameter = one_step("adafactor", start, [0.5, 0.5])
    assert parameter == pytest.approx(expected, rel=2e-2)


def test_muon_orthogonalises_a_matrix():
    parameter = torch.nn.Parameter(torch.zeros(4, 4))
    config = OptimizerConfig(name="muon", learning_rate=1.0, weight_decay=0.0)
    optimizer = build_optimizer(config, [("layers.0.w.weight", parameter)], d_model=4)
    parameter.grad = torch.diag(torch.tensor([1.0, 0.5, 0.8, 0.3]))
    optimizer.step()
    scale = 0.2 * 4**0.5  # to AdamW's rms
    spread = torch.linalg.svdvals(parameter.detach()) / scale
    assert (spread > 0.6).all()
    assert (spread < 1.3).all()


def test_norms_biases_and_positions_do_not_decay():
    names = ("norm.weight", "layers.0.attention.wq.bias", "positions.weight", "embedding.weight")
    shapes = ((4,), (4,), (8, 4), (8, 4))
    named = [(n, torch.nn.Parameter(torch.ones(s))) for n, s in zip(names, shapes, strict=True)]
    optimizer = build_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), named, 4)
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert [bool((p == 1).all()) for _, p in named] == [True, True, True, False]


@pytest.mark.parametrize(
    ("name", "hidden", "others"),
    [("adamw", 1 / 4, 1.0), ("sgd", 1.0, 4.0), ("lamb", 1 / 2, 1.0), ("adafactor", 1 / 2, 1.0)],
)
def test_width_scaling_moves_the_rates_as_the_optimizer_needs_it(name, hidden, others):
    named = [
        (name, torch.nn.Parameter(torch.ones(4, 4)))
        for name in ("embedding.weight", "layers.0.mlp.w1.weight")
    ]
    config = OptimizerConfig(name=name, width_scaling="mup", base_width=64)
    groups = build_optimizer(config, named, d_model=256).param_groups
    assert {g["is_hidden"]: g["lr_factor"] for g in groups} == {False: others, True: hidden}


def test_muon_leaves_the_matrices_of_experts_to_adamw(small):
    result = train(
        small(
            model={"num_experts": 2}, optimizer={"name": "muon"}, train={"tokens": 16 * 8 * 2},
        )
    )  # fmt: skip
    assert result.state is TrialState.COMPLETED


def test_nesterov_without_a_momentum_is_refused(small):
    with pytest.raises(ConfigError, match="Set momentum"):
        small(optimizer={"name": "sgd", "nesterov": True})


GOOD_RATES = {
    "adafactor": 0.1, "adagrad": 0.05, "adam": 1e-2, "adamw": 1e-2, "lamb": 2e-2, "muon": 1e-2,
    "rmsprop": 3e-3, "sgd": 0.5,
}  # fmt: skip
STATED_LOSS = 3.0
"""A uniform guess gives 5.55 and the unigram entropy of the text is about 3.2 nats."""


@pytest.mark.parametrize("name", GOOD_RATES)
def test_every_optimizer_reaches_the_stated_loss(small, name):
    result = train(
        small(
            model={"num_layers": 2},
            train={"tokens": 16 * 32 * 150, "num_validations": 1},
            batch={"sequences_per_step": 32, "micro_batch_sequences": 32},
            optimizer={
                "name": name, "learning_rate": GOOD_RATES[name], "gradient_clip_norm": 1.0,
                "momentum": 0.9 if name == "sgd" else None, "weight_decay": 0.0,
            },
        )
    )  # fmt: skip
    assert result.state is TrialState.COMPLETED
    assert result.val_loss < STATED_LOSS
