"""How good a recommendation is where the truth is known, and against a real training.

    python benchmarks/recommendation.py
    python benchmarks/recommendation.py --run RUN [--runs DIR] [--budget AMOUNT]

The first simulates sweeps whose losses follow a known law with noise, recommends for budgets beyond
them, and prints per budget: regret (true loss of the recommended configuration over the least true
loss of any size at the same compute), the recommended size over the true best one, the error of
the predicted loss, and how often the 90 % interval holds the true loss. The second trains what is
recommended for a run of your own and prints predicted beside measured.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path

import numpy as np

from planner.budget import Budget, Spend
from planner.costs import estimate, parse_cluster, resolve_cluster
from planner.curves import fit
from planner.errors import ConfigError
from planner.recommendation import Recommendation, recommend, run_law
from planner.results import CurvePoint, Results, read_results
from planner.run_folder import RunFolder
from planner.search_space import grid_points
from planner.study import Study, load_study, trial_config
from planner.trial import TrialResult, TrialState

LAWS = {
    "Hoffmann et al. 2022": (1.69, 406.4, 410.7, 0.34, 0.28),
    "Besiroglu et al. 2024": (1.8172, 482.01, 2085.43, 0.3478, 0.3658),
    "Muennighoff et al. 2023": (1.86914, 520.82, 1487.7, 0.3527, 0.3527),
}
"""(E, A, B, alpha, beta) as published."""
FACTORS = (3.0, 10.0, 30.0, 100.0)
NOISE = 0.004
"""Standard deviation of log loss of one training."""
NUM_REPORTS = 20
REPORT_NOISE = 0.002
"""Of one report, beside what all reports of its training share."""
DECAY_GAIN = 0.03
"""By which the decay at the end lowers log loss."""


def true_loss(law: tuple[float, ...], num_params: float, num_tokens: float) -> float:
    """Return E + A/N^alpha + B/D^beta."""
    e, a, b, alpha, beta = law
    return e + a / num_params**alpha + b / num_tokens**beta


def least_loss(law: tuple[float, ...], compute: float) -> tuple[float, float]:
    """Return the best size and its true loss at C = 6 N D."""
    sizes = np.geomspace(1e6, 1e13, 20_001)
    losses = np.array([true_loss(law, n, compute / 6 / n) for n in sizes])
    return float(sizes[np.argmin(losses)]), float(losses.min())


def simulated(study: Study, law: tuple[float, ...], seed: int) -> Results:
    """Return the results of a study whose trials follow a law, with reports at a constant rate."""
    generator, other = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    cluster = resolve_cluster(study.cluster)
    trials, reports = [], []
    for number, point in enumerate(grid_points(study.search_space, study.base)):
        try:
            config = trial_config(study, point)
        except ConfigError:
            continue  # the space's constraints leave this corner out
        cost = estimate(config, cluster)
        loss = true_loss(law, cost.num_params, cost.train_tokens)
        luck = NOISE * generator.normal()
        for part in np.arange(1, NUM_REPORTS) / NUM_REPORTS:
            midway = true_loss(law, cost.num_params, part * cost.train_tokens)
            noise = luck + DECAY_GAIN + REPORT_NOISE * other.normal()
            reports.append(
                CurvePoint(
                    trial=f"t{number:03d}", attempt=1, train_tokens=int(part * cost.train_tokens),
                    train_flops=part * cost.train_flops, val_loss=midway * math.exp(noise),
                )
            )  # fmt: skip
        trials.append(
            TrialResult(
                trial=f"t{number:03d}", config=config.model_dump(mode="json"),
                state=TrialState.COMPLETED, num_workers=config.layout.num_workers,
                num_params=cost.num_params, num_params_non_embedding=cost.num_params_non_embedding,
                train_tokens=cost.train_tokens, train_flops=cost.train_flops,
                num_steps=cost.num_steps, val_loss=loss * math.exp(luck),
                tokens_per_second=0.8 * config.tokens_per_step / cost.step_seconds,
            )
        )  # fmt: skip
    return Results(
        study=study, trials=tuple(trials), curves=tuple(reports), spend=Spend(),
        folder=RunFolder(Path()),
    )  # fmt: skip


def simulation(num_seeds: int, *, with_reports: bool) -> None:
    """Print the table of regrets, from final losses alone or from reports of the trials too."""
    study = load_study("isoflop-h100")
    cluster = parse_cluster("64xh100-sxm")
    methods: Counter[str] = Counter()
    rows: dict[float, list[tuple[float, float, float, bool, float]]] = {f: [] for f in FACTORS}
    for law in LAWS.values():
        for seed in range(num_seeds):
            results = simulated(study, law, seed)
            fitted = fit(results if with_reports else results.to_frame(), seed=seed)
            methods.update(list(fitted.frontiers))
            largest = max(trial.train_flops or 0.0 for trial in results.trials)
            for factor in FACTORS:
                answer = recommend(
                    fitted, Budget(flops=factor * largest), study, results=results, cluster=cluster
                )
                rows[factor].append(scored(answer, law))
    print(f"{len(LAWS)} laws x {num_seeds} seeds, {len(results.trials)} trials each, noise {NOISE}")
    print("surface and", ", ".join(f"{name} in {number}" for name, number in methods.items()))
    print("budget  regret median  regret max  size / best  loss error  interval holds  half width")
    for factor, found in rows.items():
        regret, size, error, inside, width = (
            np.array(column) for column in zip(*found, strict=True)
        )
        print(
            f"{factor:5.0f}x  {np.median(regret):13.2%}  {regret.max():10.2%}  "
            f"{np.exp(np.median(np.log(size))):11.2f}  {np.median(np.abs(error)):10.2%}  "
            f"{inside.mean():14.0%}  {np.median(width):10.1%}"
        )


def scored(
    answer: Recommendation, law: tuple[float, ...]
) -> tuple[float, float, float, bool, float]:
    """Return regret, size over the best, error of the loss, whether the interval holds, its half width."""
    row = answer.choice
    loss = true_loss(law, row.num_params, row.train_tokens)
    best_size, best = least_loss(law, 6.0 * row.num_params * row.train_tokens)
    return (
        loss / best - 1,
        row.num_params / best_size,
        row.predicted_loss / loss - 1,
        row.loss_lower <= loss <= row.loss_upper,
        (row.loss_upper - row.loss_lower) / 2 / row.predicted_loss,
    )


def reality(run: str, runs: Path | None, amount: str | None) -> None:
    """Train what is recommended for a run, and print predicted beside measured."""
    from planner.engine import train_local

    results = read_results(RunFolder.open(run, runs))
    study = results.study
    budget = Budget.parse(amount) if amount else study.target_budget
    answer = recommend(run_law(results.folder, results), budget, study, results=results)
    print(answer)
    measured = train_local(answer.config)
    low, high = answer.interval
    print(f"{'':14}  predicted  measured  interval")
    print(
        f"{'loss':14}  {answer.predicted_loss:9.3f}  {measured.val_loss:8.3f}  {low:.3f} to {high:.3f}"
    )
    print(f"{'seconds':14}  {answer.choice.seconds:9.0f}  {measured.elapsed_seconds:8.0f}")


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4, help="sweeps simulated per law")
    parser.add_argument("--run", help="a run to recommend for and to train")
    parser.add_argument("--runs", type=Path, help="folder of all runs")
    parser.add_argument("--budget", help="as '150 s' or '1e13 flops'")
    options = parser.parse_args()
    if options.run:
        reality(options.run, options.runs, options.budget)
    else:
        for with_reports in (False, True):
            simulation(options.seeds, with_reports=with_reports)


if __name__ == "__main__":
    main()
