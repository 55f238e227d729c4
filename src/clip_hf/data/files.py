"""Files near and far: patterns of names, whole copies of remote files, reads that are tried again."""

import fcntl
import hashlib
import itertools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

import aiohttp
import fsspec
from huggingface_hub import constants

RETRY_SECONDS = (0.5, 1, 2, 4, 8)
"""Pauses between attempts to read a remote file."""

NUM_KEPT_COPIES = 64
"""Copies of remote files that stay on this machine's disk; the one unused for longest goes first."""

_VERSION_FIELDS = (
    *("size", "ETag", "etag", "Content-MD5", "Digest", "md5Hash", "generation", "blob_id"),
    *("Last-Modified", "LastModified", "last_modified", "updated", "mtime", "created"),
)
"""By which the file systems of fsspec tell one version of a file from the next; each knows some of them."""

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)
_FINAL_STATUS = {401, 403, 404, 410}  # of servers; the others may answer otherwise in a while
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
Value = TypeVar("Value")


def is_remote(path: str) -> bool:
    """Returns whether a path is a URL."""
    return "://" in path


def file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns what reads a path, near or far, and the name of the path in it.

    Raises:
        OSError: the library for such addresses is not installed; the message names it.
        ValueError: there are no such addresses.
    """
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise OSError(f"{path}: {error}") from error


def without_query(path: str) -> str:
    """Returns a path or, of a web address, what comes before its query: a signature, which is another each time.

    Unless the query names the file: nothing before it then ends as a file's name does.
    """
    bare = path.partition("?")[0] if path.startswith(("http://", "https://")) else path
    return bare if PurePosixPath(bare).suffix else path


def expand_braces(pattern: str) -> list[str]:
    """Returns all names that a pattern of braces stands for: `{000..123}` counts, `{a,b}` lists."""
    parts = _BRACES.split(pattern)
    choices = [[part] if number % 2 == 0 else _expand_one(part) for number, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def _expand_one(inside: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",")
    first, last = match.groups()
    if int(first) > int(last):
        raise ValueError(f"{{{inside}}} counts down: write {{{last}..{first}}}")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def find_files(pattern: str) -> list[str]:
    """Returns the files or folders that a path with braces, `*` or `?` stands for, in the pattern's order.

    Raises:
        OSError: a name stands for no file; or a remote one could not be looked for in any attempt.
    """
    if _exists(pattern):
        return [pattern if is_remote(pattern) else file_system(pattern)[1]]
    files = []
    for name in expand_braces(pattern):
        found = _find(name)
        if not found:
            raise FileNotFoundError(f"there is no file {name}" + (f" (of {pattern})" if name != pattern else ""))
        files += found
    return files


def _exists(name: str) -> bool:
    system, path = file_system(name)
    try:
        with_retries(name, lambda: system.info(path))
    except FileNotFoundError:
        return False
    return True


def _find(name: str) -> list[str]:
    system, path = file_system(name)
    if _exists(name):
        found = [path]
    else:
        found = with_retries(name, lambda: sorted(system.glob(path))) if any(sign in path for sign in "*?[") else []
    return [system.unstrip_protocol(one) if is_remote(name) else one for one in found]


def read_bytes(path: str) -> bytes:
    """Returns what a file holds; reads of remote files are tried again.

    Raises:
        OSError: the file is not there, or could not be read in any attempt.
    """
    if not is_remote(path):
        return Path(path).read_bytes()
    system, remote = file_system(path)
    return with_retries(path, lambda: system.cat_file(remote))


def with_retries(name: str, read: Callable[[], Value]) -> Value:
    """Returns what a function that reads a remote file returns, calling it again, after a pause, when it fails.

    Raises:
        OSError: it failed in every attempt; or there is no such file, or none for us, which is not tried again.
    """
    for number, pause in enumerate((*RETRY_SECONDS, None), 1):
        try:
            return read()
        except Exception as error:  # every protocol has exceptions of its own
            if _is_final(error) and isinstance(error, OSError):
                raise
            if _is_final(error) or pause is None:
                raise OSError(f"{name}: {type(error).__name__}: {error} ({number} attempts)") from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _is_final(error: BaseException) -> bool:
    """Whether another attempt is in vain. A server that is busy or away is a file that is not there, to fsspec."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    if isinstance(first, aiohttp.ClientResponseError):
        return first.status in _FINAL_STATUS
    return isinstance(error, _FINAL) and not isinstance(first, aiohttp.ClientError | ConnectionError | TimeoutError)


def cache_folder() -> Path:
    """Returns where copies of remote files lie: `CLIP_HF_CACHE`, or a folder among Hugging Face's caches."""
    named = os.environ.get("CLIP_HF_CACHE")
    return Path(named or Path(constants.HF_ASSETS_CACHE, "clip_hf"))


def local_copy(path: str, num_kept: int = NUM_KEPT_COPIES) -> str:
    """Returns the path of a file on this machine: the path itself, or that of a copy made now or by another process.

    Args:
        path: a path or a URL. A copy is that of one version: a file that has changed over there is fetched anew.
        num_kept: how many copies to leave; at least as many as are read from at a time.

    Raises:
        OSError: as `read_bytes`.
    """
    if not is_remote(path):
        return path
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    system, remote = file_system(path)
    info = with_retries(path, lambda: system.info(remote))
    version = [str(info.get(field)) for field in _VERSION_FIELDS]
    digest = hashlib.sha256("\n".join([path, *version]).encode()).hexdigest()[:32]
    copy = folder / (digest + Path(without_query(path)).suffix)
    with open(folder / f"{copy.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            part = copy.with_suffix(".part")
            with_retries(path, lambda: system.get_file(remote, str(part)))
            part.replace(copy)
            _delete_oldest(folder, num_kept)
        os.utime(copy)
    return str(copy)


def _delete_oldest(folder: Path, num_kept: int) -> None:
    copies = [file for file in folder.iterdir() if file.suffix not in {".lock", ".part"}]
    for file in sorted(copies, key=lambda file: file.stat().st_mtime)[:-num_kept]:
        file.unlink(missing_ok=True)
