"""Everything that uses Ray: a cluster, its tasks, and the mailbox through which workers reach the driver.

Workers share no file system with the driver, and the driver of a ray:// address is not a node of the cluster. Updates
of workers are therefore stored in the mailbox, an actor in the cluster, until the driver fetches them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from hnerv.errors import RunError, UserError
from hnerv.fleet.transfers import FolderUpdate, merge_updates
from hnerv.fleet.worker import Outcome, Task, no_op, plan_segments, train_run

ENTRIES = {"train": train_run, "plan": plan_segments, "no_op": no_op}
TRIES = 3
"""Attempts to connect to a ray:// address."""
LONGEST_TMPDIR = 107 - len("/ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store")
"""Bytes: Linux allows 107 for the path of a socket, and this is the longest path that Ray creates below TMPDIR."""


class TaskResources(NamedTuple):
    """Resources of one task: CPUs, GPUs (a fraction shares one), bytes of memory (0: no reservation)."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0


class LostTask(NamedTuple):
    """Result of a task that ended because its worker, node or mailbox failed."""

    cause: str


class WorkerReport(NamedTuple):
    """Changes and progress of an attempt since the last report; `saved` is the step of the sent checkpoint."""

    update: FolderUpdate | None
    step: int
    steps: int
    saved: int


class Mailbox:
    """The actor: reports by (job, attempt), merged until the driver takes them."""

    def __init__(self) -> None:
        self._reports: dict[tuple[str, int], WorkerReport] = {}

    async def send(self, key: tuple[str, int], update: FolderUpdate, saved: int) -> None:
        """Called by a worker, which waits until this returns."""
        before = self._reports.get(key, WorkerReport(None, 0, 0, 0))
        update = merge_updates(before.update, update) if before.update else update
        self._reports[key] = before._replace(update=update, saved=saved, step=max(before.step, saved))

    async def report(self, key: tuple[str, int], step: int, steps: int, saved: int) -> None:
        """Called by a worker, which does not wait."""
        before = self._reports.get(key, WorkerReport(None, 0, 0, 0))
        self._reports[key] = WorkerReport(before.update, max(before.step, step), steps, max(before.saved, saved))

    async def take(self) -> dict[tuple[str, int], WorkerReport]:
        """Called by the driver: all reports, which are removed."""
        reports, self._reports = self._reports, {}
        return reports


class MailboxChannel:
    """The `Channel` of a worker to the mailbox."""

    def __init__(self, mailbox, key: tuple[str, int]) -> None:
        self._mailbox, self._key = mailbox, key

    def send(self, update: FolderUpdate, saved: int) -> None:
        # Not ray.get: a task that waits in it releases its CPUs, and another task would then train on them as well.
        self._mailbox.send.remote(self._key, update, saved).future().result()

    def report(self, step: int, steps: int, saved: int) -> None:
        self._mailbox.report.remote(self._key, step, steps, saved)


def _run(entry: str, mailbox, task: Task, *inputs) -> Outcome:
    """The remote function."""
    if entry == "train":
        return train_run(task, *inputs, MailboxChannel(mailbox, (task.job, task.attempt)))
    return ENTRIES[entry](task, *inputs)


class Cluster:
    """A connected Ray: submits tasks and returns their results."""

    def __init__(self, ray, resources: TaskResources) -> None:
        self._ray, self.resources = ray, resources
        options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": 0}
        self._options = options | ({"memory": resources.memory} if resources.memory else {})
        # A process keeps its GPU memory until it exits, so one process runs one task.
        self._remote = ray.remote(max_calls=1)(_run) if resources.gpus else ray.remote(_run)
        self._mailbox = self._new_mailbox()
        self._slots, self._counted = 1, -math.inf

    def submit(self, entry: str, task: Task, *inputs):
        """Start a task and return its handle. `inputs` may contain objects of `put`."""
        remote = self._remote.options(**self._options, name=f"hnerv {task.job}")
        return remote.remote(entry, self._mailbox, task, *inputs)

    def put(self, data: object):
        """Store an object once for many tasks."""
        return self._ray.put(data)

    def ended(self, handles: list, seconds: float) -> list[tuple[object, Outcome | LostTask]]:
        """The tasks that have ended, with their results; waits at most `seconds` for the first one."""
        if not handles:
            return []
        found, _ = self._ray.wait(handles, num_returns=1, timeout=seconds)
        if found:
            found, _ = self._ray.wait(handles, num_returns=len(handles), timeout=0)
        return [(handle, self._result(handle)) for handle in found]

    def fetch_reports(self) -> dict[tuple[str, int], WorkerReport]:
        """Reports of the workers since the last call. A lost mailbox is replaced; its reports are lost."""
        from ray.exceptions import RayError

        try:
            return self._ray.get(self._mailbox.take.remote(), timeout=300)
        except RayError as error:
            logging.getLogger("hnerv").warning(
                "lost the actor that collects results (%s); starting another", type(error).__name__
            )
            with contextlib.suppress(Exception):  # workers that still reach it must get an error
                self._ray.kill(self._mailbox)
            self._mailbox = self._new_mailbox()
            return {}

    def cancel(self, handles: list) -> None:
        """Request that tasks end. A task that trains saves its run and sends it first."""
        for handle in handles:
            with contextlib.suppress(Exception):  # the task may have ended
                self._ray.cancel(handle, force=False)

    def slots(self) -> int:
        """Number of tasks that the present nodes can run at a time."""
        now = time.monotonic()
        if now - self._counted > 5:
            self._slots, self._counted = sum(map(self._node_slots, self._ray.nodes())), now
        return self._slots

    def _node_slots(self, node: dict) -> int:
        if not node["Alive"]:
            return 0
        available = node["Resources"]
        wanted = {"CPU": self.resources.cpus, "GPU": self.resources.gpus, "memory": self.resources.memory}
        shares = [available.get(name, 0) / amount for name, amount in wanted.items() if amount]
        return int(min(shares, default=1) + 1e-9)

    def _result(self, handle) -> Outcome | LostTask:
        from ray import exceptions

        try:
            return self._ray.get(handle)
        except exceptions.TaskCancelledError:
            return Outcome("stopped")
        except exceptions.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), BaseException) else error
            if isinstance(cause, exceptions.RayError) and not isinstance(cause, exceptions.RayTaskError):
                return LostTask(_error_line(cause))
            if isinstance(cause, KeyboardInterrupt):
                return Outcome("stopped")
            last = str(cause).strip().splitlines()[-1:] or [""]
            return Outcome("failed", f"{type(cause).__name__}: {last[0][:500]}")
        except exceptions.RayError as error:
            return LostTask(_error_line(error))

    def _new_mailbox(self):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=True)
        return self._ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()


@contextlib.contextmanager
def connected(address: str, resources: TaskResources, debug: bool = False) -> Iterator[Cluster]:
    """Connect to the Ray at `address`, or start one on this machine for the block. Raises UserError, RunError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError("hnerv fleet needs Ray, which is not installed: pip install -e '.[fleet]'") from None
    output = {"log_to_driver": debug, "logging_level": logging.INFO if debug else logging.CRITICAL}
    target = {"address": address} if address else {"address": "local", "include_dashboard": False, **ray_folder()}
    try:
        _init(ray, TRIES if address.startswith("ray://") else 1, **target, **output)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        cause = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        action = f"connect to Ray at {address}" if address else "start Ray on this machine"
        hint = "check --address and that Ray is running there" if address else "check the installation of Ray"
        raise UserError(f"cannot {action} ({cause[0][:300]}): {hint}") from error
    try:
        cluster = Cluster(ray, resources)
        if not cluster.slots() and not address:
            raise UserError(
                f"this machine does not have {_describe(resources)} for a task: lower the --*-per-task flags"
            )
        if not cluster.slots():
            logging.getLogger("hnerv").warning("no node has %s for a task yet; waiting for one", _describe(resources))
        yield cluster
    except BrokenPipeError:  # our own stdout was closed; the cluster is fine
        raise
    except ConnectionError as error:
        raise RunError(f"lost the cluster ({error}): run the same command to resume once it is back") from error
    finally:
        ray.shutdown()


