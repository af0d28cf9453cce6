"""The Ray cluster of a sweep: how to reach it, and how to notice that it is gone."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any, Final

import ray

from planner.errors import ClusterUnreachableError

__all__ = ["ClusterWatch", "connect"]

_KNOCK_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 2.0
_GONE_SECONDS: Final = 15.0
"""Time without an answer after which a cluster counts as gone; Ray itself gives up after 60 s."""
_NOTICE_SECONDS: Final = 5.0
"""Time that the driver has to end by itself before it is ended."""


def connect(address: str | None, num_cpus: int | None) -> None:
    """Connect to a cluster, or start one here.

    Args:
        address: Of a running cluster; None starts one.
        num_cpus: CPUs of one that is started; None takes what the machine has.

    Raises:
        ClusterUnreachableError: No cluster answers at the address.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        _guard_local_cluster()
        try:
            # "local": else Ray takes any cluster that somebody has started on this machine.
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises the base class where its processes start too slowly
            ray.shutdown()
            raise ClusterUnreachableError(
                f"Ray did not start on this machine: {str(error).splitlines()[0]}",
                hint="Try again when the machine is less busy, or use --executor inline.",
            ) from error
        return
    place = _place(address)
    reason = None if place is None else _refusal(*place)
    if reason is not None:
        raise _unreachable(address, reason)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address, str(error).splitlines()[0]) from error


def _place(address: str) -> tuple[str, int] | None:
    """Return host and port of an address that names them."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None


def _refusal(host: str, port: int) -> str | None:
    """Return why nothing answers there, at once; Ray itself tries for minutes. None: it does."""
    try:
        socket.create_connection((host, port), timeout=_KNOCK_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _unreachable(address: str, reason: str) -> ClusterUnreachableError:
    return ClusterUnreachableError(
        f"no Ray cluster answers at {address!r}: {reason}",
        hint="Start one with: ray start --head\n  Or leave the address out: Ray then starts on this "
        "machine for the run.",
    )


def _guard_local_cluster() -> None:
    """Protect a cluster of our own by a token that lives as long as this process.

    Without this Ray writes a token into the home directory and uses it from then on for every
    cluster on this machine, which locks out clients that do not expect it.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")  # what Ray does itself after it changes the mode


class ClusterWatch:
    """Notices that the head or the last device of a cluster is gone.

    When its head is gone, Ray's calls hang, and after a minute Ray ends the process without a word
    that helps. So a thread knocks at the head; the driver hears of it at its next turn, and where
    it has none, because it hangs in such a call, the thread says what happened and ends the process.

    Args:
        run: Name of the run, for the message.
        device: Resource that trials need.
    """

    def __init__(self, run: str, device: str) -> None:
        self._run_name, self._device = run, device
        self._address = ray.get_runtime_context().gcs_address
        self._over = threading.Event()
        self._head_error: ClusterUnreachableError | None = None
        self._looked = self._had_devices = time.monotonic()

    def __enter__(self) -> ClusterWatch:
        threading.Thread(target=self._watch_head, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def error(self) -> ClusterUnreachableError | None:
        """Return what is wrong with the cluster, or None; asked at every turn of the driver."""
        now = time.monotonic()
        if self._head_error is not None or now - self._looked < _LOOK_SECONDS:
            return self._head_error
        self._looked = now
        if ray.cluster_resources().get(self._device, 0) >= 1:
            self._had_devices = now
        if now - self._had_devices < _GONE_SECONDS:
            return None
        return self._gone(f"none of its nodes with a {self._device} is alive")

    def _gone(self, reason: str) -> ClusterUnreachableError:
        return ClusterUnreachableError(
            f"the Ray cluster at {self._address} is gone: {reason}. Nothing that was finished is "
            "lost.",
            hint=f"Go on with: planner sweep --resume {self._run_name} [--address ADDRESS]",
        )

    def _watch_head(self) -> None:
        place = _place(self._address)
        answered = time.monotonic()
        while place is not None and not self._over.wait(_LOOK_SECONDS):
            reason = _refusal(*place)
            if reason is None:
                answered = time.monotonic()
            elif time.monotonic() - answered >= _GONE_SECONDS:
                self._end(self._gone(f"its head does not answer ({reason})"))
                return

    def _end(self, error: ClusterUnreachableError) -> None:
        self._head_error = error
        if self._over.wait(_NOTICE_SECONDS):
            return
        sys.stderr.write(f"\nerror: {error.message}\n  {error.hint}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)
