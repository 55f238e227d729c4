"""The comparison of features finds what is wrong, and says whom it compared with."""

import importlib.util
import json
import re
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from clip_hf.conversion import checking
from clip_hf.conversion.checking import Comparison, Files, compare, random_inputs, require_same_tokens
from clip_hf.conversion.reading import read_checkpoint, round_weights
from clip_hf.conversion.writing import write_checkpoint
from tests.conversion.tiny_checkpoints import write_all_layouts
from tests.open_clip_folders import small_tokenizer
from tests.tiny_models import tiny_config

TRANSFORMERS = f"transformers {transformers.__version__}"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_all_layouts(tmp_path_factory.mktemp("written"), "vit")


@pytest.fixture(autouse=True)
def without_open_clip(monkeypatch):
    """As where OpenCLIP is not installed; tests/peers is about where it is."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "open_clip" else find_spec(name))


def files(paths, layout):
    return Files(str(paths[layout]), layout)


@pytest.mark.parametrize(("source", "target"), [("transformers", "openai"), ("open_clip", "transformers")])
def test_transformers_is_compared_with_on_either_side(paths, source, target):
    config = read_checkpoint(str(paths[source])).config
    comparison = compare(files(paths, source), files(paths, target), config)
    assert comparison.original == TRANSFORMERS
    assert comparison.difference < 1e-5
    assert re.fullmatch(
        rf"differ by at most [\d.e+-]+ from those of {TRANSFORMERS} \(1e-04 allowed\)", str(comparison)
    )


def test_a_configuration_may_ask_for_tuples(paths, tmp_path):
    folder = shutil.copytree(paths["transformers"], tmp_path / "tuples")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"return_dict": False}))
    tuples = Files(str(folder), "transformers")
    assert compare(tuples, files(paths, "openai"), read_checkpoint(str(folder)).config).difference < 1e-5


def test_without_an_original_it_says_so(paths):
    config = read_checkpoint(str(paths["openai"])).config
    comparison = compare(files(paths, "openai"), files(paths, "clip_hf"), config)
    assert str(comparison) == "not checked against the original: it is not installed" == str(Comparison(None))


def test_where_there_is_no_original_it_says_so(paths):
    config = read_checkpoint(str(paths["clip_hf"])).config
    comparison = compare(files(paths, "clip_hf"), files(paths, "clip_hf"), config)
    assert str(comparison) == "not checked against the original: both are this package's own"


@pytest.mark.parametrize(
    "name",
    ["text_model.encoder.layers.1.mlp.fc2.bias", "vision_model.post_layernorm.weight", "visual_projection.weight"],
)
def test_one_wrong_tensor_is_noticed(paths, name, tmp_path):
    checkpoint = read_checkpoint(str(paths["clip_hf"]))
    write_checkpoint(checkpoint, tmp_path / "wrong", "transformers")
    weights = load_file(tmp_path / "wrong" / "model.safetensors")
    weights[name] = weights[name].roll(1)
    save_file(weights, tmp_path / "wrong" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"differ by .* from those that {TRANSFORMERS} computes for .*wrong; 1e-04"):
        compare(Files(str(tmp_path / "wrong"), "transformers"), files(paths, "clip_hf"), checkpoint.config)


def test_weights_that_are_no_numbers_are_noticed(paths, tmp_path):
    checkpoint = read_checkpoint(str(paths["clip_hf"]))
    checkpoint.weights["text_model.projection.weight"] = torch.full((32, 64), float("nan"))
    write_checkpoint(checkpoint, tmp_path / "nan", "transformers")
    with pytest.raises(ValueError, match="differ by nan"):
        compare(Files(str(tmp_path / "nan"), "transformers"), files(paths, "clip_hf"), checkpoint.config)


def test_wrong_activation_is_noticed(paths, tmp_path):
    checkpoint = read_checkpoint(str(paths["transformers"]))
    checkpoint.config.text_config.hidden_act = "gelu"
    write_checkpoint(checkpoint, tmp_path / "gelu", "clip_hf")
    with pytest.raises(ValueError, match="features differ by"):
        compare(files(paths, "transformers"), Files(str(tmp_path / "gelu"), "clip_hf"), checkpoint.config)


def test_rounded_weights_are_compared_with_rounded_ones(paths, tmp_path):
    checkpoint = read_checkpoint(str(paths["transformers"]))
    round_weights(checkpoint, torch.float32)  # of which a loader may map the file itself
    write_checkpoint(checkpoint, tmp_path / "source", "transformers")
    content = (tmp_path / "source" / "model.safetensors").read_bytes()
    round_weights(checkpoint, torch.bfloat16)
    write_checkpoint(checkpoint, tmp_path / "rounded", "clip_hf")
    source, target = Files(str(tmp_path / "source"), "transformers"), Files(str(tmp_path / "rounded"), "clip_hf")
    assert compare(source, target, checkpoint.config, torch.bfloat16).difference < 1e-5
    assert (tmp_path / "source" / "model.safetensors").read_bytes() == content
    with pytest.raises(ValueError, match="features differ by"):
        compare(source, target, checkpoint.config)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_random_inputs_end_every_text_once_or_more_at_different_places(tower):
    config = tiny_config(tower)
    pixels, ids = random_inputs(config)
    assert pixels.shape[2:] == (config.vision_config.image_size,) * 2
    ends = (ids == config.text_config.eos_token_id).int().argmax(dim=1)
    assert len(set(ends.tolist())) > 1
    assert (ids.max(dim=1).values == config.text_config.eos_token_id).all()
    assert checking.BATCH_SIZE == len(ids) == len(pixels)


@pytest.mark.parametrize("layout", ["clip_hf", "transformers", "open_clip", "openai"])
def test_tokens_that_were_lost_are_noticed(paths, layout):
    tokenizer = small_tokenizer()
    require_same_tokens(tokenizer, files(paths, layout))
    require_same_tokens(None, files(paths, layout))
    tokenizer.add_tokens(["zebrafish", "<new>"])
    if layout == "openai":  # which brings its own
        return require_same_tokens(tokenizer, files(paths, layout))
    message = "the tokenizer that was written has 530 tokens, the source's 532; these differ: <new>, zebrafish"
    with pytest.raises(ValueError, match=message):
        require_same_tokens(tokenizer, files(paths, layout))


def test_a_token_that_is_no_longer_found_as_a_whole_is_noticed(paths):
    tokenizer = small_tokenizer()
    tokenizer.add_tokens("a</w>")
    with pytest.raises(ValueError, match="has 530 tokens, the source's 530; these differ: a</w>"):
        require_same_tokens(tokenizer, files(paths, "transformers"))
