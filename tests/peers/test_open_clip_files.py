"""Checkpoints from OpenCLIP and to OpenCLIP, through its own code that writes and opens them."""

import json

import pytest
import torch
from PIL import Image

from clip_hf import ClipHfConfig, ClipHfModel, ClipHfProcessor, ClipHfTokenizer
from clip_hf.conversion.checking import Files, compare
from clip_hf.conversion.layouts import tensor_shapes, to_layout
from clip_hf.conversion.reading import read_checkpoint
from clip_hf.conversion.writing import write_checkpoint
from clip_hf.model.open_clip_checkpoint_clip_hf import read_open_clip_config, translate_open_clip_config
from tests.conversion.test_layouts import assert_same_bits
from tests.conversion.tiny_checkpoints import tiny_checkpoint
from tests.open_clip_folders import CAPTIONS
from tests.peers.test_open_clip import OPEN_CLIP_NAMES
from tests.tiny_models import random_ids, random_pixels, randomize_batch_norms

open_clip = pytest.importorskip("open_clip", reason="OpenCLIP lives in the environment of `make test-peers`")
push_to_hf_hub = pytest.importorskip("open_clip.push_to_hf_hub")
pytestmark = pytest.mark.peers


def save_as_open_clip_does(model, name, folder, quick_gelu=True, pickled=False):
    config = open_clip.get_model_config(name) | {"quick_gelu": quick_gelu}
    tokenizer = open_clip.get_tokenizer(name)
    tokenizer.save_pretrained = lambda folder: None  # OpenAI's vocabulary is part of OpenCLIP, not of its folders
    push_to_hf_hub.save_for_hf(model, tokenizer, config, folder, safe_serialization=not pickled)
    return config


@pytest.mark.parametrize("name", OPEN_CLIP_NAMES)
def test_all_nine_there_and_back_are_bit_identical(name, tmp_path):
    torch.manual_seed(0)
    reference = open_clip.create_model(OPEN_CLIP_NAMES[name], pretrained=None, force_quick_gelu=True).eval()
    randomize_batch_norms(reference)
    save_as_open_clip_does(reference, OPEN_CLIP_NAMES[name], tmp_path / "theirs")
    checkpoint = read_checkpoint(str(tmp_path / "theirs"))
    assert architecture(checkpoint.config) == architecture(ClipHfConfig.from_architecture(name))
    write_checkpoint(checkpoint, tmp_path / "ours", "clip_hf")
    write_checkpoint(read_checkpoint(str(tmp_path / "ours")), tmp_path / "again", "open_clip")
    again, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'again'}")
    assert_same_bits(dict(again.state_dict()), dict(reference.state_dict()))
    assert preprocess is not None
    source, target = Files(str(tmp_path / "theirs"), "open_clip"), Files(str(tmp_path / "ours"), "clip_hf")
    comparison = compare(source, target, checkpoint.config)
    assert comparison.original == f"open_clip {open_clip.__version__}"
    assert comparison.difference < 1e-5


def architecture(config):
    fields = config.to_dict()
    return {key: fields[key] | {"dtype": None} for key in ("text_config", "vision_config")}, config.projection_dim


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_from_pretrained_gives_open_clips_features(custom_text, pickled, quick_gelu, tmp_path):
    torch.manual_seed(0)
    reference = open_clip.create_model(
        "ViT-S-32-alt", pretrained=None, force_quick_gelu=quick_gelu, force_custom_text=custom_text
    ).eval()
    save_as_open_clip_does(reference, "ViT-S-32-alt", tmp_path / "theirs", quick_gelu, pickled)
    model = ClipHfModel.from_pretrained(tmp_path / "theirs")
    ids, pixels = random_ids(model.config), random_pixels(model.config)
    with torch.no_grad():
        output = model(ids, pixels)
        torch.testing.assert_close(output.image_embeds, reference.encode_image(pixels, True), rtol=0, atol=1e-5)
        torch.testing.assert_close(output.text_embeds, reference.encode_text(ids, True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_configuration_of_open_clip_is_ours_or_refused(name, tmp_path):
    """What is taken has the tensors of OpenCLIP's own model, by name and shape; the rest is refused with a reason."""
    content = {"model_cfg": open_clip.get_model_config(name)}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    try:
        config = ClipHfConfig(**translate_open_clip_config(read_open_clip_config(tmp_path)))
    except ValueError as error:
        plain = name.startswith(("RN", "ViT-B-32-q", "ViT-B-16-q", "ViT-L-14-q", "ViT-H-14-q", "ViT-bigG-14-q"))
        assert not plain, error
        assert "OpenCLIP's configuration" in str(error)
        return
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in tensor_shapes(config).items()}
        model_config = {key: value for key, value in content["model_cfg"].items() if key != "custom_text"}
        expected = open_clip.model.CLIP(**model_config).state_dict()
    converted = to_layout(weights, "open_clip", config)
    assert {key: value.shape for key, value in converted.items()} == {key: expected[key].shape for key in expected}


def test_pictures_and_texts_are_prepared_as_open_clip_does(tmp_path):
    """With OpenAI's vocabulary, which OpenCLIP brings along."""
    vocabulary = open_clip.tokenizer.default_bpe()
    reference = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    save_as_open_clip_does(reference, "ViT-S-32-alt", tmp_path / "theirs")
    checkpoint = read_checkpoint(str(tmp_path / "theirs"), tokenizer=vocabulary)
    write_checkpoint(checkpoint, tmp_path / "ours", "clip_hf")
    write_checkpoint(checkpoint, tmp_path / "again", "open_clip")
    processor = ClipHfProcessor.from_pretrained(tmp_path / "ours")
    picture = Image.effect_mandelbrot((320, 260), (-2, -1.5, 1, 1.5), 99).convert("RGB")
    for folder in ("theirs", "again"):
        place = f"local-dir:{tmp_path / folder}"
        _, preprocess = open_clip.create_model_from_pretrained(place)
        pixels = checkpoint.image_processor(picture, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(pixels, preprocess(picture), rtol=0, atol=1e-6)
        expected = open_clip.get_tokenizer(place)([*CAPTIONS, "Schön, “ﬁne” &amp; two  cafe\u0301s!!"])
        found = processor(text=[*CAPTIONS, "Schön, “ﬁne” &amp; two  cafe\u0301s!!"], padding="max_length")["input_ids"]
        ends = expected.argmax(dim=1).tolist()
        for row, other, end in zip(found, expected.tolist(), ends, strict=True):
            assert row[: end + 1] == other[: end + 1]


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_vocabulary_of_its_own_goes_to_open_clip(tower, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path, tower)
    write_checkpoint(checkpoint, tmp_path / "there", "open_clip")
    place = f"local-dir:{tmp_path / 'there'}"
    model, ids = open_clip.create_model(place).eval(), open_clip.get_tokenizer(place)(CAPTIONS)
    assert [row[: row.index(529) + 1] for row in ids.tolist()] == checkpoint.tokenizer(CAPTIONS)["input_ids"]
    write_checkpoint(checkpoint, tmp_path / "ours", "clip_hf")
    ours = ClipHfModel.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    with torch.no_grad():
        features = ours.get_text_features(ids).pooler_output
        torch.testing.assert_close(features, model.encode_text(ids), rtol=0, atol=1e-5)
    assert ClipHfTokenizer.from_pretrained(tmp_path / "there")(CAPTIONS) == checkpoint.tokenizer(CAPTIONS)
    assert read_open_clip_config(tmp_path / "there")["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "there"
