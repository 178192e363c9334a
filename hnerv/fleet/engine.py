"""Ray, and nothing of Ray elsewhere: a cluster, its tasks, and the box through which workers reach the driver.

Workers share no file system with the driver, nor does the driver of a ray:// address with any node; so what a worker
hands over lies in the box, an actor in the cluster, until the driver fetches it.
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
from hnerv.fleet.parcels import Parcel, merged
from hnerv.fleet.work import Outcome, Task, nothing, plan, train

ENTRIES = {"train": train, "plan": plan, "nothing": nothing}


TRIES = 3
"""To connect to a ray:// address."""
LONGEST_TMPDIR = 107 - len("/ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store")
"""Bytes: Linux allows 107 for the path of a socket, and this is the longest that Ray puts below TMPDIR."""


class Needs(NamedTuple):
    """What one task takes of a node: CPUs, GPUs (a fraction shares one), bytes of memory (0: not looked at)."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0


class Fault(NamedTuple):
    """A task that ended by no doing of its own: its worker, its node or the box is gone."""

    cause: str


class News(NamedTuple):
    """Of an attempt at a job since the last time: what it handed over, and how far it is."""

    parcel: Parcel | None
    step: int
    steps: int
    saved: int


class Box:
    """The actor: news by (job, attempt), merged until they are fetched."""

    def __init__(self) -> None:
        self._news: dict[tuple[str, int], News] = {}

    async def hand(self, key: tuple[str, int], parcel: Parcel, saved: int) -> None:
        """Of a worker, which waits until this returns."""
        before = self._news.get(key, News(None, 0, 0, 0))
        parcel = merged(before.parcel, parcel) if before.parcel else parcel
        self._news[key] = before._replace(parcel=parcel, saved=saved, step=max(before.step, saved))

    async def tell(self, key: tuple[str, int], step: int, steps: int, saved: int) -> None:
        """Of a worker, which does not wait."""
        before = self._news.get(key, News(None, 0, 0, 0))
        self._news[key] = News(before.parcel, max(before.step, step), steps, max(before.saved, saved))

    async def take(self) -> dict[tuple[str, int], News]:
        """All of it, to the driver; the box is empty then."""
        news, self._news = self._news, {}
        return news


class Courier:
    """A worker's end of the box."""

    def __init__(self, box, key: tuple[str, int]) -> None:
        self._box, self._key = box, key

    def hand(self, parcel: Parcel, saved: int) -> None:
        # Not ray.get: a task that waits in it gives its CPUs to another one, and both would then train on them.
        self._box.hand.remote(self._key, parcel, saved).future().result()

    def tell(self, step: int, steps: int, saved: int) -> None:
        self._box.tell.remote(self._key, step, steps, saved)


def _run(entry: str, box, task: Task, *given) -> Outcome:
    """In the worker."""
    if entry == "train":
        return train(task, *given, Courier(box, (task.job, task.attempt)))
    return ENTRIES[entry](task, *given)


