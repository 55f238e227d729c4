"""A checkpoint through every door of transformers: from a folder and a repository, with clip_hf and without it."""

import json

import pytest

CHECKPOINTS = """
import json, sys
import torch
from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTokenizer

torch.manual_seed(0)
captions = ["a photo of a dog", "a photo of a cat", "two hot air balloons over the sea"] * 3
tokenizer = ClipHfTokenizer.train(captions, vocab_size=560, context_length=24)
text = {
    "vocab_size": len(tokenizer), "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 24,
}
towers = {
    "vit": {"model_type": "clip_hf_vit", "hidden_size": 64, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
    "resnet": {"model_type": "clip_hf_resnet", "width": 8, "depths": (1, 1, 1, 1), "image_size": 64},
}
for name, vision in towers.items():
    model = ClipHfModel(ClipHfConfig(text_config=text, vision_config=vision, projection_dim=32)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    size = vision["image_size"]
    processor = ClipHfProcessor(ClipHfImageProcessor(size=size, crop_size=size), tokenizer)
    for part in (model, processor):
        part.save_pretrained(f"{folder}/{name}")
        part.push_to_hub(f"tester/{name}", private=True)
"""

# Prints what each door gives, in numbers that do not depend on where the classes came from.
DOORS = """
import json
import torch
from PIL import Image
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, AutoTokenizer,
    pipeline,
)

image = Image.linear_gradient("L").convert("RGB")
labels = ["a dog", "a cat", "hot air balloons", "THE END &amp; caf\\u00e9"]
found = {}
for source in sources:
    processor = AutoProcessor.from_pretrained(source, **trust)
    inputs = processor(images=[image, image.rotate(90)], text=labels, padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(source, **trust)
    zero_shot = AutoModelForZeroShotImageClassification.from_pretrained(source, **trust)
    with torch.no_grad():
        output = model(**inputs)
        assert torch.equal(zero_shot(**inputs).logits_per_image, output.logits_per_image)
    parts = {
        "config": AutoConfig.from_pretrained(source, **trust),
        "tokenizer": AutoTokenizer.from_pretrained(source, **trust),
        "image_processor": AutoImageProcessor.from_pretrained(source, **trust),
    }
    pixel_values = parts["image_processor"](image, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_values[0], inputs["pixel_values"][0])
    assert parts["tokenizer"](labels)["input_ids"] == processor.tokenizer(labels)["input_ids"]
    for part in (model, zero_shot, processor, *parts.values()):
        assert type(part).__module__.startswith(home), (type(part).__module__, home)
    classify = pipeline("zero-shot-image-classification", model=source, device="cpu", **trust)
    assert type(classify).__name__ == "ClipHfZeroShotPipeline"
    image_features = pipeline("image-feature-extraction", model=source, device="cpu", pool=True, **trust)
    text_features = pipeline("feature-extraction", model=source, device="cpu", **trust)
    found[source.rpartition("/")[2]] = {
        "model_type": parts["config"].model_type,
        "input_ids": inputs["input_ids"].tolist(),
        "logits": output.logits_per_image.tolist(),
        "labels": {item["label"]: item["score"] for item in classify(image, candidate_labels=labels)},
        "image_feature": image_features(image)[0],
        "text_feature_sizes": [len(text_features("a dog")[0]), len(text_features("a dog")[0][0])],
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(hub, run_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    run_python(f"folder = {str(folder)!r}\n" + CHECKPOINTS, hub.env, with_clip_hf=True)
    return folder


@pytest.fixture(scope="module")
def expected(hub, run_python, folder):
    """What the doors give where clip_hf is installed and nobody was asked to trust anything."""
    sources = [str(folder / "vit"), str(folder / "resnet")]
    code = f"import clip_hf\nsources, trust, home = {sources!r}, {{}}, 'clip_hf.'\n" + DOORS
    return json.loads(run_python(code, hub.env, with_clip_hf=True).splitlines()[-1])


def assert_same(found, expected):
    assert found.keys() == expected.keys() == {"vit", "resnet"}
    for tower, values in expected.items():
        for name in ("model_type", "input_ids", "text_feature_sizes"):
            assert found[tower][name] == values[name], (tower, name)
        assert found[tower]["labels"] == pytest.approx(values["labels"], abs=1e-6)
        assert found[tower]["image_feature"] == pytest.approx(values["image_feature"], abs=1e-5)
        for row, other in zip(found[tower]["logits"], values["logits"], strict=True):
            assert row == pytest.approx(other, abs=1e-5)


def test_every_door_opens_where_clip_hf_is_installed(expected):
    for tower in ("vit", "resnet"):
        assert expected[tower]["model_type"] == "clip_hf"
        assert sum(expected[tower]["labels"].values()) == pytest.approx(1)
        assert len(expected[tower]["image_feature"]) == 32
        assert expected[tower]["text_feature_sizes"][1] == 64


def test_every_door_opens_by_repository_where_clip_hf_is_installed(hub, run_python, folder, expected):
    code = "import clip_hf\nsources, trust, home = ['tester/vit', 'tester/resnet'], {}, 'clip_hf.'\n" + DOORS
    assert_same(json.loads(run_python(code, hub.env, with_clip_hf=True).splitlines()[-1]), expected)


@pytest.mark.parametrize("place", ["folder", "repository"])
def test_every_door_opens_without_clip_hf(hub, run_python, folder, expected, place):
    sources = (
        ["tester/vit", "tester/resnet"] if place == "repository" else [str(folder / t) for t in ("vit", "resnet")]
    )
    settings = f"sources, trust, home = {sources!r}, {{'trust_remote_code': True}}, 'transformers_modules.'\n"
    found = json.loads(run_python(settings + DOORS, hub.env, with_clip_hf=False).splitlines()[-1])
    assert_same(found, expected)


NEWER = """
import json
from pathlib import Path
from transformers import AutoConfig
path = Path(folder, "config.json")
path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
try:
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
except ValueError as error:
    print(error)
"""


def test_a_checkpoint_of_a_newer_format_says_so_without_clip_hf_too(hub, run_python, folder, tmp_path):
    for file in (folder / "vit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    printed = run_python(f"folder = {str(tmp_path)!r}\n" + NEWER, hub.env, with_clip_hf=False)
    assert "format 99" in printed
    assert "pip install --upgrade clip_hf" in printed
