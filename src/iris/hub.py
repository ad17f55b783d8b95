"""The Hub's many ways to say no, each as one sentence, and patience where patience helps."""

from __future__ import annotations

import errno
import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .errors import InputError, RunError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

WAITS = (1, 3, 9)  # seconds before the second, third and fourth try
LONGEST_WAIT = 300  # the Hub counts requests in windows of five minutes
TIMEOUT = 20  # seconds for the answer to one question
NEEDED = ["*.json", "*.jinja", "*.model", "*.safetensors"]  # the files of a model that transformers reads


class PassingError(RunError):
    """A failure that may pass by itself; `seconds` is how long the Hub asks to wait, where it says so."""

    def __init__(self, message: str, seconds: float | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds


def patiently(what: str, work: Callable[[], T], waits: tuple[float, ...] | None = None) -> T:
    """work(), tried again where that helps: when the Hub limits requests, fails, breaks off or cannot be reached;
    `waits` (WAITS) are the seconds before each new try. Ends as said_plainly does."""
    for wait in (*(WAITS if waits is None else waits), None):
        try:
            with said_plainly(what):
                return work()
        except PassingError as error:
            if wait is None or (error.seconds or 0) > LONGEST_WAIT:
                raise
            pause = max(wait, error.seconds or 0)
            print(f"{str(error).partition(';')[0]}; trying again in {pause:.0f} s", file=sys.stderr, flush=True)
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def revision(repo_id: str, repo_type: str = "model") -> str:
    """The commit that is now the newest of a model or a dataset; where the Hub is out of reach, that of the copy kept
    on this machine."""
    from huggingface_hub import HfApi

    api = HfApi()
    # resolve_revision knows no timeout of its own, and would wait for a hanging server for ever
    api.repo_info = functools.partial(api.repo_info, timeout=TIMEOUT)  # type: ignore[method-assign]
    what = f"the {'data set' if repo_type == 'dataset' else repo_type} {repo_id}"
    return patiently(what, lambda: api.resolve_revision(repo_id, repo_type=repo_type).resolved)


def snapshot(repo_id: str, commit: str) -> Path:
    """Bring the configuration, tokenizer and weights of a model's commit into the local cache; returns their folder.

    To be called before transformers loads them: it takes a file that the Hub fails to deliver for one that is not
    there, and goes on with another tokenizer. What lies in the cache it does not ask for."""
    from huggingface_hub import snapshot_download

    download = functools.partial(snapshot_download, allow_patterns=NEEDED, ignore_patterns=["original/*"])
    return Path(patiently(f"the model {repo_id}", lambda: download(repo_id, revision=commit)))


@contextmanager
def said_plainly(what: str) -> Iterator[None]:
    """Turn what huggingface_hub, datasets and transformers raise while loading `what` into one sentence: InputError
    where the user can mend it (gated, missing, damaged), RunError where the network or the Hub is at fault."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        raise _plain(what, error) from None


def _plain(what: str, error: Exception) -> InputError | RunError:
    import httpx
    from huggingface_hub.errors import LocalEntryNotFoundError, LocalTokenNotFoundError, OfflineModeIsEnabled

    chain = list(_chain(error))
    for cause in chain:
        # an answer of the Hub, wherever in the chain, says more than what the clients made of it
        if isinstance(response := getattr(cause, "response", None), httpx.Response) and response.status_code >= 400:
            return _refusal(what, response)
    for cause in chain:
        if isinstance(cause, LocalTokenNotFoundError):
            return InputError(f"{what} needs a Hugging Face token; run `hf auth login` or set HF_TOKEN")
        if isinstance(cause, OfflineModeIsEnabled):
            return RunError(f"the Hub cannot be reached for {what}; unset HF_HUB_OFFLINE or give a local copy")
        if isinstance(cause, httpx.LocalProtocolError):  # raised before anything is sent
            return InputError("your Hugging Face token cannot be sent as it is; run `hf auth login` again")
        if isinstance(cause, (LocalEntryNotFoundError, httpx.TransportError, ConnectionError)):
            return PassingError(f"the Hub cannot be reached for {what}; go online or give a local copy")
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return RunError(f"the disk is full, {what} does not fit; free some space or set HF_HOME to another disk")
    if isinstance(error, json.JSONDecodeError) or "Consistency check failed" in str(error):
        return PassingError(f"the Hub's answer about {what} was broken; try again in a while")
    if "LFS batch API returned errors" in str(error):  # the reasons stand on the lines below
        told = re.sub(r"hf_\w+", "hf_...", str(error).splitlines()[-1])
        return InputError(f"the Hub does not take a file of {what}: {told}")
    told = _first_line(error)
    match type(
        error
    ).__name__:  # datasets keeps the answer to itself; its classes are not imported for their names only
        case "DatasetNotFoundError":
            return _gated(what) if "gated" in told else _absent(what)
        case "DataFilesNotFoundError" | "EmptyDatasetError":
            return InputError(f"{what} holds no data file that can be read; choose another data set")
        case "DatasetGenerationError":
            why = _first_line(chain[-1])
            return InputError(f"{what} has a file that cannot be read ({why}); choose another data set")
    kind = InputError if isinstance(error, (FileNotFoundError, ValueError)) else RunError
    return kind(f"{what} could not be loaded: {told}")


def _refusal(what: str, response: httpx.Response) -> InputError | RunError:
    status, code = response.status_code, response.headers.get("X-Error-Code")
    if code == "GatedRepo":
        return _gated(what)
    if code == "EntryNotFound":
        missing = response.url.path.rpartition("/")[2]
        return InputError(f"{what} lacks the file {missing}; choose another, or mend it on the Hub")
    if code == "RevisionNotFound":
        return InputError(f"{what} no longer has the commit that was asked for; check its history on the Hub")
    if status == 401 and "Invalid credentials" in response.headers.get("X-Error-Message", ""):
        return InputError("the Hub refuses your token (401); run `hf auth login` with a new one, or unset HF_TOKEN")
    if status in (401, 404):
        return _absent(what)
    if status == 403:
        return InputError(
            f"your token may not use {what} (403); give it that right on https://huggingface.co/settings/tokens"
        )
    if status == 429:
        seconds = _asked_wait(response)
        how_long = f"{seconds:.0f} seconds" if seconds else "a few minutes"
        return PassingError(f"the Hub is limiting requests (429) for {what}; wait {how_long} and go on", seconds)
    if status == 402:
        return InputError(f"{what} needs a paid plan or more storage (402); see https://huggingface.co/pricing")
    if status in (409, 412):
        return PassingError(f"somebody else is changing {what} ({status}); try again in a while")
    if status == 413:
        return InputError(f"{what} has a file larger than the Hub takes (413); export smaller quantizations")
    if status >= 500 or status == 408:
        return PassingError(f"the Hub failed ({status}) on {what}; try again in a while", _asked_wait(response))
    return RunError(f"the Hub did not accept what was asked about {what} ({status}); update Iris, or report this")


def _absent(what: str) -> InputError:
    return InputError(f"{what} is not on the Hub, or is private; check the name, or run `hf auth login`")


def _gated(what: str) -> InputError:
    return InputError(f"{what} is gated: accept its terms on its page, then run `hf auth login`")


def _asked_wait(response: httpx.Response) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers

    if (limit := parse_ratelimit_headers(response.headers)) and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = response.headers.get("Retry-After", "")
    return float(after) if after.isdigit() else None


def _first_line(error: BaseException) -> str:
    """The first line of what an error says; a token in it is made unreadable."""
    line = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    return re.sub(r"hf_\w+|(?<=Bearer )\S+", "hf_...", line)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
