"""The README's Python code runs, block after block, in a folder where its paths exist."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from clip_hf import ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTokenizer, ClipTrainer
from tests.open_clip_folders import write_open_clip_folder
from tests.openai_weights import openai_weights, save_archive

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CAPTIONS = ("a photo of a dog", "a drawing of a cat")


def save_tiny_clip(folder: Path, tokenizer: ClipHfTokenizer) -> None:
    """Saves a CLIP of transformers that takes 224-pixel images, and our processor beside it."""
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1}
    CLIPModel(CLIPConfig(text_config=tower | ids, vision_config=tower, projection_dim=16)).save_pretrained(folder)
    ClipHfProcessor(ClipHfImageProcessor(), tokenizer).save_pretrained(folder)


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
    save_archive(openai_weights("vit"), Path("ViT-B-32.pt"))

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
