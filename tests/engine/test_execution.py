"""How a step is carried out changes memory and time, not what is learnt."""

from __future__ import annotations

import pytest
import torch

from planner.engine import train
from planner.trial import TrialState


def gradients(make_stepper, config):
    stepper = make_stepper(config)
    loss = stepper._accumulate(0, config.num_micro_batches)
    return float(loss), {name: p.grad.clone() for name, p in stepper.named}


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_gives_the_same_loss_and_gradients_bit_for_bit(small, make_stepper, mode):
    loss, expected = gradients(make_stepper, small())
    again, found = gradients(make_stepper, small(execution={"activation_checkpointing": mode}))
    assert again == loss
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_a_chunked_loss_gives_the_same_loss_and_gradients(make_stepper, small):
    loss, expected = gradients(make_stepper, small())
    again, found = gradients(make_stepper, small(execution={"chunked_loss": True}))
    assert again == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


@pytest.fixture
def pass_bytes(blank_stepper, peak_bytes):
    """A function that returns the most that a pass holds after a first step."""

    def measure(config):
        stepper = blank_stepper(config)
        stepper.step(0, config.batch.sequences_per_step, 0.5)
        return peak_bytes(lambda: stepper._accumulate(0, config.num_micro_batches))

    return measure


@pytest.fixture(scope="module")
def wide(small):
    def make(**execution):
        return small(
            model={"d_model": 64, "sequence_length": 128, "num_layers": 6, "vocab_size": 2048},
            train={"tokens": 128 * 8, "validation_tokens": 128},
            batch={"sequences_per_step": 8, "micro_batch_sequences": 8},
            execution=execution,
        )

    return make


def test_each_kind_of_recomputation_holds_less_than_the_one_before(wide, pass_bytes):
    none, selective, full = (
        pass_bytes(wide(activation_checkpointing=mode, chunked_loss=True))
        for mode in ("none", "selective", "full")
    )
    assert full < 0.6 * none
    assert full < selective < none


def test_a_chunked_loss_never_holds_the_logits(wide, pass_bytes):
    logits_bytes = 8 * 128 * 2048 * 4
    saved = pass_bytes(wide()) - pass_bytes(wide(chunked_loss=True))
    assert saved > 0.5 * logits_bytes


def test_a_batch_ramp_takes_more_steps_over_the_same_tokens(small):
    plain = train(small())
    ramp = train(small(batch={"ramp_start_sequences": 1, "ramp_fraction": 0.5}))
    assert ramp.train_tokens == plain.train_tokens
    assert ramp.num_steps > plain.num_steps


def test_training_stops_when_the_validation_loss_no_longer_falls(small):
    config = small(
        optimizer={"learning_rate": 1e-12},
        train={"patience_reports": 2, "num_validations": 10},
    )
    result = train(config)
    assert result.state is TrialState.STOPPED
    assert "patience_reports" in result.reason
    assert result.num_steps < 10


def test_patience_that_ends_with_the_training_does_not_cut_it_short(small):
    config = small(
        optimizer={"learning_rate": 1e-12},
        train={"patience_reports": 2, "num_validations": 3},
    )
    assert train(config).state is TrialState.COMPLETED


def test_width_scaling_is_no_change_at_the_base_width(small):
    plain = train(small())
    scaled = train(small(optimizer={"width_scaling": "mup", "base_width": 32}))
    assert scaled.val_loss == plain.val_loss


def change_of_logits(make_stepper, config):
    """Return the root mean square of what three steps change in the logits of a fixed batch."""
    stepper = make_stepper(config)
    tokens, _ = stepper.task.training_batch(0, 8)
    before = stepper.local.whole(tokens).detach()
    for number in range(3):
        stepper.step(8 * number, 8, 0.5)
    return float((stepper.local.whole(tokens).detach() - before).square().mean().sqrt())


@pytest.mark.parametrize(
    ("optimizer", "rate"), [("adamw", 3e-3), ("sgd", 0.1), ("lamb", 1e-2), ("adafactor", 1e-2)]
)
def test_width_scaling_makes_a_step_change_as_much_at_any_width(
    small, make_stepper, optimizer, rate
):
    def growth(scaling):
        narrow, wide = (
            change_of_logits(
                make_stepper,
                small(
                    model={"num_layers": 2, "d_model": width, "tied_head": False},
                    optimizer={
                        "name": optimizer, "learning_rate": rate, "weight_decay": 0.0,
                        "width_scaling": scaling, "base_width": 32, "gradient_clip_norm": None,
                    },
                ),
            )
            for width in (32, 512)
        )  # fmt: skip
        return wide / narrow

    assert 0.45 < growth("mup") < 1.6 < growth("none") / 2
