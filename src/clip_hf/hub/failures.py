"""What fails between here and the Hub: what passes is tried again, and the rest says what to do."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import _http, httpx, parse_ratelimit_headers
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
# OSErrors are those of hf_xet, which sends large files, and of reading them here.
FAILURES = (HTTPError, RuntimeError, OSError)

Result = TypeVar("Result")


class PushError(Exception):
    """A push that did not succeed; the message says what to do."""


def checked_token(token: str | None) -> str | None:
    """Returns a token without white space around it, as a file has it; None where there is nothing else.

    Args:
        token: as somebody gave it.

    Raises:
        ValueError: it can be none; the message does not show it.
    """
    token = (token or "").strip()
    if not re.fullmatch("[!-~]*", token):
        raise ValueError("the token has characters that no token has, such as a space: give it as the Hub shows it")
    return token or None


def retry(call: Callable[[], Result]) -> Result:
    """Returns what the call returns, once the Hub is able to answer it; to be called inside `explained`."""
    for wait in WAIT_SECONDS:
        try:
            return call()
        except FAILURES as error:
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
    if isinstance(error, HfHubHTTPError):
        return status_of(error) in PASSING
    if isinstance(error, OfflineModeIsEnabled | httpx.LocalProtocolError):
        return False
    return isinstance(error, HTTPError | ConnectionError | TimeoutError)


def _asked_seconds(error: BaseException) -> float:
    """What the Hub asks to wait, in its own header or else the usual one."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    limit, after = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    return float(after) if after.isdecimal() else 0.0


def _short(error: BaseException) -> str:
    status = status_of(error)
    return f"The Hub answered {status}" if status is not None else f"The connection failed ({type(error).__name__})"


@contextmanager
def explained(repo_id: str, token: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into a `PushError` that says what to do; a silent Hub fails, too.

    Args:
        repo_id: what is pushed to.
        token: that was given; by default there is the one of this machine, or none.
    """
    try:
        with _bounded_silence():
            yield
    except OfflineModeIsEnabled as error:
        raise PushError("HF_HUB_OFFLINE is set, so nothing can be sent: unset it") from error
    except httpx.LocalProtocolError:  # whose text has the header, and so the token
        raise PushError("The token has characters that cannot be sent: give it as the Hub shows it") from None
    except FAILURES as error:
        raise PushError(_explanation(_cause(error), repo_id, token or get_token())) from error


@contextmanager
def _bounded_silence() -> Iterator[None]:
    """Gives a timeout to every client of huggingface_hub; it makes a new one whenever a connection cannot be made."""
    with _Bound.lock:
        if _Bound.num_inside == 0:
            _Bound.make_client = _http._GLOBAL_CLIENT_FACTORY  # maybe the user's; there is no public way to ask
            set_client_factory(_make_bounded_client)
        _Bound.num_inside += 1
    try:
        yield
    finally:
        with _Bound.lock:
            _Bound.num_inside -= 1
            if _Bound.num_inside == 0:
                set_client_factory(_Bound.make_client)


class _Bound:
    """Of all threads: pushes that do not block each have one."""

    lock = threading.Lock()
    num_inside = 0
    make_client: Callable[[], httpx.Client]


def _make_bounded_client() -> httpx.Client:
    client = _Bound.make_client()
    client.timeout = MOST_SILENT_SECONDS
    return client


def _explanation(error: BaseException, repo_id: str, token: str | None) -> str:
    status = status_of(error)
    namespace = repo_id.partition("/")[0]
    if isinstance(error, OSError) and error.filename is not None:
        return f"A file cannot be read. {error.filename}: {error.strerror}"
    if status == 401 and token is None:
        return "There is no token: run `hf auth login`, or set HF_TOKEN to one that may write"
    if status == 401:
        return "The Hub does not know the token, or it has expired: make one that may write, and run `hf auth login`"
    if status == 403 or isinstance(error, PermissionError):
        return (
            f"The token may not write to {repo_id}: take one with write access, of '{namespace}' or of a "
            "member; or choose another namespace; or propose the change with create_pr"
        )
    if status == 429:
        seconds = _asked_seconds(error)
        asked = f"for {seconds:.0f} seconds" if seconds else "for some minutes"
        return f"The Hub has had too many requests: wait {asked}. {AGAIN}"
    if _passes(error):
        return f"{_short(error)}, several times over. {AGAIN} Is https://status.huggingface.co green?"
    if status is None:
        return f"The upload failed: {error}. {AGAIN}"
    return f"The Hub answered {status}: {getattr(error, 'server_message', None) or error}"
