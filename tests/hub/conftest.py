"""Fixtures of the Hub tests: a running Hub, and clean processes in which its clients run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.hub
from huggingface_hub import constants

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTokenizer
from tests.hub.hub_server import HubServer
from tests.tiny_models import VISION

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


@pytest.fixture
def this_process_uses_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Points the clients of this very process at the Hub, where starting another for each test would take minutes.

    No wait takes longer than an instant; the list has what each was meant to take, in seconds.
    """
    waits: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (waits.append(seconds), sleep(min(seconds, 0.01))))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return waits


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, whose weights are too large for one packet, and its processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder)
    return folder


def save_checkpoint(folder: Path, text_width: int = 64, **save_options: Any) -> None:
    """Saves a model and its processor."""
    tokenizer = ClipHfTokenizer.train(["a photo of a dog", "a photo of a cat"] * 3, vocab_size=523, context_length=16)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"hidden_size": text_width, "num_hidden_layers": 1}
    model = ClipHfModel(ClipHfConfig(text_config=text, vision_config=VISION["vit"], projection_dim=32))
    model.save_pretrained(folder, **save_options)
    ClipHfProcessor(ClipHfImageProcessor(size=32, crop_size=32), tokenizer).save_pretrained(folder)
