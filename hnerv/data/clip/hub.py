"""Files of a repository on the Hugging Face hub: from the local cache, or downloaded, or a quick refusal."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence

ANSWER_SECONDS = 4.0
DEADLINE_SECONDS = 9.0
NOTICE_SECONDS = 8.0


class HubUnavailable(Exception):
    """The hub does not provide the file now; the message is the reason, for the middle of a sentence."""


def cached(repo: str, files: Sequence[str]) -> str:
    """Path of the first of `files` that the local Hugging Face cache has for `repo`, else ''. No network."""
    from huggingface_hub import try_to_load_from_cache

    paths = (try_to_load_from_cache(repo, name) for name in files)
    return next((path for path in paths if isinstance(path, str)), "")


def fetch(repo: str, files: Sequence[str]) -> str:
    """Download the first of `files` that the hub serves for `repo` -> its path in the local cache.

    Raises HubUnavailable: within DEADLINE_SECONDS where the hub does not answer, and at once where HF_HUB_OFFLINE is
    set. A download that stalls ends by HF_HUB_DOWNLOAD_TIMEOUT.
    """
    from huggingface_hub import hf_hub_download

    name = served(repo, files)
    notice = threading.Timer(
        NOTICE_SECONDS, logging.getLogger("hnerv").warning, ("still downloading %s/%s from the hub", repo, name)
    )
    notice.start()
    try:
        return hf_hub_download(repo, name)
    except Exception as error:  # the HTTP library of huggingface_hub, and so its exceptions, change between versions
        raise HubUnavailable(f"the download of {repo}/{name} failed ({_short_message(error)})") from error
    finally:
        notice.cancel()


def served(repo: str, files: Sequence[str]) -> str:
    """Name of the first of `files` that the hub serves for `repo`; downloads nothing. Raises HubUnavailable."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubUnavailable("HF_HUB_OFFLINE is set")
    # hf_hub_download itself is no quick question: when its etag_timeout has passed, it tries six times more, with a
    # minute each. get_hf_file_metadata sends one request. Its time-out still applies to each address of the host in
    # turn, and not to the look-up of the name, so a firewall that drops packets needs the deadline.
    answers: queue.SimpleQueue[str | HubUnavailable] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_first_served(repo, files)), daemon=True).start()
    try:
        answer = answers.get(timeout=DEADLINE_SECONDS)
    except queue.Empty:
        raise HubUnavailable(f"the hub did not answer within {DEADLINE_SECONDS:g} s") from None
    if isinstance(answer, HubUnavailable):
        raise answer
    return answer


def _first_served(repo: str, files: Sequence[str]) -> str | HubUnavailable:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    refusal = HubUnavailable(f"the hub does not serve {repo}")
    for name in files:
        try:
            get_hf_file_metadata(hf_hub_url(repo, name), timeout=ANSWER_SECONDS)
            return name
        except HfHubHTTPError as error:
            refusal = HubUnavailable(f"the hub does not serve {repo} (HTTP {error.response.status_code})")
        except Exception as error:
            return HubUnavailable(f"the hub cannot be reached ({_short_message(error)})")
    return refusal


def _short_message(error: Exception) -> str:
    """An exception in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
