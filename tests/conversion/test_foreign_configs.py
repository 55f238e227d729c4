"""Configurations in others' words, read back; what a layout cannot say is refused with the reason."""

import pytest
from PIL import Image

from clip_hf import ClipHfConfig, ClipHfImageProcessor
from clip_hf.conversion.foreign_configs import require_openai_architecture, to_open_clip_config, to_transformers_config
from clip_hf.model.architectures_clip_hf import ARCHITECTURES
from clip_hf.model.conversion_clip_hf import translate_transformers_config
from clip_hf.model.open_clip_checkpoint_clip_hf import open_clip_image_options, translate_open_clip_config
from tests.tiny_models import tiny_config

VITS = [name for name in ARCHITECTURES if name.startswith("ViT")]


def image_processor(config, **options):
    size = config.vision_config.image_size
    return ClipHfImageProcessor(**{"size": size, "crop_size": size} | options)


@pytest.mark.parametrize("name", VITS)
def test_transformers_and_back(name):
    config = ClipHfConfig.from_architecture(name)
    again = ClipHfConfig(**translate_transformers_config(to_transformers_config(config).to_dict()))
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_open_clip_and_back(name):
    config = ClipHfConfig.from_architecture(name)
    content = to_open_clip_config(config, image_processor(config))
    assert ClipHfConfig(**translate_open_clip_config(content)).to_dict() == config.to_dict()
    again = ClipHfImageProcessor(**open_clip_image_options(content))
    assert again.to_dict() == image_processor(config).to_dict()


@pytest.mark.parametrize("intermediate_size", [8192, 8191, 100, 6657])
def test_any_width_of_the_mlp_survives_open_clips_ratio(intermediate_size):
    vision = {"hidden_size": 1664, "num_attention_heads": 16, "intermediate_size": intermediate_size}
    config = ClipHfConfig.from_architecture("ViT-L/14", vision_config=vision)
    content = to_open_clip_config(config, image_processor(config))
    again = ClipHfConfig(**translate_open_clip_config(content))
    assert again.vision_config.intermediate_size == intermediate_size
    assert again.vision_config.num_attention_heads == 16


def test_open_clips_ways_to_prepare_images():
    config = ClipHfConfig.from_architecture("ViT-B/32")
    options = {"size": {"height": 224, "width": 224}, "resample": Image.Resampling.BILINEAR, "image_mean": 0.5}
    content = to_open_clip_config(config, image_processor(config, **options))
    assert content["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert (content["preprocess_cfg"]["resize_mode"], content["preprocess_cfg"]["interpolation"]) == (
        "squash",
        "bilinear",
    )


REFUSED = {
    "gelu_new": ({"text_config": {"hidden_act": "gelu_new"}}, {}, "quick_gelu and gelu"),
    "two activations": ({"text_config": {"hidden_act": "gelu"}}, {}, "quick_gelu and gelu"),
    "epsilon": ({"vision_config": {"layer_norm_eps": 1e-6}}, {}, "layer norms add 1e-5"),
    "end of text": ({"text_config": {"eos_token_id": 5}}, {}, "largest id"),
    "filter": ({}, {"resample": Image.Resampling.LANCZOS}, "how images are prepared"),
    "larger resize": ({}, {"size": 256}, "how images are prepared"),
    "no crop": ({}, {"do_center_crop": False}, "how images are prepared"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_neither_open_clip_nor_openai_can_say_everything(case):
    overrides, options, message = REFUSED[case]
    config = ClipHfConfig.from_architecture("ViT-B/32", **overrides)
    with pytest.raises(ValueError, match=message):
        to_open_clip_config(config, image_processor(config, **options))
    with pytest.raises(ValueError, match=message):
        require_openai_architecture(config, image_processor(config, **options))


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ({"text_config": {"hidden_act": "gelu"}, "vision_config": {"hidden_act": "gelu"}}, {}, "QuickGELU alone"),
        ({"text_config": {"intermediate_size": 100}}, {}, "MLPs of 4 times"),
        ({"text_config": {"num_attention_heads": 4}}, {}, "heads of 64 channels"),
        ({"vision_config": {"num_attention_heads": 4}}, {}, "heads of 64 channels"),
        ({}, {"image_mean": 0.5}, "prepares images in one way"),
        ({}, {"size": {"height": 224, "width": 224}}, "prepares images in one way"),
    ],
)
def test_openai_says_less(overrides, options, message):
    config = ClipHfConfig.from_architecture("ViT-B/32", **overrides)
    to_open_clip_config(config, image_processor(config, **options))
    with pytest.raises(ValueError, match=f"cannot be written as openai: .*{message}"):
        require_openai_architecture(config, image_processor(config, **options))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_released_architectures_are_openais(name):
    config = ClipHfConfig.from_architecture(name)
    require_openai_architecture(config, image_processor(config))


def test_transformers_has_no_resnet():
    with pytest.raises(ValueError, match="cannot be written as transformers: its CLIPModel has no ResNet"):
        to_transformers_config(tiny_config("resnet"))
