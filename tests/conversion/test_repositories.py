"""Checkpoints of every layout by the name of a repository, on the tests' own Hub."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_hf.conversion.writing import write_checkpoint
from tests.conversion.tiny_checkpoints import tiny_checkpoint
from tests.hub.conftest import hub, run_python  # noqa: F401  fixtures
from tests.open_clip_folders import write_open_clip_folder

LAYOUT_OF_FOLDER = {
    "ours": "clip_hf",
    "transformers-bin": "transformers",
    "transformers-shards": "transformers",
    "open_clip-bin": "open_clip",
    "open_clip-safetensors": "open_clip",
    "open_clip-resnet": "open_clip",
}
OPEN_AND_READ = """
import json
from pathlib import Path
import torch
from huggingface_hub import HfApi
from PIL import Image
from transformers import CLIPModel
from clip_hf import ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTextModel, ClipHfTokenizer
from clip_hf.conversion.reading import find_layout, read_checkpoint
from tests.tiny_models import random_ids, random_pixels

def opened(source):
    model = ClipHfModel.from_pretrained(source, dtype=torch.float32)
    processor = ClipHfProcessor.from_pretrained(source)
    options = ClipHfImageProcessor.from_pretrained(source).to_dict()
    tokens = ClipHfTokenizer.from_pretrained(source)(text)["input_ids"]
    assert processor.image_processor.to_dict() == options
    prepared = processor(images=picture, text=text, return_tensors="pt")
    assert prepared["input_ids"].tolist() == [tokens]

    ids, pixels = random_ids(model.config), random_pixels(model.config)
    inputs = [{"input_ids": ids, "pixel_values": pixels}, prepared]
    with torch.no_grad():
        outputs = [model(**one) for one in inputs]
        text_model = ClipHfTextModel.from_pretrained(source, dtype=torch.float32)
        assert torch.equal(text_model(ids).text_embeds, model.text_model(ids).text_embeds)
        found = {"features": [[one.image_embeds.tolist(), one.text_embeds.tolist()] for one in outputs]}
        if find_layout(source) == "transformers":
            reference = CLIPModel.from_pretrained(source, dtype=torch.float32)
            outputs = [reference(**one) for one in inputs]
            found["reference"] = [[one.image_embeds.tolist(), one.text_embeds.tolist()] for one in outputs]

    checkpoint = read_checkpoint(source)
    assert checkpoint.layout == find_layout(source)
    assert checkpoint.tokenizer(text)["input_ids"] == tokens
    assert checkpoint.image_processor.to_dict() == options
    weights = model.state_dict()
    assert checkpoint.weights.keys() == weights.keys()
    for name, tensor in checkpoint.weights.items():
        assert torch.equal(tensor.to(weights[name].dtype), weights[name]), name
    found["types"] = {name: str(tensor.dtype) for name, tensor in checkpoint.weights.items()}
    return found | {"layout": checkpoint.layout, "options": {name: options[name] for name in ("size", "image_mean")}}

api, text, picture = HfApi(), "a photo of a dog", Image.linear_gradient("L").convert("RGB")
found = {}
for folder in folders:
    name = Path(folder).name
    api.create_repo(f"tester/{name}", private=True)
    api.upload_folder(repo_id=f"tester/{name}", folder_path=folder)
    found[name] = [opened(folder), opened(f"tester/{name}")]
    revision = api.repo_info(f"tester/{name}").sha
    ClipHfModel.from_pretrained(f"tester/{name}", revision=revision, token=api.token)
print(json.dumps(found))
"""


def write_old_transformers_folder(folder: Path, **options) -> Path:
    """Writes a folder as transformers once did: with the ids that its configurations had, whatever the vocabulary."""
    folder.parent.mkdir(exist_ok=True)
    checkpoint = tiny_checkpoint(folder.parent, "vit")
    write_checkpoint(checkpoint, folder, "transformers", **options)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_folders(folder: Path) -> list[Path]:
    """Writes a folder for each of LAYOUT_OF_FOLDER."""
    pickled = write_old_transformers_folder(folder / "transformers-bin")
    weights = load_file(pickled / "model.safetensors")
    torch.save(weights | {"text_model.embeddings.position_ids": torch.arange(16)[None]}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    shards = write_old_transformers_folder(folder / "transformers-shards", max_shard_size="200KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1

    write_checkpoint(tiny_checkpoint(folder, "vit"), folder / "ours", "clip_hf")
    write_open_clip_folder(folder / "open_clip-bin", pickled=True)
    write_open_clip_folder(folder / "open_clip-safetensors")
    write_open_clip_folder(folder / "open_clip-resnet", "resnet")
    return [folder / name for name in LAYOUT_OF_FOLDER]


@pytest.fixture(scope="module")
def opened(hub, run_python, tmp_path_factory):  # noqa: F811
    """What each folder and its repository give, opened in one process that knows the Hub."""
    folders = write_folders(tmp_path_factory.mktemp("folders"))
    root = Path(__file__).parents[2]
    code = f"import sys\nsys.path.insert(0, {str(root)!r})\nfolders = {[str(folder) for folder in folders]!r}\n"
    return json.loads(run_python(code + OPEN_AND_READ, hub.env, with_clip_hf=True).splitlines()[-1])


@pytest.mark.parametrize("name", LAYOUT_OF_FOLDER)
def test_repository_gives_what_its_folder_gives(opened, name):
    from_folder, from_repository = opened[name]
    assert from_repository == from_folder
    assert from_repository["layout"] == LAYOUT_OF_FOLDER[name]


@pytest.mark.parametrize("name", ["transformers-bin", "transformers-shards"])
def test_old_repository_gives_transformers_features(opened, name):
    """Its configuration ends texts with id 2, which no text contains: they are read at their largest id."""
    _, from_repository = opened[name]
    for found, expected in zip(from_repository["features"], from_repository["reference"], strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)
