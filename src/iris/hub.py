"""The Hub's many ways to say no, each as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import InputError, RunError


@contextmanager
def said_plainly(what: str) -> Iterator[None]:
    """Turn what huggingface_hub, datasets and transformers raise while loading `what` into one sentence: InputError
    where the user can mend it (gated, missing), RunError where the network or the Hub is at fault."""
    import httpx
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        for cause in _chain(error):
            status = getattr(getattr(cause, "response", None), "status_code", None)
            if isinstance(cause, GatedRepoError) or status == 403:
                raise InputError(f"{what} is gated: accept its terms on its page, then run `hf auth login`") from None
            if isinstance(cause, RepositoryNotFoundError) or status in (401, 404):
                raise InputError(
                    f"{what} is not on the Hub, or is private; check the name, or run `hf auth login`"
                ) from None
            if status == 429:
                raise RunError(f"the Hub is limiting requests (429) for {what}; wait a few minutes and go on") from None
            if isinstance(cause, HfHubHTTPError) and status is not None and status >= 500:
                raise RunError(f"the Hub failed ({status}) on {what}; try again in a while") from None
            offline = (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError, ConnectionError)
            if isinstance(cause, offline):
                raise RunError(f"the Hub cannot be reached for {what}; go online or give a local copy") from None
        raise RunError(f"{what} could not be loaded: {str(error).splitlines()[0] if str(error) else error!r}") from None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
