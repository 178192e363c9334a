"""How the fuzz tests hunt: each case is right, or ends in a UserError of one line; nothing else, and no hang.

A test runs as `fast`, the same cases every time, and, marked `campaign`, as a long hunt whose cases are drawn from
the seed HNERV_FUZZ_SEED (0). Memory is limited during both, so that a size that is believed before it is checked
shows on a machine of any size.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from hnerv.errors import UserError

ROOM, SECONDS = 2 << 30, 20
"""Bytes of address space that a hunt may take on top of what is there, and seconds that a case may last."""

REFUSED = object()
SHAPES_OF_TROUBLE = (
    "",
    " ",
    "..",
    "../x",
    "/etc/passwd",
    "~nobody-there/x",
    "a\0b",
    "\ud800",
    "9" * 5000,
    "x" * 300,
    "-1",
    "--",
    "nan",
    "inf",
    "0x0",
    "1_1_1",
    "0_3_3",
    "1_" + "9" * 5000,
    f"{'9' * 400}_1",
    "1_1000000000000",
    "0.5_99999999999",
    "9" * 30,
    "9" * 30 + "x1",
    "1:2:0",
    "9" * 5000 + ":",
    "٣x٣",
    "²",
    "{params}",
    "\x1b[31m",
    "grid",
    "pe",
    "cosine_1e400_1_0",
    "cosine_0.5_1e308_0.1",
    "1e400",
)
JUNK = st.one_of(
    st.sampled_from(SHAPES_OF_TROUBLE),
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**40, 2**63, 10**30, 10**400, -(10**30)]),
    st.floats(),
    st.sampled_from(SHAPES_OF_TROUBLE),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(-2, 9), st.sampled_from([2**40, None, "x", 0.5])), max_size=20),
    st.dictionaries(st.sampled_from(["a", "config", "width", "0"]), st.integers(-1, 3), max_size=2),
)
OF_TYPE = {
    str: st.sampled_from(SHAPES_OF_TROUBLE) | st.text(max_size=8),
    int: st.integers(-3, 70) | st.sampled_from([2**31, 2**40, 2**63, 10**30, 10**400, -(10**30)]),
    float: st.floats() | st.sampled_from([1e-300, 1e300, 0.0, -1.0]),
}
PLACE = st.lists(st.integers(0, 996), min_size=1, max_size=6)
HOW = st.sampled_from(["set", "set", "drop", "add", *["typed"] * 5])
_tally: Counter[str] = Counter()


@pytest.fixture(scope="session")
def junk() -> st.SearchStrategy:
    """Values of any kind, those that have caused trouble among them."""
    return JUNK


@pytest.fixture(scope="session")
def mutated() -> Callable[..., st.SearchStrategy]:
    """mutated(tree, junk=JUNK) -> trees of dictionaries and lists with one to three places set, dropped or added."""

    def build(tree, junk: st.SearchStrategy = JUNK) -> st.SearchStrategy:
        change = st.tuples(PLACE, HOW, junk, st.fixed_dictionaries(OF_TYPE))
        return st.lists(change, min_size=1, max_size=3).map(lambda changes: _changed(tree, changes))

    return build


def _changed(tree, changes: list):
    tree = copy.deepcopy(tree)
    for steps, how, value, of_type in changes:
        _change(tree, steps, how, copy.deepcopy(value), of_type)  # drawn again, it would be put into itself
    return tree


def _change(node, steps: list[int], how: str, value, of_type: dict[type, object]) -> None:
    """Every branch of a node is as likely as another, however much hangs on it."""
    for step, number in enumerate(steps):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = keys[number % len(keys)]
        if (step == len(steps) - 1 and how != "typed") or not isinstance(node[key], dict | list):
            break
        node = node[key]
    else:
        return
    if how == "add" and isinstance(node, dict):
        node["another"] = value
    elif how == "drop":
        del node[key]
    else:
        node[key] = of_type.get(type(node[key]), value) if how == "typed" else value


@pytest.fixture(scope="session")
def settled() -> Callable:
    """settled(call) -> what it returns, REFUSED after a UserError in one readable line; other errors pass."""

    def run(call: Callable):
        try:
            return call()
        except UserError as error:
            check_line(" ".join(str(error).split()))
            return REFUSED

    return run


def check_line(text: str) -> None:
    assert 15 < len(text) < 2500, f"{len(text)} characters: {text[:200]}"
    assert "Traceback" not in text


@pytest.fixture(scope="session")
def refused() -> object:
    """What `settled` returns for a UserError."""
    return REFUSED


@pytest.fixture(scope="session")
def ended() -> Callable[[Callable], int]:
    """ended(main) -> exit status of a command: 0, or 2 with one line on stderr and nothing else."""

    def run(main: Callable) -> int:
        out, err = io.StringIO(), io.StringIO()
        status = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main() or 0
            except SystemExit as end:
                status = end.code or 0
        if status:
            lines = err.getvalue().splitlines()
            assert status == 2 and lines, (status, err.getvalue()[-2000:], out.getvalue()[-2000:])
            check_line(lines[-1])
        return status

    return run


class TooLong(BaseException):
    """No `except Exception` of the code under test may swallow it."""


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def stop(*_) -> None:
        raise TooLong(f"a case lasts over {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _in_little_memory() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A test that may take ROOM bytes and no more."""
    with _in_little_memory():
        yield


@pytest.fixture(params=["fast", pytest.param("campaign", marks=pytest.mark.campaign)])
def hunt(request: pytest.FixtureRequest) -> Callable[..., None]:
    """hunt(strategy, check, fast=50, campaign=1000) calls check(case) on that many cases."""

    def run(strategy: st.SearchStrategy, check: Callable[[object], None], fast: int, campaign: int) -> None:
        count = fast if request.param == "fast" else campaign
        name = request.node.originalname

        def case(value) -> None:
            _tally[f"{request.param}: {name}"] += 1
            with _in_time():
                check(value)

        long = request.param == "campaign"
        options = settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=not long,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        test = options(given(strategy)(case))
        if long:
            test = seed(int(os.environ.get("HNERV_FUZZ_SEED", "0")))(test)
        with _in_little_memory():
            test()

    return run


def pytest_terminal_summary(terminalreporter) -> None:
    if _tally:
        terminalreporter.write_line(f"fuzz cases: {sum(_tally.values()):,} {json.dumps(_tally)}")
