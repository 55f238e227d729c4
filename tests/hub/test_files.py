"""Which files of a model's folder go to the Hub, and which folders are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor
from transformers.dynamic_module_utils import get_relative_import_files

from clip_hf import ClipHfModel, ClipHfProcessor
from clip_hf.hub.files import collected_files
from clip_hf.model_card.page import GENERATED
from tests.hub.conftest import save_checkpoint

REPO_ID = "me/clip"


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def names_of(folder, **options) -> set[str]:
    with collected_files(folder, REPO_ID, **options) as files:
        return set(files)


def content_of(folder, name, **options) -> str:
    with collected_files(folder, REPO_ID, **options) as files:
        content = files[name]
        return content.decode() if isinstance(content, bytes) else content.read_text()


def test_what_a_training_leaves_beside_the_model_stays(folder):
    expected = names_of(folder)
    assert expected == {
        *("config.json", "model.safetensors", "README.md"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    }
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "rng_state.pth", ".env", "notes.txt"):
        (folder / name).write_text("not yours")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "model.safetensors").write_text("not yours")
    assert names_of(folder) == expected
    (folder / "results.json").write_text(json.dumps(RESULTS))
    for name in ("curves.png", "LICENSE"):
        (folder / name).write_text("yours")
    assert names_of(folder) == expected | {"results.json", "curves.png", "LICENSE"}


def test_the_code_goes_as_transformers_asks_for_it(folder):
    added = names_of(folder, with_code=True) - names_of(folder)
    wanted = {"configuration_clip_hf.py", "modeling_clip_hf.py", "processing_clip_hf.py"}
    for name in sorted(wanted):
        wanted |= {path.rpartition("/")[2] for path in get_relative_import_files(folder / name)}
    assert wanted <= added and all(name.endswith(".py") for name in added)
    (folder / "processing_mine.py").write_text("# not part of it")
    assert names_of(folder, with_code=True) - names_of(folder) == added
    for name in ("config.json", "processor_config.json"):
        assert content_of(folder, name, with_code=True) == (folder / name).read_text()


def test_without_code_nothing_asks_for_it_and_clip_hf_opens_the_rest(folder, tmp_path):
    with collected_files(folder, REPO_ID) as files:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    for file in tmp_path.glob("*.json"):
        assert "auto_map" not in file.read_text() and "custom_pipelines" not in file.read_text(), file
    model, original = (ClipHfModel.from_pretrained(path).state_dict() for path in (tmp_path, folder))
    assert all((model[name] == weight).all() for name, weight in original.items())
    processor, expected = (ClipHfProcessor.from_pretrained(path) for path in (tmp_path, folder))
    assert processor(text="a dog")["input_ids"] == expected(text="a dog")["input_ids"]
    kept, original = (part.image_processor.to_dict() for part in (processor, expected))
    assert kept | {"auto_map": None} == original | {"auto_map": None}


def test_a_page_by_hand_is_kept_and_one_of_ours_is_made_anew(folder):
    assert REPO_ID in content_of(folder, "README.md")
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n{GENERATED}card.json -->\nfor somebody/else")
    assert REPO_ID in content_of(folder, "README.md")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nby hand")
    assert content_of(folder, "README.md").endswith("by hand")
    for metadata in ("tags: [clip", "- a list", "model-index: clip"):
        (folder / "README.md").write_text(f"---\n{metadata}\n---\nby hand")
        with pytest.raises(ValueError, match=r"metadata at the head of .*README.md is not valid"):
            names_of(folder)


def test_shards_go_with_their_index(tmp_path):
    save_checkpoint(tmp_path, max_shard_size="100kB")
    shards = {path.name for path in tmp_path.glob("model-*.safetensors")}
    assert len(shards) > 1 and names_of(tmp_path) >= shards | {"model.safetensors.index.json"}
    (tmp_path / sorted(shards)[0]).unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-.* is missing or broken"):
        names_of(tmp_path)


def test_shards_beside_one_file_stay_as_transformers_would_not_read_them(folder):
    (folder / "model-00001-of-00002.safetensors").write_text("old")
    (folder / "model.safetensors.index.json").write_text("{}")
    assert not {name for name in names_of(folder) if "0000" in name or "index" in name}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
def test_a_folder_without_a_part_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name}|has no processor"):
        names_of(folder)


def test_broken_folders_are_refused(folder, tmp_path):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is missing or broken: save the model again"):
        names_of(folder)
    (folder / "model.safetensors").write_bytes(weights)
    for module in folder.glob("modeling_clip_hf.py"):
        module.unlink()
    with pytest.raises(ValueError, match="does not hold the model's code"):
        names_of(folder, with_code=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    with pytest.raises(ValueError, match=r"of type 'clip'.*convert_checkpoint.py .* --to clip_hf"):
        names_of(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        names_of(folder)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        names_of(tmp_path / "nowhere")


def test_weights_of_another_model_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    name = "text_model.final_layer_norm.bias"
    changes = {
        f"1 missing: {name}": {name: None},
        "1 superfluous: text_model.mine": {"text_model.mine": torch.zeros(2)},
        rf"1 wrongly shaped: {name} .as ours \[65\] instead of \[64\]\)": {name: torch.zeros(65)},
    }
    for problem, change in changes.items():
        changed = {name: tensor for name, tensor in (weights | change).items() if tensor is not None}
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(ValueError, match=rf"{folder}: the weights do not fit the configuration; {problem}$"):
            names_of(folder)
    save_file(weights, folder / "model.safetensors")
    names_of(folder)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("model.safetensors.index.json", b"{}", r"index\.json has no weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 1}}', r"index\.json has no weight_map"),
        (
            "config.json",
            b'{"model_type": "clip_hf", "text_config": 3}',
            r"config\.json is not that of a model of ours",
        ),
        ("config.json", {"auto_map": None}, "does not hold the model's code"),
        ("config.json", {"auto_map": [1]}, "does not hold the model's code"),
        ("processor_config.json", b"[]", "has no processor"),
        ("tokenizer.json", b"[]", "has no processor"),
        ("README.md", b"caf\xe9", r"README\.md is not UTF-8"),
        ("results.json", b"caf\xe9", r"results\.json is not JSON"),
        ("card.json", b'{"config": 3}', r"card\.json: config is 3"),
    ],
)
def test_broken_files_are_named(folder, name, content, problem):
    if "index" in name:
        (folder / "model.safetensors").unlink()
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / name).read_text()) | content).encode()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem) as error:
        names_of(folder, with_code=True)
    assert str(folder) in str(error.value) and type(error.value) is ValueError


def test_other_formats_lie_where_their_readers_look(folder, tmp_path):
    with collected_files(folder, REPO_ID, formats=("clip_hf", "transformers", "open_clip")) as files:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        assert {str(Path(name).parent) for name in files} == {".", "transformers", "open_clip"}
    text = "a photo of a dog"
    ours, theirs = ClipHfModel.from_pretrained(tmp_path), CLIPModel.from_pretrained(tmp_path, subfolder="transformers")
    processors = [
        ClipHfProcessor.from_pretrained(tmp_path),
        CLIPProcessor.from_pretrained(tmp_path, subfolder="transformers"),
    ]
    features = []
    for model, processor in zip((ours, theirs), processors, strict=True):
        inputs = processor(text=text, images=Image.new("RGB", (40, 60), "red"), return_tensors="pt")
        with torch.no_grad():
            features.append(model(**inputs).logits_per_image)
    torch.testing.assert_close(*features)
    page = (tmp_path / "README.md").read_text()
    assert f'CLIPModel.from_pretrained("{REPO_ID}", subfolder="transformers")' in page
    assert f'"hf-hub:{REPO_ID}"' in page

    text_config = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert text_config["hf_tokenizer_name"] == REPO_ID
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, **text_config["tokenizer_kwargs"])
    assert tokenizer(text)["input_ids"] == processors[0](text=text)["input_ids"]
    weights = load_file(tmp_path / "open_clip_model.safetensors")
    assert torch.equal(weights["token_embedding.weight"], ours.text_model.embeddings.token_embedding.weight)


def test_formats_that_are_none(folder):
    with pytest.raises(ValueError, match=r"unknown formats \['onnx'\].*open_clip"):
        names_of(folder, formats=("clip_hf", "onnx"))
    with pytest.raises(ValueError, match="add it"):
        names_of(folder, formats=("open_clip",))


@pytest.mark.parametrize(
    "secret", ["hf_" + "aB3" * 11, "https://me:aB3@host/a", "https://a/b.tar?X-Amz-Signature=" + "aB3" * 11]
)
@pytest.mark.parametrize("name", ["results.json", "card.json", "README.md", "LICENSE", "LICENSE.rst"])
def test_secrets_stay_here(folder, name, secret):
    texts = {
        "results.json": json.dumps(RESULTS | {"command": secret}),
        "card.json": json.dumps({"summary": f"made with {secret}"}),
        "README.md": f"---\nlicense: mit\n---\n{secret}",
    }
    (folder / name).write_text(texts.get(name, secret))
    with pytest.raises(ValueError, match=f"({name}|README.md) holds what looks like an? .*: remove it") as error:
        names_of(folder)
    assert "aB3" not in str(error.value)


RESULTS = {
    "training": {"num_pairs_seen": 8, "steps": 1, "batch_size": 8, "epochs": 1.0, "num_processes": 1, "device": "cpu"},
    "arguments": {
        **{"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0, "weight_decay": 0.2},
        **{"optim": "adamw", "bf16": False, "fp16": False, "seed": 0},
    },
    "evaluation": None,
    "versions": {"torch": "2"},
    "history": [],
}
