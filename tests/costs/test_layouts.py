import numpy as np
import pytest

from planner.costs.candidates import LayoutProblem, enumerate_layouts
from planner.costs.layouts import search_layouts
from planner.costs.quotes import default_sequences_per_step, quote
from planner.costs.shapes import decoder_shape, named_shape
from planner.errors import ConfigError, InfeasibleError


def problem(cluster, name="llama-3-8b", sequences=None, **changes):
    shape = named_shape(name)
    return LayoutProblem(
        shape=shape, cluster=cluster,
        sequences_per_step=sequences or default_sequences_per_step(shape, cluster), **changes,
    )  # fmt: skip


def test_every_candidate_uses_every_device_and_the_whole_batch(cluster_of):
    found = problem(cluster_of("64xh100-sxm"), sequences=256)
    w, which = enumerate_layouts(found)
    assert np.all(np.broadcast_to(w.num_devices, which.shape) == 64)
    assert np.all(w.data * w.micro_batch * w.num_micro_batches == 256)
    assert len(which) > 1000


def test_rejections_name_their_rule_and_add_up(cluster_of):
    found = search_layouts(problem(cluster_of("64xh100-sxm"), "llama-3-70b"))
    rules = dict(found.rejected)
    assert any("memory" in rule for rule in rules)
    assert any("scale-up domain" in rule for rule in rules)
    assert found.num_feasible + sum(rules.values()) == found.num_candidates


def test_the_best_layouts_are_sorted_and_differ_in_their_degrees(cluster_of):
    best = search_layouts(problem(cluster_of("64xh100-sxm")), num_best=5).best
    seconds = [layout.step_seconds for layout in best]
    assert seconds == sorted(seconds)
    assert len({str(layout) for layout in best}) == 5


def test_tensor_parallelism_may_cross_trays_inside_one_scale_up_domain(cluster_of):
    w, _ = enumerate_layouts(problem(cluster_of("16xgb200"), sequences=64))
    assert np.max(w.tensor) == 16
    found = search_layouts(problem(cluster_of("16xgb200"), sequences=64))
    assert not any("scale-up domain" in rule for rule, _ in found.rejected)


def test_a_model_that_fits_nowhere_names_the_smallest_change(cluster_of):
    with pytest.raises(InfeasibleError, match="must fit the cluster") as caught:
        search_layouts(problem(cluster_of("8xa100-sxm-40gb"), "llama-3-70b", sequences=64))
    assert "The smallest change that fits" in caught.value.hint
    assert caught.value.exit_code == 5


def test_a_batch_that_no_layout_divides_is_infeasible_with_advice(cluster_of):
    tiny = LayoutProblem(
        shape=decoder_shape(1, 64), cluster=cluster_of("8xa100-sxm"), sequences_per_step=3
    )
    with pytest.raises(InfeasibleError, match="multiple of the data-parallel workers"):
        search_layouts(tiny)


def test_a_precision_that_the_device_lacks_is_refused(cluster_of):
    with pytest.raises(ConfigError, match="a100-sxm has no fp8"):
        search_layouts(problem(cluster_of("8xa100-sxm"), precisions=("fp8",)))


def test_a_70b_model_on_1024_devices_has_tens_of_thousands_of_candidates(cluster_of):
    wanted = problem(cluster_of("1024xh100-sxm"), "llama-3-70b", 2048, precisions=("bf16", "fp8"))
    assert search_layouts(wanted).num_candidates > 50_000


def test_a_quote_scales_with_tokens_and_states_price_energy_and_weakness(cluster_of):
    wanted = problem(cluster_of("64xh100-sxm"), "gpt-7b")
    one, two = quote(wanted, 70e9), quote(wanted, 140e9)
    best, twice = one.layouts[0], two.layouts[0]
    assert two.train_flops == pytest.approx(2 * one.train_flops)
    assert twice.train_seconds == pytest.approx(2 * best.train_seconds, rel=1e-4)
    assert best.usd == pytest.approx(2.95 * best.device_hours)
    assert best.kwh > 0
    assert best.gco2 == pytest.approx(480.0 * best.kwh)
    assert best.step_seconds_lower < best.step_seconds < best.step_seconds_upper
    assert best.lost_by == ""
    assert all(other.lost_by for other in one.layouts[1:])
    assert one.confidence == "medium"


@pytest.mark.parametrize(
    ("name", "text", "changes", "reason"),
    [
        ("mixtral-8x7b", "64xh100-sxm", {}, "experts"),
        ("llama-3-8b", "64xh100-sxm", {"precisions": ("fp8",)}, "fp8"),
        ("llama-3-8b", "64xtpu-v5p", {}, "TPU"),
    ],
    ids=["experts", "fp8", "TPU"],
)
def test_where_the_model_is_weak_the_quote_says_so(cluster_of, name, text, changes, reason):
    found = quote(problem(cluster_of(text), name, **changes), 1e9)
    assert found.confidence == "low"
    assert reason in found.confidence_reason


@pytest.mark.parametrize("tokens", [0.0, -1.0, float("nan"), float("inf")])
def test_tokens_must_be_positive(cluster_of, tokens):
    with pytest.raises(ConfigError, match="tokens must be positive"):
        quote(problem(cluster_of("8xh100-sxm")), tokens)
