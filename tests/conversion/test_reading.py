"""Checkpoints read from files; damaged, mislabelled and mixed-up ones are one clear error each."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig

from clip_hf import ClipHfModel, ClipHfTokenizer
from clip_hf.conversion.layouts import LAYOUTS
from clip_hf.conversion.reading import find_layout, read_checkpoint, round_weights
from clip_hf.conversion.writing import write_checkpoint
from tests.conversion.test_layouts import assert_same_bits
from tests.conversion.tiny_checkpoints import tiny_checkpoint, write_all_layouts
from tests.open_clip_folders import custom_text, plain_weights, write_open_clip_folder
from tests.openai_weights import openai_weights

FILES = {
    "clip_hf": "model.safetensors",
    "transformers": "model.safetensors",
    "open_clip": "open_clip_model.safetensors",
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return {tower: write_all_layouts(make(folder / tower), tower) for tower in ("vit", "resnet")}


def make(folder):
    folder.mkdir()
    return folder


@pytest.fixture
def copies(originals, tmp_path):
    """Copies that a test may break, and where each keeps its weights."""
    paths = {}
    for layout, path in originals["vit"].items():
        paths[layout] = tmp_path / path.name
        shutil.copytree(path, paths[layout]) if path.is_dir() else shutil.copy(path, paths[layout])
    return {layout: (path, path / FILES[layout] if layout in FILES else path) for layout, path in paths.items()}


def test_layout_is_found(copies):
    for layout, (path, _) in copies.items():
        assert find_layout(str(path)) == read_checkpoint(str(path)).layout == layout


def test_config_json_goes_before_open_clip_config_json(copies, tmp_path):
    """Repositories of OpenCLIP's models hold both; the weights are the same."""
    folder = tmp_path / "both"
    shutil.copytree(copies["transformers"][0], folder)
    shutil.copytree(copies["open_clip"][0], folder, dirs_exist_ok=True)
    assert find_layout(str(folder)) == "transformers"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_weights(copies, layout):
    path, weights = copies[layout]
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"{weights.name} is damaged"):
        read_checkpoint(str(path))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_image_in_place_of_weights(copies, layout):
    path, weights = copies[layout]
    Image.new("RGB", (9, 9)).save(weights, format="PNG")
    with pytest.raises(ValueError, match=f"{weights.name} is damaged or no"):
        read_checkpoint(str(path))


@pytest.mark.parametrize("layout", FILES)
def test_wrongly_shaped_weight(copies, layout):
    path, weights = copies[layout]
    tensors = load_file(weights)
    name = next(name for name in tensors if "token_embedding" in name)
    save_file(tensors | {name: tensors[name][:-1].clone()}, weights, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"{path}: .*wrongly shaped: {name} \(as ours \[529, 64\] instead of \[530, 64\]"
    ):
        read_checkpoint(str(path))


@pytest.mark.parametrize("layout", FILES)
def test_weights_of_another_model(copies, originals, layout):
    """Weights and configuration of two checkpoints in one folder."""
    path, weights = copies[layout]
    other = "open_clip" if layout == "transformers" else layout
    shutil.copy(originals["resnet"][other] / FILES[other], weights)
    with pytest.raises(
        ValueError, match=rf"{path}: the weights do not fit the configuration; \d+ missing: .*superfluous"
    ):
        read_checkpoint(str(path))


def test_configuration_of_another_model(copies):
    path, _ = copies["transformers"]
    config = json.loads((path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"missing: vision_model.encoder.layers.2"):
        read_checkpoint(str(path))


def test_image_processor_of_another_model(copies):
    path, _ = copies["transformers"]
    options = json.loads((path / "preprocessor_config.json").read_text())
    options |= {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    (path / "preprocessor_config.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=r"224 x 224 pixels, its model takes 32 x 32: .* do not belong together"):
        read_checkpoint(str(path))


def test_tokenizer_of_another_model(copies, tmp_path):
    ClipHfTokenizer.train(["a b c"] * 3, vocab_size=520).save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"tokenizer has .* ends a text with id .* reads at id 529: .* belong together"
    ):
        read_checkpoint(str(copies["open_clip"][0]), tokenizer=str(tmp_path / "other"))


@pytest.mark.parametrize("layout", ["clip_hf", "transformers"])
@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not a valid JSON"), ('{"model_type": "bert"}', "'bert'"), ("{}", "no checkpoint")],
)
def test_broken_or_foreign_config_json(copies, layout, text, message):
    path, _ = copies[layout]
    (path / "config.json").write_text(text)
    with pytest.raises((ValueError, OSError), match=message):
        read_checkpoint(str(path))


def test_field_of_the_wrong_type_in_config_json(copies):
    path, _ = copies["clip_hf"]
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["hidden_size"] = "wide"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{path}: .*hidden_size"):
        read_checkpoint(str(path))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "[1]"),
        ("config.json", "null"),
        ("config.json", '{"model_type": ["clip"]}'),
        ("preprocessor_config.json", "[1]"),
        ("preprocessor_config.json", '{"crop_size": [1]}'),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[1]"),
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", '{"model_max_length": "x"}'),
    ],
)
def test_file_that_holds_something_else(copies, file, text):
    path, _ = copies["transformers"]
    (path / file).write_text(text)
    with pytest.raises(ValueError, match=f"{path}"):
        read_checkpoint(str(path))


