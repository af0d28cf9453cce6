"""Submit a study to a running Ray cluster through the Ray Jobs API, follow it, fetch its results.

The cluster must have planner installed (an image or an environment). The resolved study travels
in the job's working directory, so the cluster never resolves names. When the sweep ends, the job
puts its result files beside Ray's own session files, and `fetch` downloads them through the
cluster's HTTP address: no shared file system is needed. No log is ever parsed.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
import socket
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from planner.errors import ClusterUnreachableError, JobError, NotFoundError
from planner.run_folder import RunFolder, default_root
from planner.study import Study
from planner.trial import BPE, BYTES

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

__all__ = [
    "Job",
    "fetch",
    "follow",
    "job_of",
    "leave_bundle",
    "list_jobs",
    "refresh",
    "stop",
    "submit",
]

_FETCHED: Final = (
    "study.json", "plan.json", "ledger.jsonl", "results.parquet", "curves.parquet", "spend.json",
    "lineage.parquet", "search.json", "earlier.json",
)  # fmt: skip
"""Files of a run folder that travel back."""
_NO_PATHS: Final = ("python-stdlib", BPE, BYTES)
"""Corpora and tokenizers that are known by name."""
_CONNECT_SECONDS: Final = 5.0
_REQUEST_SECONDS: Final = 120.0
_AGENT_SECONDS: Final = 60.0
"""Time that a head which has just started has to bring up what starts jobs; it asks to be tried again."""
_NO_AGENT: Final = "No available agent"
_STOP_SECONDS: Final = 60
"""Time that a stopped job has to write its ledger and results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A study on a cluster; kept in the run folder's `job.json`."""

    name: str
    """Name of the run."""
    submission_id: str
    address: str
    """HTTP address of the cluster's job server."""
    status: str
    """Ray's word: PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED."""
    exit_code: int | None = None
    """Exit code of `planner sweep` on the cluster, once it has ended."""
    message: str | None = None
    """What Ray says of the job."""

    @property
    def is_finished(self) -> bool:
        """Whether the job has ended."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


def submit(
    study: Study,
    address: str,
    *,
    name: str | None = None,
    root: Path | None = None,
    storage: str | None = None,
    python: str | None = None,
) -> Job:
    """Start a study as a job on a running cluster and return at once.

    Args:
        study: The resolved study.
        address: Job server of the cluster, such as `http://head:8265`.
        name: Name of the run here and on the cluster; by default the study's.
        root: Folder of runs on this machine; the results will be fetched into it.
        storage: Folder of runs on the cluster; by default `$PLANNER_RUNS` there, or
            `planner-runs` in the home folder.
        python: Interpreter on the cluster that has planner.

    Raises:
        ClusterUnreachableError: No cluster answers, or it does not let us in.
        ConfigError: The run's name is taken here.
        JobError: The cluster refused the job.
    """
    client = _client(address)
    folder = RunFolder.create(_with_absolute_paths(study), name, root)
    submission_id = f"planner-{folder.name}-{int(time.time())}"
    interpreter = python or (sys.executable if _is_local(address) else "python")
    arguments = [
        interpreter,
        "-m",
        "planner.cli.job_entrypoint",
        "study.json",
        folder.name,
        submission_id,
    ]
    with tempfile.TemporaryDirectory() as working_dir:
        Path(working_dir, "study.json").write_bytes(folder.study.read_bytes())
        try:
            _submit(
                client,
                entrypoint=shlex.join([*arguments, *([storage] if storage else [])]),
                submission_id=submission_id,
                metadata={"planner_run": folder.name, "planner_study": study.name},
                runtime_env={"working_dir": working_dir, "env_vars": _environment()},
            )
        except RuntimeError as error:
            folder.undo_create()
            raise JobError(f"the cluster at {address} refused the job: {error}") from error
    job = Job(
        name=folder.name, submission_id=submission_id, address=_normal(address), status="PENDING"
    )
    _save(folder, job)
    return job


def _environment() -> dict[str, str]:
    return {
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }


def _with_absolute_paths(study: Study) -> Study:
    """Return the study with paths of corpora and tokenizers that exist here made absolute."""
    parameters = {
        name: each
        if each.choice is None
        else each.replace(choice=[_absolute(v, name.rpartition(".")[2]) for v in each.choice])
        for name, each in study.search_space.parameters.items()
    }
    space = study.search_space.model_copy(update={"parameters": parameters})
    return study.replace(base=_absolute(study.base, "base"), search_space=space)


def _absolute(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _absolute(inner, key) for key, inner in value.items()}
    is_path = name in ("corpus", "tokenizer") and isinstance(value, str) and value not in _NO_PATHS
    return str(Path(value).resolve()) if is_path and Path(value).exists() else value


def _submit(client: JobSubmissionClient, **request: Any) -> None:
    """Submit a job, again for a while where no agent is up that could start it."""
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            client.submit_job(**request)
        except RuntimeError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def job_of(name: str, root: Path | None = None) -> Job:
    """Return the job of a submitted run, as last seen.

    Raises:
        NotFoundError: There is no such run, or it was not submitted.
    """
    folder = RunFolder.open(name, root)
    if not folder.job.is_file():
        raise NotFoundError(
            f"run {name!r} was not submitted to a cluster.",
            hint="Submit a study with: planner submit STUDY --address URL",
        )
    return Job(**json.loads(folder.job.read_text(encoding="utf-8")))


def refresh(job: Job, root: Path | None = None) -> Job:
    """Return the job as the cluster knows it now.

    Raises:
        ClusterUnreachableError: The cluster does not answer.
        JobError: The cluster does not know the job.
    """
    info = _info(_client(job.address), job)
    fresh = Job(
        name=job.name,
        submission_id=job.submission_id,
        address=job.address,
        status=str(info.status.value),
        exit_code=info.driver_exit_code,
        message=info.message,
    )
    _save(RunFolder.open(job.name, root), fresh)
    return fresh


def _info(client: JobSubmissionClient, job: Job) -> JobDetails:
    try:
        return client.get_job_info(job.submission_id)
    except RuntimeError as error:
        raise JobError(f"{job.address} does not know job {job.submission_id}.") from error


def follow(job: Job, write: Callable[[str], None], root: Path | None = None) -> Job:
    """Stream the job's output until it ends, and return it as it ended.

    Raises:
        ClusterUnreachableError: The cluster does not answer.
        JobError: The connection broke while the job was running.
    """
    client = _client(job.address)

    async def stream() -> None:
        async for chunk in client.tail_job_logs(job.submission_id):
            write(chunk)

    try:
        asyncio.run(stream())
    except (RuntimeError, OSError) as error:
        raise JobError(
            f"the connection to {job.address} broke; the job itself may go on.",
            hint=f"Look again with: planner jobs {job.name} --follow",
        ) from error
    ended = refresh(job, root)
    while not ended.is_finished:
        time.sleep(0.5)
        ended = refresh(job, root)
    return ended


def stop(job: Job, root: Path | None = None) -> Job:
    """Ask the job to stop cleanly, wait until it has, and return it.

    Raises:
        ClusterUnreachableError: The cluster does not answer.
        JobError: The cluster does not know the job, or it did not stop in time.
    """
    client = _client(job.address)
    _info(client, job)
    client.stop_job(job.submission_id)
    deadline = time.monotonic() + _STOP_SECONDS + 15
    while time.monotonic() < deadline:
        now = refresh(job, root)
        if now.is_finished:
            return now
        time.sleep(1)
    raise JobError(
        f"job {job.submission_id} did not stop within {_STOP_SECONDS} s (it is {now.status}).",
        hint="A job that waits for resources cannot be stopped until the cluster has them.",
    )


def fetch(job: Job, root: Path | None = None) -> RunFolder:
    """Download the results of an ended job into the run folder, and return it.

    Raises:
        ClusterUnreachableError: The cluster does not answer.
        JobError: The cluster does not know the job, or it has left no results.
    """
    import requests

    client = _client(job.address)
    info = _info(client, job)
    response = requests.get(
        f"{job.address}/api/v0/logs/file",
        params={
            "node_id": info.driver_node_id or "",
            "filename": _bundle_name(job.submission_id),
            "lines": "-1",
        },
        headers=client._headers,  # the token, where the cluster wants one
        timeout=_REQUEST_SECONDS,
    )
    folder = RunFolder.open(job.name, root)
    try:
        with zipfile.ZipFile(io.BytesIO(response.content)) as bundle:
            for name in set(bundle.namelist()) & set(_FETCHED):
                folder.write(name, bundle.read(name))
    except zipfile.BadZipFile as error:
        raise JobError(
            f"job {job.submission_id} has left no results (it is {job.status}).",
            hint=f"See why with: planner jobs {job.name} --follow",
        ) from error
    return folder


def list_jobs(root: Path | None = None) -> list[Job]:
    """Return the submitted runs under a folder, as last seen."""
    base = root or default_root()
    return [job_of(path.parent.name, root) for path in sorted(base.glob("*/job.json"))]


def _save(folder: RunFolder, job: Job) -> None:
    folder.write("job.json", json.dumps(asdict(job), indent=2))


def _normal(address: str) -> str:
    return (address if "://" in address else f"http://{address}").rstrip("/")


def _is_local(address: str) -> bool:
    return urlsplit(_normal(address)).hostname in ("127.0.0.1", "localhost", "::1")


def _client(address: str) -> JobSubmissionClient:
    """Return a client of a job server that answers.

    Raises:
        ClusterUnreachableError: None answers there, or it does not let us in.
    """
    hint = (
        "Give the cluster's job server, such as http://head:8265 "
        "(`ray start --head` prints it; --dashboard-host=0.0.0.0 opens it to other machines)."
    )
    try:
        url = urlsplit(_normal(address))
        place = url.hostname, url.port or {"http": 80, "https": 443}[url.scheme]
    except (KeyError, ValueError):
        place = None, 0
    if not place[0]:
        raise ClusterUnreachableError(f"not an address of a job server: {address!r}.", hint=hint)
    try:
        socket.create_connection(place, timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ClusterUnreachableError(
            f"no cluster answers at {address}: {error}.", hint=hint
        ) from error
    return _authorised_client(_normal(address))


def _authorised_client(address: str) -> JobSubmissionClient:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    missing = JobError("submitting needs Ray's job client.", hint="pip install 'planner[jobs]'")
    try:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise missing from error
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ClusterUnreachableError(
            f"the cluster at {address} asks for a token.",
            hint="Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.",
        ) from error
    except (RuntimeError, OSError, ValueError) as error:
        if "ray[default]" in str(error):  # the client itself is there without what it needs
            raise missing from error
        raise ClusterUnreachableError(
            f"what answers at {address} is no Ray job server: {error}"
        ) from error


def _bundle_name(submission_id: str) -> str:
    return f"{submission_id}.zip"


def leave_bundle(folder: RunFolder, submission_id: str) -> None:
    """Put the run's result files where the cluster's HTTP address can serve them.

    Raises:
        JobError: This process does not run on a cluster.
    """
    import ray

    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    node = ray._private.worker._global_node
    if node is None:
        raise JobError("the job is not connected to its cluster.")
    logs = Path(node.get_logs_dir_path())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in _FETCHED:
            if (folder.path / name).is_file():
                bundle.write(folder.path / name, name)
    target = logs / _bundle_name(submission_id)
    target.with_suffix(".tmp").write_bytes(buffer.getvalue())
    target.with_suffix(".tmp").rename(target)
