"""A study runs as a job on a real Ray cluster on this machine, and its results come back."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from planner import jobs
from planner.cli import main
from planner.errors import ClusterUnreachableError, ConfigError, JobError, NotFoundError
from planner.results import read_results
from planner.study import load_study
from planner.tuning import sweep

START_SECONDS = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start `ray start --head` as a child, give its address, end it and nothing else."""
    home = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets need short paths
    port = free_port()
    env = os.environ | {
        "HOME": str(home), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    command = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2",
        "--node-ip-address=127.0.0.1", f"--port={free_port()}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}", f"--temp-dir={home}/ray", "--object-store-memory=100000000",
    ]  # fmt: skip
    with (home / "log").open("wb") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert head.poll() is None, (home / "log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=60)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_study_runs_its_output_streams_and_its_results_are_fetched(
    cluster, write_study, tmp_path, capfd
):
    study = load_study(write_study(), ["search.num_trials=2"])
    job = jobs.submit(study, cluster, root=tmp_path / "here", storage=str(tmp_path / "there"))
    heard: list[str] = []
    ended = jobs.follow(job, heard.append, tmp_path / "here")
    assert (ended.status, ended.exit_code) == ("SUCCEEDED", 0), "".join(heard)
    assert "t000" in "".join(heard)
    folder = jobs.fetch(ended, tmp_path / "here")
    assert [t.state for t in read_results(folder).trials] == ["completed"] * 2
    assert jobs.list_jobs(tmp_path / "here") == [ended]
    shown = main(["jobs", "small", "--runs", str(tmp_path / "here"), "--json"])
    assert shown == 0
    assert '"SUCCEEDED"' in capfd.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
def test_the_exit_code_of_a_sweep_that_fails_on_the_cluster_is_kept(cluster, write_study, tmp_path):
    study = load_study(write_study(), ["base.data.corpus=/nowhere/at/all"])
    job = jobs.submit(study, cluster, root=tmp_path / "here", storage=str(tmp_path / "there"))
    heard: list[str] = []
    ended = jobs.follow(job, heard.append, tmp_path / "here")
    assert ended.status == "FAILED", "".join(heard)
    assert ended.exit_code not in (None, 0)
    assert "/nowhere/at/all" in "".join(heard)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "http://127.0.0.1:1", "ftp://127.0.0.1", "http://", "http://[::1", "h:99999"],
)
def test_no_cluster_at_the_address_is_one_message_and_exit_code_4(address, capfd):
    assert main(["submit", "quickstart", "--address", address]) == 4
    shown = capfd.readouterr().err
    assert address in shown
    assert "http://head:8265" in shown
    assert "Traceback" not in shown


def test_what_answers_but_is_no_job_server_is_refused():
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(ClusterUnreachableError, match="no Ray job server"):
                jobs.submit(load_study("quickstart"), f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()


class Unwilling(BaseHTTPRequestHandler):
    """A job server that says its version and refuses everything else."""

    def say(self, status: int, text: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text)

    def answer(self) -> None:
        if self.path == "/api/version":
            self.say(200, b'{"version": "4", "ray_version": "2.60.0"}')
        else:
            self.refuse()

    def refuse(self) -> None:
        self.say(404, b"no")

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Late(Unwilling):
    """A head whose agent is not up at the first two requests for a job."""

    asked = 0

    def refuse(self) -> None:
        if self.command != "POST":  # the files of the job are there
            self.say(200, b"")
            return
        Late.asked += 1
        if Late.asked < 3:
            self.say(500, b"No available agent to submit job, please try again later.")
        else:
            self.say(200, b'{"job_id": "x", "submission_id": "x"}')


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("server", [Unwilling], indirect=True)
def test_a_job_that_is_refused_leaves_its_name_free(server, small_study, tmp_path):
    for _ in range(2):
        with pytest.raises(JobError, match="refused the job"):
            jobs.submit(small_study, server, root=tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("server", [Late], indirect=True)
def test_a_head_that_has_just_started_is_asked_again(server, small_study, tmp_path):
    assert jobs.submit(small_study, server, root=tmp_path).status == "PENDING"
    assert Late.asked == 3


@pytest.mark.parametrize("server", [Unwilling], indirect=True)
@pytest.mark.parametrize("act", [jobs.refresh, jobs.stop, jobs.fetch])
def test_a_job_that_the_cluster_no_longer_knows_is_an_error(act, server, small_study, tmp_path):
    lost = jobs.Job(name="small", submission_id="never", address=server, status="RUNNING")
    with pytest.raises(JobError, match="does not know job never"):
        act(lost, tmp_path)


def test_paths_of_corpora_and_tokenizers_are_submitted_whole(small_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one.txt", "two.txt", "tokenizer.json"):
        Path(name).touch()
    mixture = {name: {"corpus": f"{name}.txt", "weight": 1.0} for name in ("one", "two")}
    parameters = {"data.tokenizer": {"choice": ["bytes", "tokenizer.json"]}}
    sent = jobs._with_absolute_paths(
        small_study.replace(
            base=small_study.base | {"data": {"mixture": mixture}},
            search_space={"name": "tokenizers", "parameters": parameters},
        )
    )
    assert sent.base["data"]["mixture"]["two"]["corpus"] == str(tmp_path / "two.txt")
    choice = sent.search_space.parameters["data.tokenizer"].choice
    assert choice == ("bytes", str(tmp_path / "tokenizer.json"))


def test_every_file_that_a_sweep_leaves_is_fetched(small_study, tmp_path):
    folder = sweep(small_study, executor="inline", root=tmp_path).folder
    left = {path.name for path in folder.path.iterdir() if path.is_file()} - {"lock"}
    assert left <= set(jobs._FETCHED)


def test_a_run_that_was_not_submitted_has_no_job(small_study, tmp_path):
    from planner.run_folder import RunFolder

    RunFolder.create(small_study, root=tmp_path)
    with pytest.raises(NotFoundError, match="was not submitted"):
        jobs.job_of("small", tmp_path)
    with pytest.raises(NotFoundError, match="no run named 'other'"):
        jobs.job_of("other", tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_a_name_that_is_taken_here_is_refused_before_anything_is_submitted(
    cluster, small_study, tmp_path
):
    from planner.run_folder import RunFolder

    RunFolder.create(small_study, root=tmp_path)
    with pytest.raises(ConfigError, match="exists already"):
        jobs.submit(small_study, cluster, root=tmp_path)


def test_acting_on_jobs_needs_a_name(capfd):
    assert main(["jobs", "--stop"]) == 2
    assert "need the NAME" in capfd.readouterr().err
