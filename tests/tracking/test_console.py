"""Lines for people where stderr is not a terminal, a bar where it is."""

from __future__ import annotations

from hnerv.tracking.console import Console

EVERY = {f"Eval/Frame/{split}_{name}": 1.0 for name in ("psnr", "psnr_frame", "clip_sim") for split in ("train", "val")}


def test_lines(capsys):
    with Console(3, 2, 0) as console:
        console.step()
        console.epoch(1, {"Train/PSNR": 31.234, "Train/Loss/pixel_loss": 0.00123}, 1.26)
        console.evaluation(1, {"Eval/Frame/train_psnr": 30.0})
        console.evaluation(2, EVERY, "encode")
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines() == [
        "epoch    1/3  PSNR 31.23  pixel 1.23e-03  1.3 s",
        "eval     1/3  training PSNR 30.00",
        "eval     2/3  training PSNR 1.00  unseen-encoded PSNR 1.00  training full-frame PSNR 1.00  "
        "unseen-encoded full-frame PSNR 1.00  training similarity 1.0000  unseen-encoded similarity 1.0000",
    ]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Console(3, 2, 0) as console:
        console.step()
        console.epoch(1, {"Train/PSNR": 31.234}, 1.0)
    out, err = capsys.readouterr()
    assert out == "" and "PSNR 31.23" in err
