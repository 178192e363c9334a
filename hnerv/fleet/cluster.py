"""Everything that uses Ray: connecting, submitting tasks, their results."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hnerv.errors import Interrupted, RunError, UserError
from hnerv.fleet.manifest import FleetVideo
from hnerv.fleet.status import Status
from hnerv.storage import StorageError

LOCAL = {"address": "local", "include_dashboard": False}
LONGEST_TMPDIR = 107 - len("/ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store")
"""Bytes: Linux allows 107 for the path of a socket, and this is the longest path that Ray creates below TMPDIR."""


class RayOptions(NamedTuple):
    """Ray's address ('' starts one on this machine), resources of a task (a fraction of a GPU shares one; memory in
    bytes, 0: no reservation), how often Ray repeats a lost task, and whether its own output is shown."""

    address: str = ""
    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    retries: int = 3
    debug: bool = False


class Cluster:
    """A connected Ray. Its tasks call `work(video)`; one is repeated after its worker, node or storage failed."""

    def __init__(self, ray, options: RayOptions, work: Callable[[FleetVideo], Status]) -> None:
        words = {"num_cpus": options.cpus, "num_gpus": options.gpus, "memory": options.memory or None}
        # A task that is interrupted, though not by this driver, was on a node that goes down.
        words |= {"max_retries": options.retries, "retry_exceptions": [StorageError, Interrupted]}
        # A process keeps its GPU memory until it exits, so one process runs one task.
        words |= {"max_calls": 1} if options.gpus else {}
        self._ray, self._remote = ray, ray.remote(**words)(lambda video: work(video))

    def submit(self, video: FleetVideo):
        """Start a task -> its handle."""
        return self._remote.options(name=f"hnerv {video.name}").remote(video)

    def ended(self, handles: list) -> list[tuple[object, Status]]:
        """Tasks that end within a moment, with their results."""
        found, _ = self._ray.wait(handles, num_returns=len(handles), timeout=0.2)
        return [(handle, self._result(handle)) for handle in found]

    def cancel(self, handles: list) -> None:
        """Request that tasks end. One that trains hands over its run first."""
        for handle in handles:
            with contextlib.suppress(Exception):  # it may have ended
                self._ray.cancel(handle, force=False)

    def _result(self, handle) -> Status:
        from ray.exceptions import RayError

        try:
            return self._ray.get(handle)
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            text = " ".join(str(cause).strip().split("\n")[0].split())[:300]
            ours = isinstance(cause, RunError | Interrupted)
            return Status("failed", text if ours else f"{type(cause).__name__}: {text}")


@contextlib.contextmanager
def connected(options: RayOptions, work: Callable[[FleetVideo], Status]) -> Iterator[Cluster]:
    """Connect to the Ray at an address, or start one on this machine for the block. Raises UserError, RunError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: other programs would take the cores of a task
    try:
        import ray
    except ImportError:
        raise UserError("hnerv fleet needs Ray: pip install -e '.[fleet]', or pass --task to do without") from None
    target = {"address": options.address} if options.address else LOCAL | _folder()
    output = {"log_to_driver": options.debug, "logging_level": logging.INFO if options.debug else logging.CRITICAL}
    # The server of a ray:// address may fail to start its process for this client.
    for left in reversed(range(3 if options.address.startswith("ray://") else 1)):
        try:
            _probe(options.address)
            ray.init(**target, **output)
            break
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            ray.shutdown()
            if not left:
                cause = (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
                action = f"connect to Ray at {options.address}" if options.address else "start Ray on this machine"
                hint = "check --address and that Ray is running there" if options.address else "check its installation"
                raise UserError(f"cannot {action} ({cause}): {hint}") from error
    try:
        wanted = {"CPU": options.cpus, "GPU": options.gpus, "memory": options.memory}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            missing = f"{options.cpus:g} CPUs, {options.gpus:g} GPUs, {options.memory / 1e9:g} GB of memory for a task"
            if not options.address:
                raise UserError(f"this machine does not have {missing}: lower the --*-per-task flags")
            logging.getLogger("hnerv").warning("no node has %s yet; waiting for one", missing)
        yield Cluster(ray, options, work)
    except BrokenPipeError:  # our own stdout was closed; the cluster is fine
        raise
    except ConnectionError as error:
        raise RunError(f"lost the cluster ({error}): run the same command to resume once it is back") from error
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Raises OSError if nothing listens at HOST:PORT, where Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _folder() -> dict[str, str]:
    """Argument of ray.init that moves Ray's files to /tmp/ray if TMPDIR is too long for its sockets."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR", "")
    return {"_temp_dir": "/tmp/ray"} if sys.platform == "linux" and len(os.fsencode(folder)) > LONGEST_TMPDIR else {}
