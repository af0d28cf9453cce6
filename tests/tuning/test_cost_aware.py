from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from planner.costs import resolve_cluster
from planner.planning import Candidate, candidate
from planner.search_space import Distribution, Point, SearchSpace
from planner.study import SchedulerConfig, Study
from planner.trial import TrialState
from planner.tuning.core import Sweep
from planner.tuning.cost_aware import CostAwareSearcher
from planner.tuning.ledger import Line
from planner.tuning.octaves import Octaves
from planner.tuning.records import Decision
from planner.tuning.searchers import Outcome
from planner.tuning.simulated import simulate
from planner.tuning.sources import LawSource
from planner.tuning.surrogate import GaussianProcess, Hyperparameters, expected_improvement

CONDITIONAL = SearchSpace(
    name="mixed",
    parameters={
        "optimizer.learning_rate": Distribution(loguniform=(1e-4, 1e-1)),
        "batch.sequences_per_step": Distribution(lograndint=(2, 64)),
        "schedule.name": Distribution(choice=("constant", "cosine", "wsd")),
        "schedule.decay_fraction": Distribution(uniform=(0.1, 0.5), when="schedule.name == 'wsd'"),
        "model": Distribution(
            choice=(
                {"num_layers": 1, "d_model": 16, "num_heads": 2},
                {"num_layers": 2, "d_model": 32, "num_heads": 2},
                {"num_layers": 4, "d_model": 64, "num_heads": 4},
            )
        ),
    },
    constraints=("not (model.num_layers == 4 and batch.sequences_per_step > 32)",),
)


@pytest.fixture
def mixed_study(small_study: Study) -> Study:
    search = small_study.search.replace(
        algorithm="cost_aware", num_trials=30,
        scheduler=SchedulerConfig(name="octaves", grace_fraction=0.1),
    )  # fmt: skip
    return small_study.replace(search_space=CONDITIONAL, search=search)


def loss_of(point: Point) -> float:
    """Return a loss with its best at a learning rate of 1e-2 and 8 sequences."""
    rate, batch = point["optimizer.learning_rate"], point["batch.sequences_per_step"]
    assert isinstance(rate, float)
    assert isinstance(batch, int)
    return 2.0 + 0.3 * math.log10(rate / 1e-2) ** 2 + 0.05 * math.log2(batch / 8) ** 2


def completed(loss: float, ratio: float | None = None) -> Outcome:
    return Outcome(state=TrialState.COMPLETED, loss=loss, fidelity=1.0, cost_ratio=ratio)


def run(searcher: CostAwareSearcher, num_trials: int) -> list[Point]:
    points = []
    for number in range(num_trials):
        point = searcher.propose(f"t{number}")
        assert point is not None
        points.append(point)
        searcher.report(f"t{number}", 0.3, loss_of(point) + 0.5)
        searcher.report(f"t{number}", 1.0, loss_of(point))
        searcher.end(f"t{number}", completed(loss_of(point)))
    return points


def test_every_proposal_is_in_the_space_meets_its_constraints_and_fits_the_cluster(
    mixed_study: Study,
) -> None:
    cluster = resolve_cluster(mixed_study.cluster)
    for point in run(CostAwareSearcher(mixed_study), 25):
        space = mixed_study.search_space
        assert all(space.parameters[name].contains(value) for name, value in point.items())
        assert ("schedule.decay_fraction" in point) == (point["schedule.name"] == "wsd")
        assert space.broken_constraint(point, mixed_study.base) is None
        assert candidate(mixed_study, cluster, "t", point).is_feasible


def test_the_same_seed_proposes_the_same_and_another_seed_does_not(mixed_study: Study) -> None:
    first = run(CostAwareSearcher(mixed_study), 14)
    assert run(CostAwareSearcher(mixed_study), 14) == first
    other = mixed_study.replace(search=mixed_study.search.replace(seed=1))
    assert run(CostAwareSearcher(other), 14) != first


def test_the_model_finds_a_better_point_than_as_many_random_ones(mixed_study: Study) -> None:
    rng = np.random.default_rng(0)
    names = list(CONDITIONAL.parameters)
    random = [
        min(
            loss_of(CONDITIONAL.point(dict(zip(names, rng.random(5), strict=True)), {}))
            for _ in range(30)
        )
        for _ in range(20)
    ]
    found = min(map(loss_of, run(CostAwareSearcher(mixed_study, use_law=False), 30)))
    assert found < np.median(random)
    assert found < 2.02


def test_the_first_proposal_is_the_published_laws_optimum(mixed_study: Study) -> None:
    searcher = CostAwareSearcher(mixed_study)
    point = searcher.propose("t000")
    assert point is not None
    assert searcher._law is not None
    best = searcher._law.optimum(point)
    assert best is not None
    rate = point["optimizer.learning_rate"]
    assert isinstance(rate, float)
    nearest = min(max(best.learning_rate, 1e-4), 1e-1)
    assert abs(math.log2(rate / nearest)) < 1.0


