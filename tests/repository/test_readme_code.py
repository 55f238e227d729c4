"""The README's Python code and its conversions and pushes run as written, in a folder where its paths exist."""

import gzip
import itertools
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from clip_hf import ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTokenizer, ClipTrainer
from clip_hf.conversion.reading import read_checkpoint
from clip_hf.model.bpe_clip_hf import BYTE_SYMBOLS, BYTE_VOCABULARY, OPENAI_VOCAB_SIZE
from tests.conversion.test_layouts import assert_same_bits
from tests.hub.conftest import hub, this_process_uses_hub  # noqa: F401  fixtures
from tests.open_clip_folders import write_open_clip_folder
from tests.openai_weights import openai_weights, save_archive
from tests.repository.test_commands import commands

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
CAPTIONS = ("a photo of a dog", "a drawing of a cat")


def save_tiny_clip(folder: Path, tokenizer: ClipHfTokenizer) -> None:
    """Saves a CLIP of transformers that takes 224-pixel images, and our processor beside it; OpenAI's code has it."""
    tower = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 256}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1}
    CLIPModel(CLIPConfig(text_config=tower | ids, vision_config=tower, projection_dim=16)).save_pretrained(folder)
    ClipHfProcessor(ClipHfImageProcessor(), tokenizer).save_pretrained(folder)


def save_tiny_release(archive: Path, vocabulary: Path) -> None:
    """Writes an archive as OpenAI releases them, and a vocabulary as large as OpenAI's, of any two bytes."""
    embeddings = {"token_embedding.weight": torch.randn(OPENAI_VOCAB_SIZE, 64)}
    save_archive(openai_weights("vit") | embeddings | {"vocab_size": torch.tensor(OPENAI_VOCAB_SIZE)}, archive)
    merges = itertools.product(BYTE_SYMBOLS, BYTE_VOCABULARY)
    vocabulary.write_bytes(gzip.compress("\n".join(["#version: 0.2", *map(" ".join, merges)]).encode()))


@pytest.fixture
def paths_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = ClipHfTokenizer.train(CAPTIONS * 5, vocab_size=530)
    theirs, ours = "path/to/clip-vit-base-patch32", "path/to/checkpoint"
    save_tiny_clip(Path(theirs), tokenizer)
    ClipHfModel.from_pretrained(theirs).save_pretrained(ours)
    ClipHfProcessor.from_pretrained(theirs).save_pretrained(ours)
    Image.new("RGB", (300, 240), "red").save("photo.jpg")
    write_open_clip_folder(Path("path/to/open_clip"))
    save_tiny_release(Path("ViT-B-32.pt"), Path("bpe_simple_vocab_16e6.txt.gz"))

    images = Path("path/to/images")
    images.mkdir()
    for index, caption in enumerate(CAPTIONS):
        Image.new("RGB", (240, 300), "blue").save(images / f"{index}.jpg")
        with (images / "metadata.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"file_name": f"{index}.jpg", "text": caption}) + "\n")


def test_the_python_code_of_the_readme_runs(paths_of_the_readme, monkeypatch):
    """Two things stand in: a folder for the Hub, since tests have no network, and nothing for hours of training."""
    monkeypatch.setattr(ClipHfModel, "push_to_hub", ClipHfModel.save_pretrained)
    monkeypatch.setattr(ClipHfProcessor, "push_to_hub", ClipHfProcessor.save_pretrained)
    monkeypatch.setattr(ClipTrainer, "train", lambda trainer: next(iter(trainer.train_dataset.loader(2))))
    assert BLOCKS
    for block in BLOCKS:
        exec(block, {})


def arguments_of(script: str) -> list[list[str]]:
    """Returns what the README's commands give to a script."""
    lines = [shlex.split(line) for line in commands(README) if line.startswith(f"python scripts/{script}.py ")]
    return [arguments for _, _, *arguments in lines]


def test_the_conversions_of_the_readme_run(paths_of_the_readme, capsys):
    main = runpy.run_path(str(ROOT / "scripts" / "convert_checkpoint.py"))["main"]
    written = []
    for source, target, *options in arguments_of("convert_checkpoint"):
        main([source, target, *options])
        written.append(options[options.index("--to") + 1])
        printed = capsys.readouterr().out
        assert f"target     {target} ({written[-1]})" in printed
        before, after = read_checkpoint(source), read_checkpoint(target)
        assert after.layout == written[-1] and (after.tokenizer is None) == (written[-1] == "openai")
        if "float16" in options:
            assert after.config.dtype == torch.float16 and "features   differ by at most" in printed
        else:
            assert_same_bits(after.weights, before.weights)
    assert written == ["clip_hf", "transformers", "open_clip", "openai"]
    assert len(read_checkpoint("outputs/clip").tokenizer) == OPENAI_VOCAB_SIZE


def test_the_pushes_of_the_readme_run(paths_of_the_readme, hub, this_process_uses_hub, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", hub.add_account("me", "write"))
    shutil.copytree("path/to/checkpoint", "outputs/shapes")
    rehearsal, push = arguments_of("push_to_hub")
    for arguments, methods in ((rehearsal, {"GET"}), (push, {"GET", "POST", "PUT"})):
        monkeypatch.setattr(sys, "argv", ["push_to_hub.py", *arguments])
        with hub.recording() as exchanges:
            runpy.run_path(str(ROOT / "scripts" / "push_to_hub.py"), run_name="__main__")
        assert {exchange.method for exchange in exchanges} == methods
    assert "modeling_clip_hf.py" in hub.repository("me/my-clip").resolve("v1").files
