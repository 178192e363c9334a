"""One line per epoch where there is no terminal, with the values of the log."""

from __future__ import annotations

from hnerv.tracking.console import Console


def test_lines(capsys):
    with Console(3, 2, 0) as console:
        console.step()
        console.epoch(1, {"Train/PSNR": 31.234, "Train/Loss/pixel_loss": 0.00123}, 1.26)
        console.evaluation(1, {"Eval/Frame/train_psnr": 30.0})
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "epoch    1/3  PSNR 31.23  pixel 1.23e-03  1.3 s",
        "eval     1/3  training PSNR 30.00",
    ]
    assert err == ""


def test_unseen_frames_that_the_encoder_saw_are_called_so(capsys):
    names = ("psnr", "psnr_frame", "clip_sim")
    values = {f"Eval/Frame/{split}_{name}": 1.0 for name in names for split in ("train", "val")}
    with Console(3, 2, 0) as console:
        console.evaluation(1, values)
        console.evaluation(2, values, "interpolate")
        console.evaluation(3, values, "encode")
    plain, also_plain, encoded = capsys.readouterr().out.splitlines()
    assert plain.endswith(
        "training PSNR 1.00  unseen PSNR 1.00  training full-frame PSNR 1.00  unseen full-frame PSNR 1.00  "
        "training similarity 1.0000  unseen similarity 1.0000"
    )
    assert also_plain[14:] == plain[14:]
    assert encoded[14:] == plain[14:].replace("unseen ", "unseen-encoded ")


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Console(3, 2, 0) as console:
        console.step()
        console.epoch(1, {"Train/PSNR": 31.234}, 1.0)
    out, err = capsys.readouterr()
    assert out == "" and "PSNR 31.23" in err