class Cluster:
    """A Ray that is connected: submits tasks and says how they ended."""

    def __init__(self, ray, needs: Needs) -> None:
        self._ray, self.needs = ray, needs
        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": 0}
        self._options = options | ({"memory": needs.memory} if needs.memory else {})
        # A process keeps its part of a GPU's memory until it ends.
        self._remote = ray.remote(max_calls=1)(_run) if needs.gpus else ray.remote(_run)
        self._box = self._new_box()
        self._slots, self._counted = 1, -math.inf

    def submit(self, entry: str, task: Task, *given):
        """A task on its way -> what `ended` and `cancel` know it by. An object of `put` may be among `given`."""
        return self._remote.options(**self._options, name=f"hnerv {task.job}").remote(entry, self._box, task, *given)

    def put(self, data: object):
        """Into the object store, once for many tasks."""
        return self._ray.put(data)

    def ended(self, refs: list, seconds: float) -> list[tuple[object, Outcome | Fault]]:
        """The tasks among `refs` that have ended, waited for at most so long."""
        if not refs:
            return []
        found, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        if found:
            found, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        return [(ref, self._result(ref)) for ref in found]

    def news(self) -> dict[tuple[str, int], News]:
        """What the workers have handed over since the last call. A lost box is replaced; what was in it is lost."""
        from ray.exceptions import RayError

        try:
            return self._ray.get(self._box.take.remote(), timeout=300)
        except RayError as error:
            logging.getLogger("hnerv").warning(
                "lost the actor that collects results (%s); starting another", type(error).__name__
            )
            with contextlib.suppress(Exception):  # whoever still has it is to hear of it
                self._ray.kill(self._box)
            self._box = self._new_box()
            return {}

    def cancel(self, refs: list) -> None:
        """Asks tasks to end: one that trains saves, hands over and ends."""
        for ref in refs:
            with contextlib.suppress(Exception):  # it may be gone
                self._ray.cancel(ref, force=False)

    def slots(self) -> int:
        """How many tasks the nodes that are there now can run at a time, 0 for none."""
        now = time.monotonic()
        if now - self._counted > 5:
            self._slots, self._counted = sum(map(self._fitting, self._ray.nodes())), now
        return self._slots

    def _fitting(self, node: dict) -> int:
        if not node["Alive"]:
            return 0
        has = node["Resources"]
        wanted = {"CPU": self.needs.cpus, "GPU": self.needs.gpus, "memory": self.needs.memory}
        shares = [has.get(name, 0) / need for name, need in wanted.items() if need]
        return int(min(shares, default=1) + 1e-9)

    def _result(self, ref) -> Outcome | Fault:
        from ray import exceptions

        try:
            return self._ray.get(ref)
        except exceptions.TaskCancelledError:
            return Outcome("stopped")
        except exceptions.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), BaseException) else error
            if isinstance(cause, exceptions.RayError) and not isinstance(cause, exceptions.RayTaskError):
                return Fault(_told(cause))
            if isinstance(cause, KeyboardInterrupt):
                return Outcome("stopped")
            last = str(cause).strip().splitlines()[-1:] or [""]
            return Outcome("failed", f"{type(cause).__name__}: {last[0][:500]}")
        except exceptions.RayError as error:
            return Fault(_told(error))

    def _new_box(self):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=True)
        return self._ray.remote(Box).options(num_cpus=0, scheduling_strategy=here).remote()


@contextlib.contextmanager
def connected(address: str, needs: Needs, debug: bool = False) -> Iterator[Cluster]:
    """A Ray of this machine, started and stopped; or the one at `address`. Raises UserError, RunError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError("hnerv fleet needs Ray, which is not installed: pip install -e '.[fleet]'") from None
    quiet = {"log_to_driver": debug, "logging_level": logging.INFO if debug else logging.CRITICAL}
    where = {"address": address} if address else {"address": "local", "include_dashboard": False, **short_folder()}
    try:
        _init(ray, TRIES if address.startswith("ray://") else 1, **where, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        cause = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        doing = f"connect to Ray at {address}" if address else "start Ray on this machine"
        fix = "check --address and that Ray is running there" if address else "check the installation of Ray"
        raise UserError(f"cannot {doing} ({cause[0][:300]}): {fix}") from error
    try:
        cluster = Cluster(ray, needs)
        if not cluster.slots() and not address:
            raise UserError(f"this machine does not have {_wanted(needs)} for a task: lower the --*-per-task flags")
        if not cluster.slots():
            logging.getLogger("hnerv").warning("no node has %s for a task yet; waiting for one", _wanted(needs))
        yield cluster
    except BrokenPipeError:  # of whoever reads our lines, not of the cluster
        raise
    except ConnectionError as error:
        raise RunError(f"lost the cluster ({error}): run the same command to resume once it is back") from error
    finally:
        ray.shutdown()


def short_folder() -> dict[str, str]:
    """What ray.init is given besides: a folder in /tmp, where TMPDIR is too long for Ray's sockets, else nothing."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    size = len(os.fsencode(os.environ.get(name, "")))
    if sys.platform != "linux" or size <= LONGEST_TMPDIR:
        return {}
    logging.getLogger("hnerv").warning(
        "%s has %d bytes, too long for Ray's sockets (at most %d): Ray's own files go to /tmp/ray; for another place, "
        "set RAY_TMPDIR to a shorter path", name, size, LONGEST_TMPDIR,
    )  # fmt: skip
    return {"_temp_dir": "/tmp/ray"}


def _init(ray, tries: int, **words: object) -> None:
    """ray.init, begun again where the server of a ray:// address could not start its process for this client."""
    for left in reversed(range(tries)):
        try:
            ray.init(**words)
            return
        except ConnectionError:
            ray.shutdown()
            if not left:
                raise


def _wanted(needs: Needs) -> str:
    words = [f"{needs.cpus:g} CPUs"] * bool(needs.cpus) + [f"{needs.gpus:g} GPUs"] * bool(needs.gpus)
    return ", ".join(words + [f"{needs.memory / 1e9:g} GB of memory"] * bool(needs.memory))


def _told(error: Exception) -> str:
    first = str(error).strip().splitlines()[:1] or [""]
    return f"{type(error).__name__}: {first[0][:200]}"
