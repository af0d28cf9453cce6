"""Number formats: real ones train alike, emulated ones round as the format does."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from planner.engine import train
from planner.engine.precision.emulation import rounded
from planner.engine.precision.float8 import float8_linear
from planner.engine.precision.loss_scale import LossScale
from planner.engine.recompute import make_recompute
from planner.errors import InfeasibleError
from planner.trial import TrialState
from planner.trial.support import check_supported


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_a_16_bit_format_learns_what_fp32_learns(small, compute):
    whole = train(small())
    half = train(small(precision={"compute": compute}))
    assert half.state is TrialState.COMPLETED
    assert half.val_loss == pytest.approx(whole.val_loss, abs=2e-2)


def test_a_step_that_overflows_in_fp16_is_left_out_and_the_scale_halved(small, make_stepper):
    stepper = make_stepper(small(precision={"compute": "fp16"}))
    stepper.loss_scale.value = 2.0**24 * 1e6
    before = [p.detach().clone() for _, p in stepper.named]
    stepper.step(0, 8, 0.5)
    assert stepper.loss_scale.value == 2.0**23 * 1e6
    for old, (_, new) in zip(before, stepper.named, strict=True):
        assert torch.equal(old, new)


def test_the_loss_scale_doubles_after_a_calm_while():
    scale = LossScale(value=4.0, growth_steps=3)
    for _ in range(3):
        scale.after(overflowed=False)
    assert scale.value == 8.0
    scale.after(overflowed=True)
    assert (scale.value, scale.calm_steps) == (4.0, 0)


@pytest.mark.parametrize(("form", "levels"), [("int8", 255), ("int4", 15)])
def test_an_integer_format_has_so_many_levels(form, levels):
    values = rounded(torch.linspace(-1, 1, 10_001).reshape(1, -1), form)
    assert len(values.unique()) == levels


@pytest.mark.parametrize(("form", "relative"), [("fp8-e4m3", 2**-4), ("fp8-e5m2", 2**-3)])
def test_an_fp8_format_rounds_to_its_mantissa(form, relative):
    x = torch.rand(4, 1000) + 0.5
    error = ((rounded(x, form) - x).abs() / x).max()
    assert relative / 4 < error <= relative


def test_an_emulated_format_changes_the_loss_in_the_order_of_its_bits(small):
    def loss(form):
        return train(small(precision={"emulate": form, "emulate_activations": True})).val_loss

    exact, eight, four = loss("none"), loss("int8"), loss("int4")
    assert 0 < abs(eight - exact) < abs(four - exact) < 0.1


def test_an_emulated_format_is_marked_and_claims_no_utilisation(small):
    result = train(small(precision={"emulate": "fp8-e4m3"}))
    assert result.metrics["emulated_precision"] == 1.0
    assert result.mfu is None


def test_the_fp8_product_and_its_gradients_are_near_the_exact_ones():
    torch.manual_seed(0)
    x, w = torch.randn(32, 64, requires_grad=True), torch.randn(48, 64, requires_grad=True)
    exact = torch.nn.functional.linear(x, w)
    gradient = torch.randn_like(exact)
    expected = torch.autograd.grad(exact, (x, w), gradient)
    found = float8_linear(x.bfloat16(), w.bfloat16(), None)
    gradients = torch.autograd.grad(found, (x, w), gradient.bfloat16())
    for one, two in ((found, exact), *zip(gradients, expected, strict=True)):
        error = (one.float() - two).norm() / two.norm()
        assert 1e-3 < error < 0.1


@pytest.mark.parametrize(
    ("sections", "side"),
    [
        ({"model": {"d_model": 72, "num_heads": 2}}, "d_model is 72"),
        ({"model": {"d_ff": 100}}, "d_ff / tensor_parallel is 100"),
        ({"model": {"sequence_length": 20}}, "tokens of a micro-batch on a worker is 20"),
        ({"model": {"num_kv_heads": 1}}, r"head_dim / tensor_parallel is 8"),
    ],
)
def test_sides_that_no_device_multiplies_in_fp8_are_refused_before_anything_starts(
    small, sections, side
):
    check_supported(small(precision={"compute": "fp8"}))
    with pytest.raises(InfeasibleError, match=side):
        check_supported(small(precision={"compute": "fp8"}, **sections))


class Products(TorchDispatchMode):
    """Counts fp8 products."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func is torch.ops.aten._scaled_mm.default
        return func(*args, **(kwargs or {}))


def test_selective_recomputation_keeps_the_results_of_fp8_products():
    x = torch.randn(32, 64).bfloat16().requires_grad_()
    w = torch.randn(48, 64).bfloat16().requires_grad_()
    run = make_recompute("selective")
    with Products() as seen:
        run(lambda x: float8_linear(x, w, None).relu(), x).sum().backward()
    assert seen.number == 3  # forward, and the two gradients


@pytest.mark.parametrize("compute", ["tf32", "fp8"])
def test_a_format_that_the_cpu_lacks_is_refused_with_what_to_use(small, compute):
    with pytest.raises(InfeasibleError, match=f"a CPU has no {compute}") as refusal:
        train(small(precision={"compute": compute}))
    assert "bf16" in refusal.value.hint
