"""The command line of scripts/convert_checkpoint.py: what it prints, makes, refuses, and how much memory it takes."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfProcessor
from clip_hf.conversion import layouts, writing
from clip_hf.conversion.reading import Checkpoint
from clip_hf.conversion.writing import write_checkpoint
from tests.conversion.test_layouts import random_bits
from tests.conversion.tiny_checkpoints import write_all_layouts
from tests.open_clip_folders import plain_weights, small_tokenizer
from tests.openai_weights import openai_weights

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_all_layouts(tmp_path_factory.mktemp("vit"), "vit")


def test_openais_archive_to_a_folder_that_is_ready_for_use(main, paths, tmp_path, capsys):
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    main([str(paths["openai"]), str(tmp_path / "clip"), "--to", "clip_hf", "--tokenizer", str(tmp_path / "tokenizer")])
    printed = capsys.readouterr().out
    assert "(openai)" in printed
    assert "252,801 values, float16" in printed
    processor = ClipHfProcessor.from_pretrained(tmp_path / "clip")
    inputs = processor(images=Image.new("RGB", (9, 9)), text="a dog", return_tensors="pt")
    assert ClipHfModel.from_pretrained(tmp_path / "clip", dtype="float32")(**inputs).logits_per_image.shape == (1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "tokenizer"]


def test_source_without_a_tokenizer_says_what_to_do(main, paths, tmp_path, capsys):
    main([str(paths["openai"]), str(tmp_path / "clip"), "--to", "transformers"])
    printed = capsys.readouterr().out
    assert "tokenizer  none: the source has none. Give one with --tokenizer" in printed
    assert "features   differ by at most" in printed


def test_to_transformers_says_that_its_tokenizer_does_not_clean(main, paths, tmp_path, capsys):
    main([str(paths["open_clip"]), str(tmp_path / "clip"), "--to", "transformers"])
    assert "tokenizer  CLIPTokenizer does not clean texts" in capsys.readouterr().out


def test_between_two_of_our_own_there_is_no_original(main, paths, tmp_path, capsys):
    main([str(paths["clip_hf"]), str(tmp_path / "clip"), "--to", "clip_hf"])
    assert "not checked against the original: both are this package's own" in capsys.readouterr().out


def test_weights_without_openais_numbers_are_assumed_to_be_openais_aloud(paths, tmp_path):
    torch.save(plain_weights("vit"), tmp_path / "plain.pt")
    command = [sys.executable, SCRIPT, tmp_path / "plain.pt", tmp_path / "clip", "--to", "clip_hf"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert result.stderr.count("QuickGELU and heads of 64 channels") == 1


def test_terminated_it_leaves_nothing(paths, tmp_path):
    """The tokenizer is a pipe that nothing is written to: reading it lasts until the signal."""
    pipe = tmp_path / "vocabulary.gz"
    os.mkfifo(pipe)
    command = [sys.executable, SCRIPT, paths["openai"], tmp_path / "new" / "clip", "--to", "clip_hf", "--tokenizer"]
    process = subprocess.Popen(list(map(str, [*command, pipe])))
    try:
        writer = open_for_writing(pipe, process)
        assert list(tmp_path.glob("new/.clip.*"))
        process.terminate()
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()
    os.close(writer)
    assert os.listdir(tmp_path) == ["vocabulary.gz"]


def open_for_writing(pipe, process):
    """Waits until the process has opened the pipe: a signal just before that would not interrupt the opening."""
    while process.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO  # nobody reads it yet
            time.sleep(0.05)
    raise AssertionError(f"ended with {process.returncode} before it read the pipe")


def test_to_openai_says_that_tokenizer_and_preprocessing_are_the_codes(main, paths, tmp_path, capsys):
    main([str(paths["transformers"]), str(tmp_path / "clip.pt"), "--to", "openai"])
    assert "OpenAI's code brings its own" in capsys.readouterr().out
    assert ClipHfModel.from_openai(tmp_path / "clip.pt").dtype == torch.float16


def test_to_openai_says_that_a_vocabulary_of_its_own_stays_behind(main, paths, tmp_path, capsys):
    own = str(tmp_path / "own")
    small_tokenizer().save_pretrained(own)
    main([str(paths["transformers"]), str(tmp_path / "clip.pt"), "--to", "openai", "--tokenizer", own])
    assert "gives other ids than this model's" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype(main, paths, tmp_path, dtype, capsys):
    main([str(paths["transformers"]), str(tmp_path / "clip"), "--to", "clip_hf", "--dtype", dtype])
    assert f"values, {dtype}" in capsys.readouterr().out
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    assert {tensor.dtype for name, tensor in weights.items() if name != "logit_scale"} == {getattr(torch, dtype)}
    assert weights["logit_scale"].dtype == torch.float32
    assert json.loads((tmp_path / "clip" / "config.json").read_text())["dtype"] == dtype
    assert ClipHfModel.from_pretrained(tmp_path / "clip").dtype == getattr(torch, dtype)
    facts = json.loads((tmp_path / "clip" / "card.json").read_text())["conversion"]
    assert facts["dtype"] == dtype and facts["source"].endswith("(transformers)")
    assert facts["features"].startswith("differ by at most")


def test_max_shard_size(main, paths, tmp_path):
    main([str(paths["open_clip"]), str(tmp_path / "clip"), "--to", "clip_hf", "--max_shard_size", "300KB"])
    assert len(list((tmp_path / "clip").glob("model-*-of-*.safetensors"))) > 1
    assert (tmp_path / "clip" / "model.safetensors.index.json").is_file()
    with pytest.raises(
        SystemExit, match="max_shard_size is 300KB, but open_clip's weights are one file: leave it out"
    ):
        main([str(paths["clip_hf"]), str(tmp_path / "x"), "--to", "open_clip", "--max_shard_size", "300KB"])


def test_trust_pickle(main, tmp_path, capsys):
    torch.save(openai_weights("vit") | {"vocab_size": Tensorlike(530)}, tmp_path / "clip.pt")
    with pytest.raises(SystemExit, match=r"not converted: .*clip\.pt needs more than tensors"):
        main([str(tmp_path / "clip.pt"), str(tmp_path / "clip"), "--to", "clip_hf"])
    main([str(tmp_path / "clip.pt"), str(tmp_path / "clip"), "--to", "clip_hf", "--trust_pickle"])
    assert "252,801 values" in capsys.readouterr().out


class Tensorlike(torch.nn.Parameter):
    """Pickled by a class of its own, which a reader of tensors alone does not know."""

    def __new__(cls, value):
        return torch.nn.Parameter.__new__(cls, torch.tensor(float(value)), requires_grad=False)

    def __reduce_ex__(self, protocol):
        return Tensorlike, (530,)


REFUSED = {
    "ResNet to transformers": ("resnet", "transformers", "its CLIPModel has no ResNet"),
    "truncated": ("truncated", "transformers", "is damaged"),
    "missing": ("missing", "clip_hf", "missing is not there"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_sources_leave_nothing(main, case, tmp_path, tmp_path_factory):
    source, layout, message = REFUSED[case]
    path = write_all_layouts(tmp_path_factory.mktemp("x"), "resnet" if source == "resnet" else "vit")["openai"]
    if source == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    if source == "missing":
        path = path.parent / "missing"
    with pytest.raises(SystemExit, match=f"not converted: .*{message}") as end:
        main([str(path), str(tmp_path / "new" / "folder" / "target"), "--to", layout])
    assert isinstance(end.value.code, str)  # which Python prints and turns into the status 1
    assert list(tmp_path.iterdir()) == []


def test_existing_target_is_left_alone(main, paths, tmp_path):
    (tmp_path / "target").write_text("mine")
    with pytest.raises(SystemExit, match="exists already"):
        main([str(paths["openai"]), str(tmp_path / "target"), "--to", "clip_hf"])
    assert (tmp_path / "target").read_text() == "mine"


def test_features_beyond_the_bound_leave_nothing(main, paths, tmp_path, monkeypatch):
    """A writer that swaps query and key is caught by the comparison alone: names and shapes are right."""

    def swapped(weights, layout, config):
        weights = dict(weights)
        name = "text_model.layers.0.self_attn.qkv.weight"
        weights[name] = weights[name].roll(64, dims=0)
        return layouts.to_layout(weights, layout, config)

    monkeypatch.setattr(writing, "to_layout", swapped)
    with pytest.raises(SystemExit, match=r"not converted: .*features differ by .*1e-04 are allowed"):
        main([str(paths["transformers"]), str(tmp_path / "target"), "--to", "open_clip"])
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_is_lost_on_the_way_leaves_nothing(main, paths, tmp_path, monkeypatch):
    tokenizer = small_tokenizer()
    tokenizer.add_tokens("a</w>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = [str(paths["open_clip"]), str(tmp_path / "target"), "--to", "transformers"]
    arguments += ["--tokenizer", str(tmp_path / "tokenizer")]
    with monkeypatch.context() as patch:
        patch.setattr(writing, "CLIPTokenizer", lambda added_tokens_decoder, **rest: CLIPTokenizer(**rest))
        with pytest.raises(SystemExit, match=r"not converted: the tokenizer that was written .* differ: a</w>"):
            main(arguments)
    assert os.listdir(tmp_path) == ["tokenizer"]
    main(arguments)


# Not ru_maxrss: a process inherits its parent's.
PEAK_MEMORY = """
import importlib.util, re, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("convert_checkpoint", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.main(sys.argv[2:])
print("PEAK", 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the peak on Linux alone")
@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("RN50x64", "openai", "clip_hf"),
        ("RN50x64", "open_clip", "openai"),
        ("ViT-L/14@336px", "transformers", "open_clip"),
        ("ViT-L/14@336px", "clip_hf", "transformers"),
    ],
)
def test_memory_is_bounded(name, one, other, tmp_path):
    """At most 1.3 times the weights in float32 and 1.5 GB, the comparison included."""
    config = ClipHfConfig.from_architecture(name)
    size = config.vision_config.image_size
    weights = {
        name: torch.zeros_like(bits) if bits.dtype == torch.int64 else torch.rand(bits.shape) * 0.02
        for name, bits in random_bits(config).items()
    }
    num_bytes = 4 * sum(tensor.numel() for tensor in weights.values())
    processor = ClipHfImageProcessor(size=size, crop_size=size)
    write_checkpoint(Checkpoint("clip_hf", config, weights, processor, None), tmp_path / "source", one)
    del weights
    command = [sys.executable, "-c", PEAK_MEMORY, SCRIPT, tmp_path / "source", tmp_path / "target", "--to", other]
    printed = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    peak = int(printed.split("PEAK ")[1])
    assert peak < 1.3 * num_bytes + 1.5e9, f"{peak / 1e9:.2f} GB for {num_bytes / 1e9:.2f} GB of weights"