def test_a_listed_space_is_never_proposed_twice_and_ends(small_study: Study) -> None:
    space = SearchSpace(
        name="listed",
        parameters={
            "optimizer.learning_rate": Distribution(choice=(1e-3, 3e-3, 1e-2)),
            "batch.sequences_per_step": Distribution(choice=(4, 8)),
        },
    )
    base = {**small_study.base, "model": {"num_layers": 1, "d_model": 16, "sequence_length": 32}}
    searcher = CostAwareSearcher(small_study.replace(search_space=space, base=base))
    points = run(searcher, 6)
    assert len({json.dumps(p, sort_keys=True) for p in points}) == 6
    assert searcher.propose("t6") is None


def test_divergence_repels_and_losses_that_are_not_finite_teach_nothing_else(
    mixed_study: Study,
) -> None:
    searcher = CostAwareSearcher(mixed_study, use_law=False)
    late = []
    for number in range(40):
        point = searcher.propose(f"t{number}")
        assert point is not None
        rate = point["optimizer.learning_rate"]
        assert isinstance(rate, float)
        if rate > 1e-2:
            searcher.report(f"t{number}", 0.3, math.nan)
            outcome = Outcome(state=TrialState.DIVERGED, loss=None, fidelity=0.3)
            searcher.end(f"t{number}", outcome)
        else:
            searcher.end(f"t{number}", completed(loss_of(point)))
        late += [rate > 1e-2] if number >= 20 else []
    assert sum(late) <= 10


def test_out_of_memory_is_learnt_as_a_constraint(small_study: Study) -> None:
    space = SearchSpace(
        name="memory",
        parameters={
            name: Distribution(choice=(1, 2, 4, 8, 16, 32, 64))
            for name in ("batch.micro_batch_sequences", "model.num_layers", "model.d_model")
        },
    )

    def price(trial: str, point: Point) -> Candidate:
        return Candidate(trial=trial, point=point)

    searcher = CostAwareSearcher(small_study.replace(search_space=space), price=price)
    failed = []
    for number in range(50):
        point = searcher.propose(f"t{number}")
        assert point is not None
        size = math.log2(math.prod(v for v in point.values() if isinstance(v, int)))
        failed.append(size > 8)
        if failed[-1]:
            outcome = Outcome(state=TrialState.OUT_OF_MEMORY, loss=None, fidelity=0.0)
            searcher.end(f"t{number}", outcome)
        else:
            searcher.end(f"t{number}", completed(5.0 - 0.1 * size))
    assert sum(failed[20:]) / 30 <= 0.15


def test_points_that_the_plan_rejects_are_not_proposed(mixed_study: Study) -> None:
    def price(trial: str, point: Point) -> Candidate:
        reason = "too wide" if point["schedule.name"] == "cosine" else None
        return Candidate(trial=trial, point=point, reason=reason)

    searcher = CostAwareSearcher(mixed_study, price=price)
    assert all(p["schedule.name"] != "cosine" for p in run(searcher, 15))


def test_of_equally_good_points_the_cheaper_one_comes_first(mixed_study: Study) -> None:
    cluster = resolve_cluster(mixed_study.cluster)

    def price(trial: str, point: Point) -> Candidate:
        priced = candidate(mixed_study, cluster, trial, point)
        if priced.cost is None or priced.config is None:
            return priced
        hours = 10.0 ** (priced.config.model.num_layers - 1)
        return replace(priced, cost=replace(priced.cost, device_hours=hours))

    points = run(CostAwareSearcher(mixed_study, price=price, use_law=False), 30)[10:]
    layers = [p["model"]["num_layers"] for p in points if isinstance(p["model"], dict)]
    assert layers.count(1) > 2 * layers.count(4)


def test_measured_costs_correct_the_estimates_where_they_were_measured(mixed_study: Study) -> None:
    searcher = CostAwareSearcher(mixed_study)
    for number in range(12):
        point = searcher.propose(f"t{number}")
        assert point is not None
        slow = 4.0 if point["schedule.name"] == "wsd" else 1.0
        searcher.end(f"t{number}", completed(loss_of(point), slow))
    vectors = {
        name: searcher._encoder.encode([{**point, "schedule.name": name}])[0]
        for name in ("wsd", "cosine")
    }
    factors = {name: searcher._correction.factor(vector) for name, vector in vectors.items()}
    assert factors["wsd"] > 1.3 * factors["cosine"]


def test_earlier_trials_lead_the_first_proposals(mixed_study: Study) -> None:
    scout = run(CostAwareSearcher(mixed_study, use_law=False), 30)
    earlier = [(point, loss_of(point)) for point in scout]
    start = mixed_study.replace(search=mixed_study.search.replace(seed=5))
    warm = run(CostAwareSearcher(start, earlier=earlier, use_law=False), 14)
    cold = run(CostAwareSearcher(start, use_law=False), 14)
    assert min(map(loss_of, warm[10:12])) < min(map(loss_of, cold[:12]))


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(seed=st.integers(0, 1000), workers=st.integers(1, 4), share=st.floats(0.0, 1.0))
def test_replaying_a_ledger_leads_to_the_same_next_decision(
    seed: int, workers: int, share: float
) -> None:
    study = STUDY.replace(search=STUDY.search.replace(seed=seed))
    cluster = resolve_cluster(study.cluster)
    source = LawSource(study, cluster, lambda n, d: 2.0 + 9.0 * n**-0.3 + 9.0 * d**-0.3)
    lines: list[Line] = []
    simulate(
        study, source, num_devices=workers, write=lambda line, durable: lines.append(dict(line))
    )
    proposals = [i for i, line in enumerate(lines) if line["kind"] == "proposed"]
    cut = proposals[round(share * (len(proposals) - 1))]
    again = Sweep(study, cluster, num_devices=workers, write=lambda line, durable: None)
    again.replay(json.loads(json.dumps(lines[:cut])))
    assert again._searcher.propose(lines[cut]["trial"]) == lines[cut]["point"]