def test_merges_of_another_vocabulary(copies):
    path, _ = copies["transformers"]
    content = json.loads((path / "tokenizer.json").read_text())
    content["model"]["merges"][-1] = ["q", "zzz"]
    (path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Vocabulary and merges do not belong together"):
        read_checkpoint(str(path))


def test_number_in_place_of_a_tensor(copies):
    path, weights = copies["transformers"]
    torch.save(load_file(weights) | {"logit_scale": 2.5}, path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin holds a float under the name 'logit_scale'"):
        read_checkpoint(str(path))


def test_file_of_open_clips_is_not_taken_for_openais(tmp_path):
    folder = write_open_clip_folder(tmp_path / "gelu", pickled=True, quick_gelu=False)
    with pytest.raises(ValueError, match=r"whose activation only open_clip_config\.json tells: open the folder"):
        read_checkpoint(str(folder / "open_clip_pytorch_model.bin"))


def test_other_models_are_refused_by_name(tmp_path):
    SiglipConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model of type 'siglip'"):
        read_checkpoint(str(tmp_path))
    folder = write_open_clip_folder(tmp_path / "coca", multimodal_cfg={"width": 512})
    with pytest.raises(ValueError, match=f"{folder}/open_clip_config.json: .*CoCa"):
        read_checkpoint(str(folder))


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such is not there"):
        read_checkpoint(str(tmp_path / "no-such"))
    with pytest.raises(ValueError, match=r"neither a config\.json nor an open_clip_config\.json"):
        read_checkpoint(str(tmp_path))


def test_configuration_without_weights(copies):
    path, weights = copies["clip_hf"]
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"none of model\.safetensors, pytorch_model\.bin"):
        read_checkpoint(str(path))


def test_one_file_of_a_folder(copies):
    with pytest.raises(ValueError, match="one file of a checkpoint: name the folder"):
        read_checkpoint(str(copies["clip_hf"][1]))


@pytest.fixture
def sharded(tmp_path):
    checkpoint, folder = tiny_checkpoint(make(tmp_path / "parts"), "vit"), tmp_path / "sharded"
    write_checkpoint(checkpoint, folder, "transformers", max_shard_size="200KB")
    return folder


def test_missing_shard(sharded):
    next(sharded.glob("model-00002-*")).unlink()
    with pytest.raises(ValueError, match=r"index\.json names model-00002-of-\d+\.safetensors, which is not there"):
        read_checkpoint(str(sharded))


def test_shards_of_two_checkpoints(sharded):
    shards = sorted(sharded.glob("model-0*"))
    shutil.copy(shards[1], shards[0])
    with pytest.raises(ValueError, match=r"holds tensors that .* does not place there"):
        read_checkpoint(str(sharded))


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {"logit_scale": "../secret.safetensors"}}'])
def test_broken_index(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json is no index of weights"):
        read_checkpoint(str(sharded))


@pytest.mark.parametrize("layout", ["clip_hf", "transformers"])
def test_pickled_weights_of_older_versions(copies, layout):
    path, weights = copies[layout]
    expected = read_checkpoint(str(path)).weights
    tensors = load_file(weights)
    tensors |= {"text_model.embeddings.position_ids": torch.arange(16)} if layout == "transformers" else {}
    torch.save(tensors, path / "pytorch_model.bin")
    weights.unlink()
    assert_same_bits(read_checkpoint(str(path)).weights, expected)


def test_pickle_of_more_than_tensors_needs_trust(copies):
    path, _ = copies["openai"]
    torch.save(
        openai_weights("vit") | {"ln_final.bias": torch.nn.Linear(1, 64).bias, "more": Image.new("RGB", (1, 1))}, path
    )
    with pytest.raises(ValueError, match=r"needs more than tensors: it wants PIL\.Image.*--trust_pickle"):
        read_checkpoint(str(path))


@pytest.mark.parametrize("layout", [dict, custom_text])
def test_both_of_open_clips_layouts(layout, tmp_path):
    weights = plain_weights("resnet")
    folder = write_open_clip_folder(tmp_path / "model", "resnet", layout(weights), pickled=True)
    checkpoint = read_checkpoint(str(folder))
    assert_same_bits(checkpoint.weights, dict(ClipHfModel.from_pretrained(folder).state_dict()))


def test_statistics_of_the_image_processor_reach_the_configuration(copies):
    """The model itself normalises raw pixels."""
    path, _ = copies["transformers"]
    options = json.loads((path / "preprocessor_config.json").read_text()) | {
        "image_mean": 0.5,
        "image_std": [0.1, 0.2, 0.3],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(options))
    vision = read_checkpoint(str(path)).config.vision_config
    assert vision.image_mean == (0.5, 0.5, 0.5)
    assert vision.image_std == pytest.approx((0.1, 0.2, 0.3))


def test_rounding_spares_temperature_and_counters(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "resnet")
    before = dict(checkpoint.weights)
    round_weights(checkpoint, torch.bfloat16)
    assert checkpoint.config.dtype == torch.bfloat16
    for name, tensor in checkpoint.weights.items():
        kept = name == "logit_scale" or name.endswith("num_batches_tracked")
        assert tensor.dtype == (before[name].dtype if kept else torch.bfloat16)
        assert torch.equal(tensor, before[name].to(tensor.dtype))


def test_values_too_large_for_a_type_are_not_rounded_to_infinity(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, "vit")
    name = "vision_model.layers.0.mlp.fc1.weight"
    large = checkpoint.weights[name].float()
    large[0, 0], large[0, 1] = 70_000, float("inf")
    checkpoint.weights[name] = large
    with pytest.raises(ValueError, match=rf"{name} has values up to 7e\+04, but torch.float16 ends at 6.55e\+04"):
        round_weights(checkpoint, torch.float16)
    round_weights(checkpoint, torch.bfloat16)