def ray_folder() -> dict[str, str]:
    """Argument of ray.init that moves Ray's files to /tmp/ray if TMPDIR is too long for its sockets; else empty."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    size = len(os.fsencode(os.environ.get(name, "")))
    if sys.platform != "linux" or size <= LONGEST_TMPDIR:
        return {}
    logging.getLogger("hnerv").warning(
        "%s has %d bytes, too long for Ray's sockets (at most %d): Ray's own files go to /tmp/ray; for another place, "
        "set RAY_TMPDIR to a shorter path",
        name,
        size,
        LONGEST_TMPDIR,
    )
    return {"_temp_dir": "/tmp/ray"}


def _init(ray, tries: int, **arguments: object) -> None:
    """ray.init, retried because the server of a ray:// address may fail to start its process for this client."""
    for left in reversed(range(tries)):
        try:
            ray.init(**arguments)
            return
        except ConnectionError:
            ray.shutdown()
            if not left:
                raise


def _describe(resources: TaskResources) -> str:
    parts = [f"{resources.cpus:g} CPUs"] * bool(resources.cpus) + [f"{resources.gpus:g} GPUs"] * bool(resources.gpus)
    return ", ".join(parts + [f"{resources.memory / 1e9:g} GB of memory"] * bool(resources.memory))


def _error_line(error: Exception) -> str:
    first = str(error).strip().splitlines()[:1] or [""]
    return f"{type(error).__name__}: {first[0][:200]}"
