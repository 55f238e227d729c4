"""What fails between here and the Hub: what passes is tried again, and the rest says what to do."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Between attempts, unless the Hub asks for more; where it asks for more than the most, the push ends.
WAIT_SECONDS = (1.0, 4.0, 16.0, 60.0)
MOST_WAIT_SECONDS = 600.0
# Of one connection; huggingface_hub would wait without end.
MOST_SILENT_SECONDS = 120.0
# Too many requests, a commit by somebody else meanwhile, and the Hub's own failures.
PASSING = {408, 412, 429, 500, 502, 503, 504}
AGAIN = "Nothing was lost here: push again, and what is missing is sent."

Result = TypeVar("Result")


class PushError(Exception):
    """A push that did not succeed; the message says what to do."""


def retry(call: Callable[[], Result]) -> Result:
    """Returns what the call returns, once the Hub is able to answer it."""
    for wait in WAIT_SECONDS:
        get_session().timeout = MOST_SILENT_SECONDS
        try:
            return call()
        except (HTTPError, RuntimeError) as error:
            cause = _cause(error)
            wait = max(wait, _asked_seconds(cause))
            if not _passes(cause) or wait > MOST_WAIT_SECONDS:
                raise
            logger.warning(f"{_short(cause)}; trying again in {wait:.0f} s")
            time.sleep(wait)
    return call()


def _cause(error: Exception) -> BaseException:
    """What went wrong in an upload, which huggingface_hub reports as a RuntimeError."""
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error


def status_of(error: BaseException) -> int | None:
    """Returns the status that the Hub answered with, None where there was no answer."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _passes(error: BaseException) -> bool:
    return status_of(error) in PASSING if isinstance(error, HfHubHTTPError) else isinstance(error, HTTPError)


def _asked_seconds(error: BaseException) -> float:
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(asked) if asked.isdecimal() else 0.0


def _short(error: BaseException) -> str:
    status = status_of(error)
    return f"The Hub answered {status}" if status is not None else f"The connection failed ({type(error).__name__})"


@contextmanager
def explained(repo_id: str, token: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into a `PushError` that says what to do.

    Args:
        repo_id: what is pushed to.
        token: that was given; by default there is the one of this machine, or none.
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PushError("HF_HUB_OFFLINE is set, so nothing can be sent: unset it") from error
    except (HTTPError, RuntimeError) as error:
        raise PushError(_explanation(_cause(error), repo_id, token or get_token())) from error


def _explanation(error: BaseException, repo_id: str, token: str | None) -> str:
    status = status_of(error)
    namespace = repo_id.partition("/")[0]
    if status == 401 and token is None:
        return "There is no token: run `hf auth login`, or set HF_TOKEN to one that may write"
    if status == 401:
        return "The Hub does not know the token, or it has expired: make one that may write, and run `hf auth login`"
    if status == 403:
        return (
            f"The token may not write to {repo_id}: take one with write access, of '{namespace}' or of a "
            "member; or choose another namespace; or propose the change with create_pr"
        )
    if status == 429:
        seconds = _asked_seconds(error)
        asked = f"for {seconds:.0f} seconds" if seconds else "for some minutes"
        return f"The Hub has had too many requests: wait {asked}. {AGAIN}"
    if not isinstance(error, HTTPError):
        return f"The upload failed: {error}. {AGAIN}"
    if status is None or status in PASSING:
        return f"{_short(error)}, several times over. {AGAIN} Is https://status.huggingface.co green?"
    return f"The Hub answered {status}: {getattr(error, 'server_message', None) or error}"
