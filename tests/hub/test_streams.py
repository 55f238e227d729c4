"""Data sets of the Hub and of a plain web server as streams: what is near and what is far gives the same batches."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.source_kinds import Original, write_source

NUM_SAMPLES = 18
KINDS = ("tar", "parquet", "jsonl")

READ = """
import json
from clip_hf import ClipHfImageProcessor, ClipHfProcessor, ClipHfTokenizer
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs

tokenizer = ClipHfTokenizer.train(["a red cat"] * 4, vocab_size=520, context_length=16)
processor = ClipHfProcessor(ClipHfImageProcessor(size=16, crop_size=16), tokenizer)

def read(name, streaming=True):
    source = open_source(name, streaming=streaming)
    batches = TrainingPairs([source], processor, num_lanes=2, window=4).loader(6)
    return [[one["sample_ids"], one["input_ids"].tolist(), one["pixel_values"].sum().item()] for one in batches]
"""
COMPARE = """
from huggingface_hub import HfApi
for kind in kinds:
    repo, shards = f"tester/{kind}-pairs", f"{{000..002}}.{kind}"
    HfApi().create_repo(repo, repo_type="dataset", private=True)
    HfApi().upload_folder(repo_id=repo, repo_type="dataset", folder_path=f"{folder}/{kind}")
    near = read(f"{folder}/{kind}/{shards}")
    for name in (repo, f"{repo}:train", f"{url}/{kind}/{shards}"):
        assert read(name) == near, name
    near_map = read(f"{folder}/{kind}/{shards}", streaming=False)
    for name in (repo, f"{repo}:default:train"):
        assert read(name, streaming=False) == near_map, name
    for name, streaming in ((f"{repo}:dev", True), (f"{repo}:dev", False), (f"{repo}:other:train", False)):
        try:
            open_source(name, streaming=streaming)
        except ValueError as error:
            assert "train" in str(error) or "default" in str(error), error
        else:
            raise AssertionError(name)
    if kind != "tar":
        assert len(open_source(f"{repo}:train[:50%]")) == 9
print(json.dumps(near))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three shards of each kind."""
    folder = tmp_path_factory.mktemp("shards")
    rng, samples = np.random.default_rng(0), []
    for number in range(NUM_SAMPLES):
        file = folder / f"{number:02}.jpg"
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file)
        samples.append(Original(image_id=file.stem, file=file, captions=[f"a red cat {number}"]))
    for kind in KINDS:
        write_source(kind, folder / kind, samples, num_shards=3)
    return folder


@pytest.fixture
def web(folder) -> Iterator[str]:
    """The address of a server that has the folder's files."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_what_is_far_streams_as_what_is_near(hub, web, folder, run_python, tmp_path):
    values = {"folder": str(folder), "url": web, "kinds": KINDS}
    code = "\n".join([*(f"{name} = {value!r}" for name, value in values.items()), READ, COMPARE])
    printed = run_python(code, hub.env | {"CLIP_HF_CACHE": str(tmp_path)}, with_clip_hf=True)
    batches = json.loads(printed.splitlines()[-1])
    assert sorted(id_ for ids, *_ in batches for id_ in ids) == [f"{number:02}" for number in range(NUM_SAMPLES)]
    copies = [file.suffix for file in tmp_path.iterdir() if file.suffix != ".lock"]
    assert sorted(copies) == sorted(6 * [".tar", ".parquet", ".jsonl"]), "one of each shard here and there"
