"""Two processes on one run: the second is refused; one that has died holds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hnerv.errors import UserError
from hnerv.runs import lock
from hnerv.runs.lock import locked
from hnerv.training.trainer import Trainer

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="this system has no fcntl.flock")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path / 'run'."""
    (tmp_path / "run").mkdir()
    program = (
        "import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('lock', {lock.__file__!r})\n"
        "lock = importlib.util.module_from_spec(spec); spec.loader.exec_module(lock)\n"
        "with lock.locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, train, flags, other, capsys, snapshot):
    words = flags(epochs=1)
    before = snapshot(tmp_path)
    assert train(tmp_path, words) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert "another process is training in" in line and "--exp-id" in line and "epoch " not in out.split("rate")[-1]
    assert train(tmp_path, [*words, "--overwrite"]) == 2
    assert snapshot(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["run"]
    other.kill()
    other.wait()
    assert (tmp_path / "run" / lock.NAME).exists()
    assert train(tmp_path, words) == 0
    assert not (tmp_path / "run" / lock.NAME).exists()


def test_it_is_held_from_the_first_step_to_the_last_evaluation(tmp_path, train, flags, monkeypatch):
    seen = []

    def watched(method):
        def call(self, *args):
            with pytest.raises(UserError, match="another process"), locked(self.folder.path):
                pass
            seen.append(method.__name__)
            return method(self, *args)

        return call

    for name in ("advance", "evaluate", "save"):
        monkeypatch.setattr(Trainer, name, watched(getattr(Trainer, name)))
    assert train(tmp_path, flags(epochs=1)) == 0
    assert seen == ["advance"] * 3 + ["evaluate", "save"]
    with locked(tmp_path / "run"):
        pass


def test_a_file_that_was_removed_while_it_was_opened_is_no_lock(tmp_path, monkeypatch):
    """The one before us ended between our opening its file and locking it."""
    flock, calls = lock.fcntl.flock, []

    def late(handle, operation):
        if not calls:
            (tmp_path / lock.NAME).unlink()
        calls.append(handle)
        flock(handle, operation)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(UserError), locked(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", [OSError(95, "Operation not supported"), OSError(37, "No locks available")])
def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch, fault):
    def refuses(*_):
        raise fault

    monkeypatch.setattr(lock.fcntl, "flock", refuses)
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_system_without_flock_locks_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with locked(tmp_path), locked(tmp_path):
        assert not list(tmp_path.iterdir())
