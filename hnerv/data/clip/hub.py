"""Files of a repository on the Hugging Face hub: out of the local cache, else downloaded, else a quick no."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

PROBE_SECONDS = 5.0
GIVE_UP_SECONDS = 9.0
SAY_SECONDS = 8.0
_log = logging.getLogger("hnerv")


class HubUnavailable(Exception):
    """The file cannot be had from the hub now; the message is the reason, for the middle of a sentence."""


def cached(repo: str, files: Sequence[str]) -> str:
    """Path of the first of `files` that the local Hugging Face cache holds for `repo`, else ''. No network."""
    from huggingface_hub import try_to_load_from_cache

    for name in files:
        path = try_to_load_from_cache(repo, name)
        if isinstance(path, str):
            return path
    return ""


def fetch(repo: str, files: Sequence[str]) -> str:
    """Download the first of `files` that the hub serves for `repo` and return its path in the local cache.

    The hub's client retries a dead line for minutes, so it is asked only after a short probe: a hub that cannot be
    reached costs at most GIVE_UP_SECONDS, and nothing where HF_HUB_OFFLINE is set. A download that lasts is spoken of
    every SAY_SECONDS; its client gives up one that stands still, after a minute. Raises HubUnavailable.
    """
    from huggingface_hub import hf_hub_download

    name = served(repo, files)
    try:
        with _spoken_of(f"{repo}/{name}"):
            return hf_hub_download(repo, name)
    except Exception as error:  # the client's HTTP library, and so its exceptions, differ between its versions
        raise HubUnavailable(f"the download of {repo}/{name} failed ({_brief(error)})") from error


def served(repo: str, files: Sequence[str]) -> str:
    """Name of the first of `files` that the hub serves for `repo`, without downloading it. Raises HubUnavailable."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubUnavailable("HF_HUB_OFFLINE is set")
    return _within(GIVE_UP_SECONDS, lambda: _first_served(repo, files))


def _first_served(repo: str, files: Sequence[str]) -> str:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import get_session

    for name in files:
        status = get_session().head(hf_hub_url(repo, name), timeout=PROBE_SECONDS).status_code
        if status < 400:
            return name
    raise HubUnavailable(f"the hub does not serve {repo} (HTTP {status})")


def _within(seconds: float, work: Callable[[], str]) -> str:
    """The result of `work`, or HubUnavailable after `seconds`: a name look-up heeds no time-out of the client."""
    outcome: list[str | Exception] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise HubUnavailable(f"the hub did not answer within {seconds:g} s")
    if isinstance(outcome[0], HubUnavailable):
        raise outcome[0]
    if isinstance(outcome[0], Exception):
        raise HubUnavailable(f"the hub cannot be reached ({_brief(outcome[0])})") from outcome[0]
    return outcome[0]


@contextlib.contextmanager
def _spoken_of(what: str) -> Iterator[None]:
    done = threading.Event()

    def say() -> None:
        start = time.monotonic()
        while not done.wait(SAY_SECONDS):
            _log.warning("still downloading %s from the hub, after %.0f s", what, time.monotonic() - start)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _brief(error: Exception) -> str:
    """One short line of an exception."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
