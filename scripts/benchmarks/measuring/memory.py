"""What a process holds and has held, and processes that have held nothing yet."""

import re
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """Returns what a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peak_megabytes() -> float:
    """Returns the most memory that this process has held, in 10^6 bytes. Linux and macOS."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return _megabytes("VmHWM")  # Linux's ru_maxrss begins with that of the process that started this one


def held_megabytes() -> float:
    """Returns the memory that this process holds now, in 10^6 bytes. Linux."""
    return _megabytes("VmRSS")


def _megabytes(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)[0]) * 1024 / 1e6
