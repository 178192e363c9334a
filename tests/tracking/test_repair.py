"""Torn logs: every record that is whole stays, every other one goes, and a file without fault is not touched."""

from __future__ import annotations

import json
import random

import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from hnerv.tracking import RunLogger, events_folder, metrics_file, rewind
from hnerv.tracking.repair import repair_events, repair_lines, whole_records

EPOCHS = range(1, 9)


@pytest.fixture
def logged(tmp_path):
    """A run folder with events and lines of 8 epochs."""
    with RunLogger(events_folder(tmp_path), metrics_file(tmp_path), 0) as logger:
        for epoch in EPOCHS:
            logger.scalars({"Train/PSNR": float(epoch)}, epoch)
            logger.text("Model/Info/run", "\0" * 300, epoch)
            logger.record("train", {"epoch": epoch})
        logger.position()
    return tmp_path


def events_file(run):
    (path,) = events_folder(run).iterdir()
    return path


def epochs_of(run):
    return [json.loads(line)["epoch"] for line in metrics_file(run).read_text().splitlines()]


def test_a_file_without_fault_is_not_touched(logged):
    paths = events_file(logged), metrics_file(logged)
    before = [(path.read_bytes(), path.stat().st_ino) for path in paths]
    repair_events(paths[0])
    repair_lines(paths[1])
    assert [(path.read_bytes(), path.stat().st_ino) for path in paths] == before


def test_events_torn_at_every_byte_of_the_last_two_records(logged):
    path = events_file(logged)
    data = path.read_bytes()
    spans = whole_records(data)
    assert len(spans) > 2 * len(EPOCHS) and spans[-1][1] == len(data)
    for length in range(spans[-2][0], len(data)):
        path.write_bytes(data[:length])
        repair_events(path)
        whole = max(end for _, end in spans if end <= length)
        assert path.read_bytes() == data[:whole], length


def test_events_torn_in_the_middle_keep_what_follows(logged, events_of):
    """Half a record, and the next one right behind it, as when a disk was full for a while."""
    path = events_file(logged)
    data, draw = path.read_bytes(), random.Random(0)
    spans = whole_records(data)
    for (start, end), (_, next_end) in zip(spans[1:], spans[2:], strict=False):
        for cut in {1, 7, 8, 11, 12, end - start - 1, draw.randrange(1, end - start)}:
            path.write_bytes(data[: start + cut] + data[end:])
            repair_events(path)
            if data[end:].startswith(data[start + cut : end]):  # the next record's first byte is the one that was lost
                assert path.read_bytes() == data[:end] + data[next_end:], (start, cut)
            else:
                assert path.read_bytes() == data[:start] + data[end:], (start, cut)
    start, end = spans[-2 * len(EPOCHS) :][4]  # the scalar of epoch 3
    path.write_bytes(data[: start + 9] + data[end:])
    repair_events(path)
    assert [step for step, _ in events_of(events_folder(logged))["Train/PSNR"]] == [1, 2, 4, 5, 6, 7, 8]


def test_a_record_that_the_next_one_completes_stays_and_the_next_one_goes(tmp_path):
    """Its check sum ends with the byte that the next one's length begins with: by chance in 1 of 256 records."""

    def record(data):
        length = len(data).to_bytes(8, "little")
        return b"".join(part for text in (length, data) for part in (text, masked_crc32c(text).to_bytes(4, "little")))

    completed = next(text for text in map(record, map(str.encode, map(str, range(10_000)))) if text[-1] == 32)
    first, following, last = record(b"first"), record(b"x" * 32), record(b"last")
    path = tmp_path / "events.1"
    path.write_bytes(first + completed[:-1] + following + last)
    repair_events(path)
    assert path.read_bytes() == first + completed + last


def test_a_tail_of_zeros_or_noise_goes(logged):
    """What a machine that lost its power leaves of the blocks it had not written."""
    path = events_file(logged)
    data = path.read_bytes()
    for tail in (bytes(5000), random.Random(1).randbytes(5000)):
        path.write_bytes(data + tail)
        repair_events(path)
        assert path.read_bytes() == data
    path.write_bytes(data[:-20] + bytes(20))
    repair_events(path)
    assert path.read_bytes() == data[: whole_records(data)[-1][0]]


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 40])
def test_what_holds_no_record_ends_empty(tmp_path, data):
    for name, repair in (("events.1", repair_events), ("metrics.jsonl", repair_lines)):
        (tmp_path / name).write_bytes(data)
        repair(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b""


def test_lines_torn_anywhere(logged):
    path = metrics_file(logged)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        repair_lines(path)
        assert path.read_bytes() == data[: data[:length].rfind(b"\n") + 1]
    torn = data.replace(b'"epoch": 3}\n', b'"epo').replace(b'"epoch": 6}', b'"epoch"\xff')
    path.write_bytes(torn)
    repair_lines(path)
    assert epochs_of(logged) == [1, 2, 5, 7, 8]  # 4 stood on the line that 3 had not ended


def test_rewind_mends_files_shorter_than_the_checkpoint_knew_them(logged, events_of):
    paths = events_file(logged), metrics_file(logged)
    position = {path.name: path.stat().st_size for path in paths}
    for path in paths:
        path.write_bytes(path.read_bytes()[:-5])
    rewind(logged, position)
    with RunLogger(events_folder(logged), metrics_file(logged), 9) as logger:
        logger.scalars({"Train/PSNR": 9.0}, 9)
        logger.record("train", {"epoch": 9})
    assert epochs_of(logged) == [*range(1, 8), 9]
    assert [step for step, _ in events_of(events_folder(logged))["Train/PSNR"]] == [*range(1, 10)]
