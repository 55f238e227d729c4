"""What a process holds and has held, and processes that have held nothing yet."""

import ctypes
import re
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """Returns what a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def forget_peak() -> float:
    """Forgets the most that was held, and returns what is held now, as `peak_megabytes` counts.

    macOS cannot forget: there it returns the most so far, and what grows less than that goes unseen.
    """
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform != "darwin":
        # What is freed and kept for later would otherwise be used without growth.
        getattr(ctypes.CDLL(None), "malloc_trim", bool)(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak_megabytes()


def peak_megabytes() -> float:
    """Returns the most memory held, in 10^6 bytes: by tensors on the GPU once it is in use, else by this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return _megabytes("VmHWM")  # Linux's ru_maxrss begins with that of the process that started this one


def held_megabytes() -> float:
    """Returns the memory that this process holds now, in 10^6 bytes. Linux."""
    return _megabytes("VmRSS")


def _megabytes(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)[0]) * 1024 / 1e6
