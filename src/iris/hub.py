"""Hugging Face's errors as one sentence each (`translate_errors`), and new tries where they help (`retry`)."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar

import httpx
from huggingface_hub import HfApi, errors, get_session, snapshot_download
from huggingface_hub.utils import parse_ratelimit_headers

from . import InputError, RunError

T = TypeVar("T")

WAITS = (1, 3, 9)  # seconds before the second, third and fourth try
LONGEST_WAIT = 300  # the Hub counts requests in windows of five minutes
TIMEOUT = 60  # seconds of silence after which a connection is given up
NEEDED = ["*.json", "*.jinja", "*.model", "*.safetensors"]  # the files of a model that transformers reads


class TransientError(RunError):
    """A failure that may pass by itself; `seconds` is how long the Hub asks to wait, 0 where it does not say."""

    def __init__(self, message: str, seconds: float = 0) -> None:
        super().__init__(message)
        self.seconds = seconds


TRANSIENT = (408, 409, 412, 429)  # answers of the Hub that may be another one next time, as those from 500 on
# What helps where the Hub refuses something: by the class of the error, else by the HTTP status of the answer.
HELP: dict[type | int, str] = {
    errors.GatedRepoError: "it is gated: accept its terms on its page, then run `hf auth login`",
    401: "check the name, or run `hf auth login` with a token that may use it",
    402: "see https://huggingface.co/pricing",
    403: "see what your token may do on https://huggingface.co/settings/tokens",
    404: "check the name, or run `hf auth login` if it is private",
    413: "export smaller quantizations",
}


def retry(what: str, work: Callable[[], T], waits: tuple[float, ...] | None = None) -> T:
    """work(), tried again where that helps: when the Hub limits requests, fails, breaks off or cannot be reached;
    `waits` (WAITS) are the seconds before each new try. Ends as translate_errors does."""
    for wait in (*(WAITS if waits is None else waits), None):
        get_session().timeout = TIMEOUT  # huggingface_hub's own client would wait for a silent server for ever
        try:
            with translate_errors(what):
                return work()
        except TransientError as error:
            if wait is None or error.seconds > LONGEST_WAIT:
                raise
            pause = max(wait, error.seconds)
            print(f"{str(error).partition(';')[0]}; trying again in {pause:.0f} s", file=sys.stderr, flush=True)
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


class _Api(HfApi):
    """The client, but `resolve_revision`, which calls this and knows no timeout, does not wait for ever."""

    def repo_info(self, *args: Any, **options: Any) -> Any:
        return super().repo_info(*args, **options, timeout=TIMEOUT)


def revision(repo_id: str, repo_type: str = "model") -> str:
    """The newest commit of a model or a dataset; where the Hub is out of reach, that of the copy on this machine."""
    what = f"the {'data set' if repo_type == 'dataset' else repo_type} {repo_id}"
    return retry(what, lambda: _Api().resolve_revision(repo_id, repo_type=repo_type).resolved)


def snapshot(repo_id: str, commit: str) -> Path:
    """Bring the files of a model's commit into the local cache, where they are not there yet; returns their folder.
    (transformers takes a file that the Hub fails to deliver for one that is not there.)"""
    options: dict[str, Any] = {"allow_patterns": NEEDED, "ignore_patterns": ["original/*"]}
    return Path(retry(f"the model {repo_id}", lambda: snapshot_download(repo_id, revision=commit, **options)))


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Turn what huggingface_hub, datasets and transformers raise while loading `what` into one sentence: InputError
    where the user can mend it (gated, missing, damaged), RunError where the network or the Hub is at fault."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        raise _translate(what, error) from None


def _translate(what: str, error: Exception) -> InputError | RunError:
    causes: list[BaseException] = [error]
    while (below := causes[-1].__cause__ or causes[-1].__context__) and below not in causes:
        causes.append(below)
    # the Hub's own answer, however deep it lies, says more than what the clients made of it
    for cause in sorted(causes, key=lambda each: not isinstance(each, errors.HfHubHTTPError)):
        match cause:
            case errors.HfHubHTTPError():
                return _translate_answer(what, cause)
            case errors.LocalTokenNotFoundError() | httpx.LocalProtocolError():  # a token that cannot be sent
                return InputError(f"{what} needs a good Hugging Face token; run `hf auth login` or set HF_TOKEN")
            case errors.OfflineModeIsEnabled():
                return RunError(f"the Hub cannot be reached for {what}; unset HF_HUB_OFFLINE or give a local copy")
            case httpx.TransportError() | errors.LocalEntryNotFoundError() | ConnectionError():
                return TransientError(f"the Hub cannot be reached for {what}; go online or give a local copy")
    if isinstance(error, JSONDecodeError):
        return TransientError(f"the Hub's answer about {what} was broken; try again in a while")
    mendable = any(isinstance(cause, (FileNotFoundError, ValueError)) for cause in causes)
    kind = InputError if mendable else RunError
    return kind(f"{what} will not do: {readable(str(error.__cause__ or error) or repr(error))}")


def _translate_answer(what: str, error: errors.HfHubHTTPError) -> InputError | RunError:
    status, headers = error.response.status_code, error.response.headers
    reason = f"{status}: {readable(error.server_message or error.response.reason_phrase)}"
    if status in TRANSIENT or status >= 500:
        limit, after = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
        seconds = int(after) if after.isdigit() else 0
        if limit and limit.remaining == 0:
            seconds = limit.reset_in_seconds
        wait = f"{seconds} seconds" if seconds else "a few minutes"
        return TransientError(f"the Hub failed on {what} ({reason}); wait {wait} and go on", seconds)
    if isinstance(error, errors.RemoteEntryNotFoundError):
        what = f"{Path(error.response.url.path).name} of {what}"
    advice = HELP.get(type(error)) or HELP.get(status, "mend that, or report it")
    return InputError(f"the Hub refuses {what} ({reason}); {advice}")


def readable(text: str) -> str:
    """`text` on one line, at most 120 characters, with any token in it made unreadable."""
    return re.sub(r"hf_\w+|(?<=Bearer )\S+", "hf_...", " ".join(text.split()))[:120]
