"""Fixtures of the Hub tests: a running Hub, and clean processes in which its clients run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.hub_server import HubServer

RUN_SECONDS = 300

# Every finder on the way to a module is wrapped, so that no kind of installation is found: neither a folder on the
# path, nor an editable install, whatever hook it uses.
WITHOUT_CLIP_HF = """
import importlib.util, sys

class WithoutClipHf:
    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, *args):
        return None if name.partition(".")[0] == "clip_hf" else self._finder.find_spec(name, *args)

sys.meta_path[:] = [WithoutClipHf(finder) for finder in sys.meta_path]
assert importlib.util.find_spec("clip_hf") is None, "clip_hf can still be imported"
del WithoutClipHf, importlib
"""
WITH_CLIP_HF = """
import importlib.util
assert importlib.util.find_spec("clip_hf") is not None, "clip_hf is not installed: pip install --editable ."
del importlib
"""
HUGGINGFACE_HUB = """
import json, os, time
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download

api = HfApi()

def error(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        response = getattr(error, "response", None)
        return [type(error).__name__, None if response is None else response.status_code]
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub of this test module's own, with `.url`, `.token`, and `.env` for the clients."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a snippet in a new process, in an empty folder, with or without clip_hf, and returns what it printed."""

    def run(code: str, env: dict[str, str], with_clip_hf: bool) -> str:
        folder: Path = tmp_path_factory.mktemp("client")
        prelude = WITH_CLIP_HF if with_clip_hf else WITHOUT_CLIP_HF
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        result = subprocess.run(
            [sys.executable, "-c", prelude + code],
            env={**os.environ, **threads, **env},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )
        if result.returncode != 0:
            raise RuntimeError(f"The client process failed ({result.returncode}):\n{result.stderr}\n{result.stdout}")
        return result.stdout

    return run


@pytest.fixture
def client(hub: HubServer, run_python: Callable[..., str]) -> Callable[..., Any]:
    """Runs a snippet with `api`, an `HfApi`, and `error(call, ...)`: the name and the status of what the call raises.

    Returns what the snippet printed last, read as JSON.
    """

    def run(code: str, env: dict[str, str] | None = None) -> Any:
        printed = run_python(HUGGINGFACE_HUB + code, hub.env if env is None else env, with_clip_hf=False)
        return json.loads(printed.splitlines()[-1]) if printed else None

    return run
