"""Two processes on one run: the second is refused; one that has died holds nothing."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from hnerv.errors import UserError
from hnerv.runs.lock import NAME, locked
from hnerv.training.trainer import Trainer

fcntl = pytest.importorskip("fcntl")
HOLD = """
import pathlib, sys
from hnerv.runs.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path / 'run'."""
    (tmp_path / "run").mkdir()
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
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
    assert (tmp_path / "run" / NAME).exists()
    assert train(tmp_path, words) == 0
    assert not (tmp_path / "run" / NAME).exists()


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
    """Its holder ended between our opening the file and locking it: what we locked has no name any more."""
    flock, calls = fcntl.flock, []

    def late(handle, operation):
        if not calls:
            (tmp_path / NAME).unlink()
        calls.append(handle)
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path), pytest.raises(UserError), locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_locks_nothing(tmp_path, monkeypatch, code):
    def refuses(*_):
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuses)
    if code == errno.EIO:
        with pytest.raises(OSError, match="no locks"), locked(tmp_path):
            pass
        return
    with locked(tmp_path), locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
