"""Raw pixels are normalised by the model as floats are by the image processor, wherever the numbers came from."""

import json

import pytest
import torch
from transformers import AutoModel, CLIPImageProcessor, CLIPVisionModelWithProjection

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfViTModel
from clip_hf.evaluation.embedding import Embedder
from clip_hf.model.normalization_clip_hf import normalization_of
from clip_hf.training import ClipTrainingArguments
from clip_hf.training.model_args import ModelArguments, build_model
from tests.model.tiny_zero_shot import pictures, tiny_tokenizer, tiny_transformers_model

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SIZES = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
RAW = {"do_rescale": False, "do_normalize": False}


@pytest.fixture(params=["preprocessor_config.json", "processor_config.json", "both"])
def folder(request, tmp_path):
    """transformers' CLIP with numbers that are not OpenAI's, which its config.json does not hold."""
    tiny_transformers_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    write_options(tmp_path, request.param, image_mean=list(MEAN), image_std=list(STD))
    return tmp_path


def write_options(folder, place, **options):
    CLIPImageProcessor(**SIZES, **options).save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    if place == "processor_config.json":
        content = {"image_processor": json.loads(file.read_text()), "processor_class": "CLIPProcessor"}
        (folder / place).write_text(json.dumps(content))
        file.unlink()
    elif place == "both":  # as transformers 4 saved them
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))


@torch.no_grad()
def assert_alike(model, processor):
    raw = processor(pictures(2), return_tensors="pt", **RAW)["pixel_values"]
    found, expected = (
        model(pixel_values=pixels).image_embeds
        for pixels in (raw, processor(pictures(2), return_tensors="pt")["pixel_values"])
    )
    torch.testing.assert_close(found, expected)


def test_a_folder_of_transformers_keeps_its_numbers(folder, tmp_path):
    processor = ClipHfImageProcessor.from_pretrained(folder)
    assert_alike(ClipHfModel.from_pretrained(folder).eval(), processor)
    assert_alike(ClipHfViTModel.from_pretrained(folder).eval(), processor)
    ClipHfModel.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    assert_alike(AutoModel.from_pretrained(tmp_path / "ours").eval(), processor)
    vision = ClipHfConfig.from_pretrained(folder / "config.json").vision_config
    assert (vision.image_mean, vision.image_std) == (MEAN, STD)
    Embedder(ClipHfModel.from_pretrained(folder), processor, None)


def test_a_tower_of_transformers_keeps_its_numbers(tmp_path):
    CLIPVisionModelWithProjection(tiny_transformers_model().config.vision_config).save_pretrained(tmp_path)
    write_options(tmp_path, "preprocessor_config.json", image_mean=0.5, image_std=0.25, rescale_factor=1 / 127.5)
    assert_alike(ClipHfViTModel.from_pretrained(tmp_path).eval(), ClipHfImageProcessor.from_pretrained(tmp_path))


def test_without_an_image_processor_the_numbers_are_openais(tmp_path):
    tiny_transformers_model().save_pretrained(tmp_path)
    assert ClipHfConfig.from_pretrained(tmp_path).vision_config.image_mean == pytest.approx(
        (0.481, 0.458, 0.408), abs=1e-3
    )


@pytest.mark.parametrize("content", ["{", "[1]", '{"image_mean": [0.5, 0.5]}', '{"image_mean": "grey"}'])
def test_a_damaged_file_is_named(content, tmp_path):
    tiny_transformers_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json has no image processor \("):
        ClipHfModel.from_pretrained(tmp_path)


def test_a_processor_of_other_numbers_is_refused(folder, tmp_path):
    ours = tmp_path / "ours"
    ClipHfModel.from_pretrained(folder).save_pretrained(ours)
    tiny_tokenizer().save_pretrained(ours)
    other = ClipHfImageProcessor(**SIZES)
    other.save_pretrained(ours)
    message = r"image_mean is \(0\.48.* in the image processor, but \(0\.5, 0\.4, 0\.3\) in the model's vision_config"
    with pytest.raises(ValueError, match=message):
        Embedder(ClipHfModel.from_pretrained(ours), other, None)
    with pytest.raises(ValueError, match=message):
        build_model(ModelArguments(str(ours)), [], ClipTrainingArguments(str(tmp_path / "run"), use_cpu=True))


def test_pixels_that_are_not_scaled_or_not_normalised_are_heeded():
    unscaled = {"do_rescale": False, "image_mean": 127.5, "image_std": [51.0, 102.0, 255.0]}
    assert normalization_of(unscaled) == {"image_mean": (0.5,) * 3, "image_std": pytest.approx((0.2, 0.4, 1.0))}
    found = normalization_of({"do_normalize": False, "image_mean": [0.5] * 3})
    assert found == {"image_mean": (0.0,) * 3, "image_std": pytest.approx((1.0,) * 3)}
    assert normalization_of(RAW) == {"image_mean": (0.0,) * 3, "image_std": pytest.approx((1 / 255,) * 3)}


def test_a_processor_that_leaves_pixels_raw_leaves_the_numbers_to_the_model(folder, tmp_path):
    raw = ClipHfImageProcessor(**SIZES, **RAW)
    assert normalization_of(raw.to_dict()) == {}
    ClipHfModel.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    tiny_tokenizer().save_pretrained(tmp_path / "ours")
    raw.save_pretrained(tmp_path / "ours")
    Embedder(ClipHfModel.from_pretrained(tmp_path / "ours"), raw, None)
    run = ClipTrainingArguments(str(tmp_path / "run"), use_cpu=True)
    model, processor = build_model(ModelArguments(str(tmp_path / "ours")), [], run)
    assert model.config.vision_config.image_mean == MEAN
    assert processor.image_processor.do_normalize is False


def test_transformers_own_pixels_that_nobody_scales_reach_the_tower_as_they_are(tmp_path):
    theirs = tiny_transformers_model()
    theirs.save_pretrained(tmp_path)
    write_options(tmp_path, "preprocessor_config.json", **RAW)
    raw = ClipHfImageProcessor.from_pretrained(tmp_path)(pictures(2), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = ClipHfModel.from_pretrained(tmp_path).eval().get_image_features(raw).pooler_output
        expected = theirs.get_image_features(raw.float()).pooler_output
    torch.testing.assert_close(found, expected)
