"""`hnerv report`, `diagnose` and `doctor` as a user types them: what they print, where they write, how they end."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hnerv.cli import VERBS, build_parser, main
from hnerv.cli.report import size_text

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _root_logger():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def hnerv(capsys):
    """hnerv('diagnose', folder) -> (exit status, stdout, stderr)."""

    def call(*words):
        capsys.readouterr()
        try:
            main([*map(str, words)])
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots without their picture, which takes 0.1 s each."""
    monkeypatch.setattr("hnerv.viz.figure.svg_uri", lambda draw, extra=0.0: "data:,")


@pytest.mark.parametrize("verb", ["report", "diagnose", "doctor"])
def test_help_imports_nothing_heavy(verb):
    code = (
        "import sys\nfrom hnerv.cli import main\n"
        f"try:\n    main([{verb!r}, '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'av', 'jinja2', 'open_clip', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert VERBS[verb][1:20] in done.stdout


@pytest.mark.parametrize("kind", ["grid", "convnext"])
def test_report_writes_into_the_run(hnerv, run_of, tmp_path, evaluate, kind):
    run = shutil.copytree(run_of(kind), tmp_path / "run")
    status, out, err = hnerv("report", run)
    page = run / "report.html"
    assert (status, err) == (0, "") and out.startswith(f"report:    {page} (")
    text = page.read_text()
    assert page.stat().st_size < 2_000_000 and text.count('class="shot"') == 10
    assert "targets.safetensors" in text and "http" not in text.replace("http-equiv", "")


def test_report_of_several_runs_goes_next_to_them(hnerv, run, tmp_path, evaluate, undrawn):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    assert hnerv("report", run, other, "--frames", 4)[0] == 0
    assert (tmp_path / "report.html").read_text().count('class="shot"') == 8
    assert not (run / "report.html").exists()


def test_report_names_what_is_missing(hnerv, run, tmp_path, caplog, undrawn):
    shutil.rmtree(run / "checkpoints")
    status, out, _ = hnerv("report", run, "--out", tmp_path / "page.html")
    assert status == 0 and "page.html" in out
    missing = run / "checkpoints" / "latest.pt"
    assert [r.getMessage() for r in caplog.records][0].startswith(f"run: {missing} is missing: ")


@pytest.mark.parametrize(("size", "text"), [(12_345, "12.3 kB"), (1_000_000, "1.0 MB")])
def test_a_small_page_has_its_size_in_kb(size, text):
    assert size_text(size) == text


def test_the_page_has_one_flag_and_its_older_name():
    ask = [build_parser().parse_args(["report", "run", *words]) for words in ([], ["--output", "a"], ["--out", "a"])]
    assert [one.output for one in ask] == [None, Path("a"), Path("a")]


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["report", "none"], "none is not a run folder"),
        (["report", __file__], "is not a run folder: pass a folder such as output/NAME"),
        (["report", "RUN", "-o", "RUN"], "is a folder: choose another name"),
        (["report", "RUN", "--frames", "0"], "--frames 0 must be at least 1"),
        (["report", "RUN", "--device", "gpu"], "--device 'gpu' is not a device"),
        (["diagnose", "none"], "none is not a run folder"),
    ],
)
def test_refusals_are_one_line_with_status_2(hnerv, run, words, cause):
    before = sorted(run.rglob("*"))
    status, out, err = hnerv(*(str(run) if word == "RUN" else word for word in words))
    assert status == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"hnerv {words[0]}: ") and cause in err
    assert sorted(run.rglob("*")) == before


def test_diagnose_a_run_with_warnings(hnerv, run):
    """The run in miniature has learned nothing, and its targets are noise from a file."""
    status, out, err = hnerv("diagnose", run)
    assert (status, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == "run: 5 of 5 epochs, evaluated at epoch 5" and lines[1].startswith("warning ")
    assert any(line.startswith("warning similarity of unseen frames: -0.0") for line in lines)
    assert lines[-1] == "similarity is measured against the targets: file targets.safetensors"


def test_diagnose_a_run_without_warnings(hnerv, run):
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"epoch": e, "Train/PSNR": 20.0 + 3 * e}) + "\n" for e in range(1, 6))
    )
    status, out, _ = hnerv("diagnose", run)
    assert status == 0 and "good    rise in training PSNR: 12 dB (healthy: at least 3 dB)" in out


def test_diagnose_as_json(hnerv, run):
    status, out, _ = hnerv("diagnose", run, "--json")
    found = json.loads(out)
    assert status == 1 and {"level", "name", "tag", "value", "healthy", "advice"} == set(found[0])


def test_diagnose_writes_nothing(hnerv, run, snapshot):
    before = snapshot(run)
    hnerv("diagnose", run)
    assert snapshot(run) == before


def test_doctor(hnerv, tmp_path, monkeypatch):
    from hnerv.cli import doctor

    monkeypatch.setattr(doctor, "check_all", lambda output, online: [doctor.Check("torch", "ok", f"{output} {online}")])
    assert hnerv("doctor", "--output", tmp_path) == (0, f"ok      torch           {tmp_path} False\n", "")
    broken = [doctor.Check("torch", "fault", "broken", "mend it"), doctor.Check("x", "warning", "w")]
    monkeypatch.setattr(doctor, "check_all", lambda output, online: broken)
    status, out, _ = hnerv("doctor", "--json")
    assert status == 1 and json.loads(out)[0] == {
        "name": "torch",
        "level": "fault",
        "result": "broken",
        "fix": "mend it",
    }
    assert hnerv("doctor")[1].startswith("fault   torch           broken: mend it\n")
    monkeypatch.setattr(doctor, "check_all", lambda output, online: broken[1:])
    assert hnerv("doctor")[0] == 0


def test_doctor_needs_no_torch(monkeypatch):
    """A torch that cannot be imported is what it is there to find."""
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom hnerv.cli import main\n"
        "try:\n    main(['doctor'])\nexcept SystemExit as end:\n    assert end.code == 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "fault   torch " in done.stdout and "ok      python" in done.stdout and "Traceback" not in done.stderr


def test_the_parser_holds_every_verb():
    assert build_parser().parse_args(["report", "a", "b"]).runs == [Path("a"), Path("b")]
