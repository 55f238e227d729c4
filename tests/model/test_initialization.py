"""Initial deviations of every kind of weight, measured, against the formulas of the public code."""

import math

import pytest
import torch

from clip_hf import ClipHfConfig, ClipHfModel
from tests.tiny_models import tiny_model

TEXT_WIDTH, IMAGE_WIDTH, LAYERS, EMBED = 256, 192, 3, 128


@pytest.fixture(scope="module", params=["vit", "resnet"])
def model(request):
    vision = {
        "vit": {"hidden_size": IMAGE_WIDTH, "num_hidden_layers": LAYERS, "image_size": 128, "patch_size": 8},
        "resnet": {"width": 16, "depths": (1, 1, 2, 1), "image_size": 224},
    }[request.param]
    config = ClipHfConfig(
        text_config={"vocab_size": 4000, "hidden_size": TEXT_WIDTH, "num_hidden_layers": LAYERS},
        vision_config={"model_type": f"clip_hf_{request.param}"} | vision,
        projection_dim=EMBED,
    )
    torch.manual_seed(0)
    return ClipHfModel(config)


def assert_std(tensor, std):
    """Within four standard errors of a normal sample's deviation, and no bias of the mean."""
    error = 4 / math.sqrt(2 * tensor.numel())
    assert tensor.std().item() == pytest.approx(std, rel=error)
    assert abs(tensor.mean().item()) < 4 * std / math.sqrt(tensor.numel())


def assert_transformer(layers, width):
    for layer in layers:
        assert_std(layer.self_attn.qkv.weight, width**-0.5)
        assert_std(layer.self_attn.out_proj.weight, width**-0.5 * (2 * LAYERS) ** -0.5)
        assert_std(layer.mlp.fc1.weight, (2 * width) ** -0.5)
        assert_std(layer.mlp.fc2.weight, width**-0.5 * (2 * LAYERS) ** -0.5)
        assert not layer.self_attn.qkv.bias.any()
        assert not layer.self_attn.out_proj.bias.any()
        for linear in (layer.mlp.fc1, layer.mlp.fc2):  # torch's default: uniform in +-fan_in^-0.5
            bound = linear.in_features**-0.5
            assert 0.8 * bound < linear.bias.abs().max() <= bound
        for norm in (layer.layer_norm1, layer.layer_norm2):
            assert (norm.weight == 1).all()
            assert not norm.bias.any()


def test_text_tower(model):
    text = model.text_model
    assert_std(text.embeddings.token_embedding.weight, 0.02)
    assert_std(text.embeddings.position_embedding, 0.01)
    assert_transformer(text.layers, TEXT_WIDTH)
    assert_std(text.projection.weight, TEXT_WIDTH**-0.5)


def test_temperature(model):
    assert model.logit_scale.shape == (1,)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07), rel=1e-6)


def test_image_tower(model):
    image = model.vision_model
    if model.config.vision_config.model_type == "clip_hf_vit":
        assert_std(image.embeddings.class_embedding, IMAGE_WIDTH**-0.5)
        assert_std(image.embeddings.position_embedding, IMAGE_WIDTH**-0.5)
        fan_in = 3 * 8 * 8
        assert_std(image.embeddings.patch_embedding.weight, (3 * fan_in) ** -0.5)  # torch's default
        assert_transformer(image.layers, IMAGE_WIDTH)
        assert_std(image.projection.weight, IMAGE_WIDTH**-0.5)
        return
    width = 32 * 16
    pool = image.attention_pool
    for weight in (pool.position_embedding, pool.q_proj.weight, pool.k_proj.weight, pool.v_proj.weight):
        assert_std(weight, width**-0.5)
    assert_std(image.projection.weight, width**-0.5)
    for name, parameter in image.named_parameters():
        if name.startswith("layer") and name.endswith("bn3.weight"):
            assert not parameter.any(), name
        elif ".bn" in name or "downsample.1" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif "conv" in name or "downsample.0" in name:
            assert_std(parameter, (3 * parameter[0].numel()) ** -0.5)  # torch's default


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_missing_weights_are_drawn_as_at_initialisation(tower, tmp_path):
    """A weight that a checkpoint lacks, where the user asked to go on, gets the same deviation as from scratch."""
    model = tiny_model(tower)
    model.save_pretrained(tmp_path, state_dict={"logit_scale": model.logit_scale})
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert len(info["missing_keys"]) == len(model.state_dict()) - 1
    for name, parameter in loaded.named_parameters():
        expected = dict(model.named_parameters())[name].std()
        assert parameter.isfinite().all(), name
        if parameter.numel() > 500:
            assert parameter.std().item() == pytest.approx(expected.item(), rel=0.2), name
