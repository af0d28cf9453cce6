"""Real Ray on this machine: one cluster for all tests of this file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from planner.errors import ClusterUnreachableError, InfeasibleError, TrialError
from planner.results import Results
from planner.study import Study
from planner.trial import TrialState
from planner.tuning import resume, sweep
from planner.tuning.ledger import Line, read_lines
from planner.tuning.outcome import Progress
from planner.tuning.simulated import SimulatedExecutor

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

MakeStudy = Callable[..., Study]

TIMES = [
    "data_wait_seconds", "communication_seconds", "optimizer_seconds", "compile_seconds",
    "utilisation_fraction", "elapsed_seconds", "train_seconds", "tokens_per_second", "device_hours", "mfu",
    "peak_memory_bytes", "num_attempts", "reason", "metrics",
]  # fmt: skip
LONG = {"tokens": 49_152, "num_validations": 16, "validation_tokens": 256}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start Ray with two CPUs and a home folder of its own, and return its address."""
    patch = pytest.MonkeyPatch()
    for name, value in {
        "HOME": str(tmp_path_factory.mktemp("home")),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),  # where the workers find `trainers`
    }.items():
        patch.setenv(name, value)
    import ray

    import planner.tuning.ray_executor  # noqa: F401 -- it sets what Ray reads when it is loaded

    context = ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False
    )  # fmt: skip
    yield context.address_info["gcs_address"]
    ray.shutdown()
    patch.undo()


def ray_executor(trainer: str) -> Any:
    from planner.tuning.ray_executor import RayExecutor  # only now: it loads ray

    return RayExecutor(trainer=f"trainers:{trainer}")


def children_of_ray() -> list[psutil.Process]:
    """Return the processes of this test's cluster that run a trial."""
    raylet = next(p for p in psutil.Process().children() if "raylet" in p.name())
    return [p for p in raylet.children() if "TrialActor" in p.name() or "_Worker" in p.name()]


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def table(results: Results) -> Any:
    return json.loads(results.to_frame().drop(columns=TIMES).to_json(orient="records"))


def differences(one: Results, other: Results) -> list[tuple[Any, ...]]:
    """Return every cell in which two tables differ, times left aside."""
    rows = zip(table(one), table(other), strict=True)
    return [(a["trial"], k, a[k], b[k]) for a, b in rows for k in a if a[k] != b[k]]


def lines_of(root: Path, name: str) -> list[Line]:
    return read_lines(root / name / "ledger.jsonl")


def count(root: Path, name: str, kind: str) -> int:
    return sum(line["kind"] == kind for line in lines_of(root, name))


def num_bytes(results: Results) -> int:
    return sum(path.stat().st_size for path in results.folder.checkpoints.rglob("tensors.pt"))


def start_driver(study: Study, root: Path, name: str, address: str) -> subprocess.Popen[str]:
    path = root / f"{name}.json"
    path.write_text(study.model_dump_json())
    command = [sys.executable, "-m", "planner", "sweep", str(path), "--name", name,
               "--runs", str(root), "--address", address]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_sweep_runs_to_its_end_with_trials_of_two_workers_and_leaves_nothing(
    cluster: str, make_study: MakeStudy, tmp_path: Path
) -> None:
    space = {"name": "s", "parameters": {
        "layout.data_parallel": {"choice": [1, 2]},
        "optimizer.learning_rate": {"choice": [1e-3, 4e-3]}}}  # fmt: skip
    search = {"algorithm": "grid", "scheduler": {"name": "asha", "reduction_factor": 2}}
    study = make_study(search_space=space, search=search)
    results = sweep(study, root=tmp_path)
    assert {trial.state for trial in results.trials} <= {TrialState.COMPLETED, TrialState.STOPPED}
    assert results.count(TrialState.COMPLETED) >= 1
    assert sorted(trial.num_workers for trial in results.trials) == [1, 1, 2, 2]
    assert results.spend.device_hours == pytest.approx(sum(t.device_hours for t in results.trials))
    import ray
    from ray.util import placement_group_table

    wait_until(lambda: not children_of_ray())
    states = {group["state"] for group in placement_group_table().values()}
    assert states <= {"REMOVED"}
    wait_until(lambda: ray.available_resources().get("CPU") == 2.0)


