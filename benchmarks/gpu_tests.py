"""pytest plugin of `gpu.py`: print the result of each test as one line of JSON when it ends.

A killed pytest prints no summary; these lines stay in the log. `-p gpu_tests` loads it from PYTHONPATH.
"""

from __future__ import annotations

import json

MARK = "\n@result "


def pytest_collection_finish(session) -> None:
    print(MARK + json.dumps({"selected": len(session.items)}), flush=True)


def pytest_runtest_logreport(report) -> None:
    """A test that passes reports setup, call and teardown; only the call counts."""
    if report.when == "call" or not report.passed:
        found = {"test": report.nodeid, "outcome": report.outcome if report.when == "call" else "error"}
        if report.skipped:
            found["outcome"] = "skipped"
        print(MARK + json.dumps(found | {"message": last_error(report.longreprtext)}), flush=True)


def last_error(text: str) -> str:
    """The last line of a traceback that pytest marks with `E`, without its explanations `+  where`."""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return next((line for line in reversed(lines) if line and not line.startswith("+ ")), "")
