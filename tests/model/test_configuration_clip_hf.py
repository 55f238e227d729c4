import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig

from clip_hf import ClipHfConfig, ClipHfResNetConfig, ClipHfTextConfig, ClipHfViTConfig
from clip_hf.model.architectures_clip_hf import ARCHITECTURES, scale_resnet
from clip_hf.model.configuration_clip_hf_towers import FORMAT_VERSION
from tests.tiny_models import TOWERS, tiny_config

CONFIG_CLASSES = (ClipHfConfig, ClipHfTextConfig, ClipHfViTConfig, ClipHfResNetConfig)

# Paper, tables 18 to 20, and released weights: embedding, resolution, feature and text width, text and image heads.
RELEASED = {
    "RN50": (1024, 224, 2048, 512, 8, 32),
    "RN101": (512, 224, 2048, 512, 8, 32),
    "RN50x4": (640, 288, 2560, 640, 10, 40),
    "RN50x16": (768, 384, 3072, 768, 12, 48),
    "RN50x64": (1024, 448, 4096, 1024, 16, 64),
    "ViT-B/32": (512, 224, 768, 512, 8, 12),
    "ViT-B/16": (512, 224, 768, 512, 8, 12),
    "ViT-L/14": (768, 224, 1024, 768, 12, 16),
    "ViT-L/14@336px": (768, 336, 1024, 768, 12, 16),
}


@pytest.mark.parametrize("config_class", CONFIG_CLASSES)
def test_constructs_without_arguments_and_survives_json(config_class, tmp_path):
    config = config_class()
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).to_dict() == config.to_dict()
    fields = json.loads(config.to_json_string(use_diff=False))
    fields.pop("transformers_version")  # transformers stamps it on the copy alone
    assert config_class(**fields) == config


@pytest.mark.parametrize("tower", TOWERS)
def test_reloaded_config_is_equal(tower, tmp_path):
    config = tiny_config(tower)
    config.save_pretrained(tmp_path)
    reloaded = ClipHfConfig.from_pretrained(tmp_path)
    assert type(reloaded.vision_config) is type(config.vision_config)
    for key in ("text_config", "vision_config"):
        assert getattr(reloaded, key).to_dict() == getattr(config, key).to_dict()
    reloaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_released_architecture(name):
    config = ClipHfConfig.from_architecture(name)
    embedding, resolution, feature_width, text_width, text_heads, image_heads = RELEASED[name]
    text, vision = config.text_config, config.vision_config
    assert config.projection_dim == text.projection_dim == vision.projection_dim == embedding
    assert (vision.image_size, vision.hidden_size, vision.num_attention_heads) == (
        resolution,
        feature_width,
        image_heads,
    )
    assert (text.hidden_size, text.num_attention_heads, text.num_hidden_layers) == (text_width, text_heads, 12)
    assert (text.vocab_size, text.max_position_embeddings) == (49408, 77)
    assert (text.bos_token_id, text.eos_token_id) == (49406, 49407)


def test_architecture_overrides_single_fields():
    config = ClipHfConfig.from_architecture("RN50", projection_dim=64, text_config={"vocab_size": 1000})
    assert config.projection_dim == config.vision_config.projection_dim == 64
    assert (config.text_config.vocab_size, config.text_config.hidden_size) == (1000, 512)