def test_after_sigkill_of_the_driver_a_run_ends_with_the_table_of_an_undisturbed_one(
    cluster: str, make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(base=make_study().base | {"train": LONG})
    undisturbed = sweep(study, executor="inline", name="whole", root=tmp_path)
    driver = start_driver(study, tmp_path, "torn", cluster)
    ledger = tmp_path / "torn" / "ledger.jsonl"
    wait_until(lambda: ledger.exists() and count(tmp_path, "torn", "ended") >= 1)
    reports = count(tmp_path, "torn", "report")
    wait_until(lambda: count(tmp_path, "torn", "report") > reports)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not children_of_ray())
    ended_before = count(tmp_path, "torn", "ended")
    resumed = resume("torn", root=tmp_path)
    assert 1 <= ended_before < 4
    assert not differences(resumed, undisturbed)
    ended = [line["trial"] for line in lines_of(tmp_path, "torn") if line["kind"] == "ended"]
    assert sorted(ended) == ["t000", "t001", "t002", "t003"]
    assert resumed.spend.device_hours == pytest.approx(sum(t.device_hours for t in resumed.trials))
    assert resumed.spend.flops >= undisturbed.spend.flops * (1 - 1e-9)


def test_a_killed_worker_is_an_attempt_that_is_charged_and_tried_again(
    cluster: str, make_study: MakeStudy, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_once(progress: Progress) -> None:
        if progress.event == "report" and not killed:
            for process in children_of_ray():
                killed.append(process.pid)
                process.kill()

    space = {"name": "s", "parameters": {"optimizer.learning_rate": {"choice": [2e-3, 4e-3]}}}
    study = make_study(search_space=space)
    results = sweep(study, root=tmp_path, on_event=kill_once)
    assert killed
    assert [trial.state for trial in results.trials] == [TrialState.COMPLETED] * 2
    assert results.trials[0].num_attempts == 2
    assert count(tmp_path, "tiny", "lost") == 1
    lost = next(line for line in lines_of(tmp_path, "tiny") if line["kind"] == "lost")
    assert "lost" in lost["reason"]


def test_a_trial_that_hangs_is_ended_charged_and_tried_again(
    cluster: str, make_study: MakeStudy, tmp_path: Path
) -> None:
    space = {"name": "s", "parameters": {"optimizer.learning_rate": {"choice": [2e-3]}}}
    search = {"algorithm": "grid", "max_silence_seconds": 3.0}
    executor = ray_executor("hang_once")
    results = sweep(make_study(search_space=space, search=search), executor=executor, root=tmp_path)
    assert [trial.state for trial in results.trials] == [TrialState.COMPLETED]
    assert results.trials[0].num_attempts == 2
    lost = next(line for line in lines_of(tmp_path, "tiny") if line["kind"] == "lost")
    assert lost["reason"] == "no report for 3 s: the trial hangs"


def test_when_all_trials_fail_alike_the_sweep_ends_says_why_once_and_resumes_whole(
    cluster: str, make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study()
    whole = sweep(study, executor=ray_executor("follow"), name="whole", root=tmp_path)
    broken = ray_executor("follow_once_repaired")
    with pytest.raises(TrialError) as raised:
        sweep(study, executor=broken, root=tmp_path)
    assert str(raised.value).count("the licence has run out") == 1
    assert "3 of 3 failed" in str(raised.value)  # the fourth was not tried
    assert count(tmp_path, "tiny", "started") == 3
    (tmp_path / "tiny" / "repaired").touch()
    results = resume("tiny", executor=ray_executor("follow_once_repaired"), root=tmp_path)
    assert differences(results, whole) == []
    assert [trial.num_attempts for trial in results.trials] == [2, 2, 2, 1]
    assert results.spend.device_hours == pytest.approx(sum(t.device_hours for t in results.trials))


def test_a_quota_on_checkpoints_holds_and_the_table_is_that_of_a_run_without(
    cluster: str, make_study: MakeStudy, tmp_path: Path
) -> None:
    free, executor = make_study(), ray_executor("follow_with_bytes")
    whole = sweep(free, executor=executor, name="whole", root=tmp_path)
    assert num_bytes(whole) > 2500
    study = free.replace(search=free.search.model_dump() | {"checkpoints": {"max_bytes": 2500}})
    results = sweep(study, executor=executor, root=tmp_path)
    again = resume("tiny", executor=executor, root=tmp_path)
    assert 0 < num_bytes(again) <= 2500
    best = again.best()
    assert best is not None
    assert list((again.folder.checkpoints / best.trial).rglob("tensors.pt"))
    assert differences(results, whole) == []
    assert differences(again, whole) == []


@pytest.mark.parametrize(
    ("algorithm", "scheduler"), [("random", "asha"), ("grid", "pbt"), ("bayesian", "bohb")]
)
def test_ray_and_the_simulator_decide_alike(
    cluster: str, make_study: MakeStudy, tmp_path: Path, trainers: Any,
    algorithm: str, scheduler: str,
) -> None:  # fmt: skip
    study = trainers.small_study_of(make_study, algorithm, scheduler)
    sweep(study, executor=ray_executor("follow"), name="real", root=tmp_path)
    executor = SimulatedExecutor(trainers.Followed())
    sweep(study, executor=executor, name="made-up", root=tmp_path)
    real, made_up = (lines_of(tmp_path, name) for name in ("real", "made-up"))
    assert trainers.decisions(real) == trainers.decisions(made_up)


def test_gangs_stay_warm_and_leave_no_environment_to_the_next_trial(
    cluster: str, make_study: MakeStudy, tmp_path: Path
) -> None:
    base = make_study().base | {"layout": {"data_parallel": 2}}
    results = sweep(make_study(base=base), executor=ray_executor("leave_traces"), root=tmp_path)
    assert results.count(TrialState.COMPLETED) == 4
    for rank in range(2):
        seen = [
            json.loads((results.folder.checkpoints / trial.trial / f"rank-{rank}.json").read_text())
            for trial in results.trials
        ]
        assert len({process for process, _ in seen}) == 1
        assert not any(is_dirty for _, is_dirty in seen)


def test_short_trials_share_the_workers_that_were_started_first(
    cluster: str, make_study: MakeStudy, tmp_path: Path
) -> None:
    from ray.util import placement_group_table

    rates = {"optimizer.learning_rate": {"choice": [1e-3 * (i + 1) for i in range(20)]}}
    study = make_study(
        search_space={"name": "s", "parameters": rates}, search={"algorithm": "grid"}
    )
    before = len(placement_group_table())
    results = sweep(study, executor=ray_executor("follow"), root=tmp_path)
    assert results.count(TrialState.COMPLETED) == 20
    assert len(placement_group_table()) - before <= 2  # one for each of the two CPUs


def processes_of(cluster: str) -> set[psutil.Process]:
    """Return the processes that name an address or a folder of Ray's: nodes and what serves them."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(cluster in argument for argument in process.cmdline()):
                found.add(process)
    return found


def end(processes: set[psutil.Process]) -> None:
    """Kill processes and their children."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for child in [*process.children(recursive=True), process]:
                child.kill()


def test_a_node_that_dies_costs_its_trial_an_attempt_and_the_others_nothing(
    cluster: str, make_study: MakeStudy, tmp_path: Path, trainers: Any
) -> None:
    head = processes_of(cluster)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--address", cluster,
               "--num-cpus", "1", "--disable-usage-stats"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)  # nobody else is to join it
    started = processes_of(cluster) - head
    (node,) = (each for each in started if each.is_running() and each.name() == "raylet")

    def kill_node(progress: Progress) -> None:
        with suppress(psutil.NoSuchProcess):
            trains = any("TrialActor" in process.name() for process in node.children())
            if progress.event == "report" and trains:
                node.kill()

    try:
        study = make_study(
            search={"algorithm": "grid"}, cluster={"device": "cpu", "devices_per_node": 3}
        )
        executor = ray_executor("follow_slowly")
        results = sweep(study, executor=executor, root=tmp_path, on_event=kill_node)
    finally:
        end(started)
    undisturbed = sweep(
        study, executor=SimulatedExecutor(trainers.Followed()), name="whole", root=tmp_path
    )
    assert [t.state for t in results.trials] == [TrialState.COMPLETED] * 4
    assert [t.val_loss for t in results.trials] == [t.val_loss for t in undisturbed.trials]
    assert sorted(trial.num_attempts for trial in results.trials) == [1, 1, 1, 2]
    assert results.spend.device_hours == pytest.approx(sum(t.device_hours for t in results.trials))


@contextmanager
def another_head() -> Iterator[tuple[str, set[psutil.Process]]]:
    """Start a second cluster of one CPU; yield its address and its processes."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need short paths
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--port", str(port),
               "--num-cpus", "1", "--include-dashboard", "false", "--disable-usage-stats",
               "--temp-dir", folder]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    processes = processes_of(folder)
    try:
        yield f"127.0.0.1:{port}", processes
    finally:
        end(processes)
        shutil.rmtree(folder, ignore_errors=True)


def test_when_the_head_is_gone_the_driver_says_so_and_the_run_goes_on_under_another(
    cluster: str, make_study: MakeStudy, tmp_path: Path
) -> None:
    space = {"name": "s", "parameters": {"optimizer.learning_rate": {"choice": [2e-3, 4e-3]}}}
    study = make_study(base=make_study().base | {"train": LONG}, search_space=space)
    undisturbed = sweep(study, executor="inline", name="whole", root=tmp_path)
    with another_head() as (address, processes):
        driver = start_driver(study, tmp_path, "headless", address)
        ledger = tmp_path / "headless" / "ledger.jsonl"
        wait_until(lambda: ledger.exists() and count(tmp_path, "headless", "report") >= 2)
        for process in processes:
            if process.name() in ("gcs_server", "raylet"):
                process.kill()
        _, shown = driver.communicate(timeout=120)
    assert driver.returncode == ClusterUnreachableError.exit_code
    assert "its head does not answer" in shown
    assert "planner sweep --resume headless" in shown
    assert "Traceback" not in shown
    resumed = resume("headless", root=tmp_path)
    assert not differences(resumed, undisturbed)
    assert resumed.spend.device_hours == pytest.approx(sum(t.device_hours for t in resumed.trials))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_a_signal_ends_the_driver_cleanly_and_says_how_to_go_on(
    cluster: str, make_study: MakeStudy, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    space = {"name": "s", "parameters": {"optimizer.learning_rate": {"choice": [2e-3, 4e-3]}}}
    study = make_study(base=make_study().base | {"train": LONG}, search_space=space)
    driver = start_driver(study, tmp_path, "stopped", cluster)
    ledger = tmp_path / "stopped" / "ledger.jsonl"
    wait_until(lambda: ledger.exists() and count(tmp_path, "stopped", "report") >= 2)
    driver.send_signal(number)
    _, shown = driver.communicate(timeout=60)
    assert driver.returncode == code
    assert "planner sweep --resume stopped" in shown
    assert "Traceback" not in shown
    assert lines_of(tmp_path, "stopped")[-1]["kind"] == "session_ended"
    wait_until(lambda: not children_of_ray())
    assert resume("stopped", executor="inline", root=tmp_path).count(TrialState.COMPLETED) == 2


def test_more_workers_than_the_cluster_has_are_refused_before_anything_runs(
    cluster: str, make_study: MakeStudy, tmp_path: Path
) -> None:
    base = make_study().base | {"layout": {"data_parallel": 4}}
    wide = {"device": "cpu", "devices_per_node": 4}
    with pytest.raises(InfeasibleError, match="at least 4 workers, 2 devices"):
        sweep(make_study(base=base, cluster=wide), root=tmp_path)
    assert not (tmp_path / "tiny").exists()


def test_no_cluster_at_the_address_is_one_clear_error(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    code = (
        "from planner.cli import main; import sys; "
        f"sys.exit(main(['sweep', 'smoke', '--runs', {str(tmp_path)!r}, "
        "'--address', '127.0.0.1:1']))"
    )
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == ClusterUnreachableError.exit_code, done.stderr
    assert "no Ray cluster answers at '127.0.0.1:1'" in done.stderr
    assert "Traceback" not in done.stderr