def study() -> Study:
    from planner.config import Document, validate

    return validate(
        Document(
            source="test",
            data={
                "name": "replayed",
                "search_space": CONDITIONAL.model_dump(mode="json"),
                "base": {
                    "model": {"sequence_length": 32},
                    "train": {"tokens": 4096, "num_validations": 4, "validation_tokens": 1024},
                },
                "search": {
                    "algorithm": "cost_aware",
                    "num_trials": 12,
                    "scheduler": {"name": "octaves", "grace_fraction": 0.1},
                },
                "budget": {"device_hours": 1},
                "cluster": {"device": "cpu", "devices_per_node": 2},
            },
        ),
        Study,
    )


STUDY = study()


def test_a_process_recalls_what_it_saw_and_is_unsure_far_from_it() -> None:
    inputs = np.array([[0.1], [0.5], [0.9]])
    targets = np.array([1.0, -1.0, 0.5])
    prior = Hyperparameters.prior(1)
    process = GaussianProcess(inputs, targets, np.full(3, 1e-6), prior)
    mean, deviation = process.predict(inputs)
    assert mean == pytest.approx(targets, abs=0.1)
    assert (deviation < 0.2).all()
    assert process.predict(np.array([[3.0]]))[1][0] > 0.9
    assert process.mean(inputs) == pytest.approx(mean)


def test_points_under_observation_lower_the_uncertainty_around_them_alone() -> None:
    process = GaussianProcess(
        np.array([[0.0]]), np.array([0.0]), np.zeros(1), Hyperparameters.prior(1)
    )
    points = np.array([[0.6], [4.0]])
    plain = process.predict(points)
    pending = process.predict(points, np.array([[0.62]]))
    assert pending[0] == pytest.approx(plain[0])
    assert pending[1][0] < 0.5 * plain[1][0]
    assert pending[1][1] == pytest.approx(plain[1][1], rel=1e-2)


def test_a_fit_tells_the_column_that_matters_from_the_one_that_does_not() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.random((60, 2))
    targets = np.sin(6.0 * inputs[:, 0])
    found = GaussianProcess.fit(inputs, targets, np.zeros(60), Hyperparameters.prior(2))
    assert found.log_lengths[1] > found.log_lengths[0] + 1.0


def test_expected_improvement_agrees_with_sampling() -> None:
    rng = np.random.default_rng(0)
    drawn = np.maximum(0.3 - rng.normal(0.5, 0.7, 400_000), 0.0).mean()
    exact = expected_improvement(np.array([0.5]), np.array([0.7]), 0.3)[0]
    assert exact == pytest.approx(drawn, rel=0.02)


def test_octaves_keeps_one_in_three_at_every_doubling_on_the_best_loss_so_far() -> None:
    octaves = Octaves(SchedulerConfig(name="octaves", reduction_factor=3.0, grace_fraction=0.25))
    assert octaves.rungs(32.0) == (8.0, 16.0)
    verdicts = [
        octaves.report(f"t{i}", {}, 32.0, 8.0, loss)
        for i, loss in enumerate([5.0, 4.0, 6.0, 3.0, 4.5, 2.0, math.inf])
    ]
    go, stop = Decision.CONTINUE, Decision.STOP
    assert verdicts == [go, go, stop, go, stop, go, stop]
    assert octaves.report("t5", {}, 32.0, 16.0, 9.0) is go
    assert octaves.report("t3", {}, 32.0, 16.0, 2.5) is stop


def test_of_trials_with_one_result_octaves_lets_its_share_go_on() -> None:
    octaves = Octaves(SchedulerConfig(name="octaves", grace_fraction=0.25, reduction_factor=3))
    verdicts = [octaves.report(f"t{i}", {}, 32.0, 8.0, 1.0) for i in range(30)]
    assert verdicts[:6] == [Decision.CONTINUE] + [Decision.STOP] * 4 + [Decision.CONTINUE]
    assert verdicts.count(Decision.CONTINUE) == 10


def test_octaves_compares_within_groups() -> None:
    config = SchedulerConfig(name="octaves", grace_fraction=0.25, within=("model",))
    octaves = Octaves(config)
    assert octaves.report("a", {"model": 1}, 32.0, 8.0, 1.0) is Decision.CONTINUE
    assert octaves.report("b", {"model": 2}, 32.0, 8.0, 2.0) is Decision.CONTINUE
    assert octaves.report("c", {"model": 1}, 32.0, 8.0, 2.0) is Decision.STOP