def test_unknown_architecture_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"ViT-B-32.*RN50x64.*ViT-L/14@336px"):
        ClipHfConfig.from_architecture("ViT-B-32")


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (ClipHfTextConfig, {"hidden_size": 100, "num_attention_heads": 3}, "100 is not a multiple of .* 3"),
        (ClipHfTextConfig, {"eos_token_id": 49408}, "eos_token_id 49408 is outside the vocabulary of 49408"),
        (ClipHfTextConfig, {"bos_token_id": 5, "eos_token_id": 5}, "both 5"),
        (ClipHfTextConfig, {"max_position_embeddings": 2}, "is 2, but .* need 3"),
        (ClipHfTextConfig, {"num_hidden_layers": 0}, "num_hidden_layers is 0, but must be at least 1"),
        (ClipHfTextConfig, {"attention_dropout": 1.0}, r"attention_dropout is 1.0, but must be in \[0, 1\)"),
        (ClipHfViTConfig, {"image_size": 225}, "image_size 225 is not a multiple of patch_size 32"),
        (ClipHfViTConfig, {"image_mean": [0.5]}, "image_mean has 1 values, but num_channels is 3"),
        (ClipHfViTConfig, {"image_std": [0.5, 0.0, 0.5]}, "every deviation must be above 0"),
        (ClipHfResNetConfig, {"image_size": 230}, "image_size 230 is not a multiple of 32"),
        (ClipHfResNetConfig, {"depths": (3, 4, 6)}, "four stages"),
        (ClipHfResNetConfig, {"width": 7}, "width is 7"),
        (ClipHfResNetConfig, {"num_attention_heads": 7}, "2048 channels .* not a multiple of num_attention_heads 7"),
        (ClipHfConfig, {"text_config": {"projection_dim": 256}}, "256, but projection_dim is 512"),
        (ClipHfConfig, {"vision_config": {"model_type": "swin"}}, "'swin'.*clip_hf_vit, clip_hf_resnet"),
        (
            ClipHfConfig,
            {"vision_config": CLIPVisionConfig()},
            "is a CLIPVisionConfig, but must be a ClipHfViTConfig",
        ),
        (
            ClipHfConfig,
            {"vision_config": ClipHfTextConfig()},
            "is a ClipHfTextConfig, but must be a ClipHfViTConfig",
        ),
        (ClipHfConfig, {"text_config": ClipHfViTConfig()}, "is a ClipHfViTConfig, but must be a ClipHfTextConfig"),
        (ClipHfConfig, {"text_config": "small"}, "is a str, but must be a ClipHfTextConfig or a dictionary"),
        (ClipHfConfig, {"vision_config": {"hidden_act": "gelo"}}, "hidden_act is 'gelo', but must be one of .*gelu"),
    ],
)
def test_wrong_value_raises_at_construction_with_both_numbers(config_class, fields, message):
    with pytest.raises(ValueError, match=message):
        config_class(**fields)


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (ClipHfViTConfig, {"image_size": 225}, "image_size 225 is not a multiple of patch_size 32"),
        (ClipHfConfig, {"projection_dim": 64}, "text_config.projection_dim is 512, but projection_dim is 64"),
    ],
)
def test_wrong_value_beside_a_checkpoint_raises_when_it_is_opened(config_class, fields, message, tmp_path):
    config_class().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        config_class.from_pretrained(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        config_class.from_pretrained(tmp_path, return_unused_kwargs=True, **fields)


@pytest.mark.parametrize(
    ("config_class", "key", "suggestion"),
    [
        (ClipHfTextConfig, "hiden_size", "hidden_size"),
        (ClipHfViTConfig, "patchsize", "patch_size"),
        (ClipHfResNetConfig, "depth", "depths"),
        (ClipHfConfig, "projecton_dim", "projection_dim"),
    ],
)
def test_misspelt_key_suggests_the_right_one(config_class, key, suggestion):
    with pytest.raises(ValueError, match=f"no key '{key}': did you mean '{suggestion}'"):
        config_class(**{key: 3})


@pytest.mark.parametrize("field", [{"hidden_size": "512"}, {"vocab_size": 10.5}, {"layer_norm_eps": None}])
def test_wrong_type_raises(field):
    with pytest.raises((StrictDataclassError, TypeError)):
        ClipHfTextConfig(**field)


def test_saving_checks_again(tmp_path):
    config = tiny_config("vit")
    config.vision_config.patch_size = 7
    with pytest.raises(StrictDataclassError, match="image_size 32 is not a multiple of patch_size 7"):
        config.save_pretrained(tmp_path)


def test_the_callers_tower_configuration_stays_as_it_was():
    text_config = ClipHfTextConfig()
    assert ClipHfConfig(text_config=text_config).text_config.projection_dim == 512
    assert text_config.projection_dim is None


def test_newer_format_is_refused_with_the_way_out(tmp_path):
    config = tiny_config("vit")
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved |= {"format_version": FORMAT_VERSION + 1, "a_key_of_the_future": 1, "projection_dim": [32]}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(
        ValueError, match=rf"format {FORMAT_VERSION + 1}.*up to {FORMAT_VERSION}.*pip install --upgrade"
    ):
        ClipHfConfig.from_pretrained(tmp_path)


def test_tower_configuration_comes_out_of_a_joint_one(tmp_path):
    tiny_config("resnet").save_pretrained(tmp_path)
    assert ClipHfResNetConfig.from_pretrained(tmp_path).width == 8
    with pytest.raises(ValueError, match="'clip_hf_vit' models, but the configuration says 'clip_hf_resnet'"):
        ClipHfViTConfig.from_pretrained(tmp_path)


def test_scaling_rule_against_the_released_models():
    for multiplier, name in ((1, "RN50"), (4, "RN50x4"), (16, "RN50x16"), (64, "RN50x64")):
        scaled, released = scale_resnet(multiplier), ARCHITECTURES[name]
        assert scaled["width"] == released["vision_config"]["width"]
        assert scaled["text_width"] == released["text_config"]["hidden_size"]
        if name != "RN50x16":  # the paper's own choices there are 384 pixels and 40 blocks
            assert scaled["image_size"] == released["vision_config"]["image_size"]
            assert sum(scaled["depths"]) == sum(released["vision_config"]["depths"])
    assert scale_resnet(16)["image_size"] == 352
    assert scale_resnet(1)["depths"] == (3, 4, 6, 3)


def test_scaled_configuration():
    config = ClipHfConfig.from_compute_multiplier(4, projection_dim=640)
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (640, 12)
    assert (config.vision_config.width, config.vision_config.depths) == (80, (5, 6, 10, 5))
    for multiplier in (0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{multiplier}, but must be a finite number of at least 1"):
            ClipHfConfig.from_compute_multiplier(multiplier)


def test_scaled_configuration_overrides_single_fields():
    config = ClipHfConfig.from_compute_multiplier(
        4, text_config={"vocab_size": 1000}, vision_config={"image_size": 256}
    )
    assert (config.text_config.vocab_size, config.text_config.hidden_size) == (1000, 640)
    assert isinstance(config.vision_config, ClipHfResNetConfig)
    assert (config.vision_config.image_size, config.vision_config.width) == (256, 80)
