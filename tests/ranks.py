"""Runs a test's function on several processes that talk through gloo, and gives launched scripts their environment."""

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROOT = Path(__file__).parents[1]


def run_on_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """What `function(*args)` returns on each rank, in the order of the ranks.

    Args:
        function: a module-level function; what it returns must consist of tensors, numbers and strings.
        world_size: number of processes.
        args: passed on; anything that can be pickled.

    Raises:
        ProcessRaisedException: the function raised on some rank, or a collective waited for over a minute.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (function, world_size, Path(folder), args), nprocs=world_size)
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(world_size)]


def launched_environment(device: str = "cpu") -> dict[str, str]:
    """The environment of scripts beside the tests, which launchers start: they find `tests`, and use few threads.

    Args:
        device: that DeepSpeed is to use.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"DS_ACCELERATOR": device, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def deepspeed_launcher() -> list[str | Path]:
    """The command that starts a script on two processes of a CPU, on a port that no other training has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return [Path(sys.executable).with_name("deepspeed"), "--num_accelerators", "2", "--master_port", str(port)]


def _run(rank: int, function: Callable[..., Any], world_size: int, folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(minutes=1),
    )
    torch.save(function(*args), folder / f"{rank}.pt")
    dist.destroy_process_group()
