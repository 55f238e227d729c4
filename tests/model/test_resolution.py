"""Pictures of other sizes: at load and at run time, ViT and ResNet."""

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from clip_hf import ClipHfModel, ClipHfResNetModel, ClipHfViTModel
from clip_hf.model.conversion_clip_hf import interpolate_positions
from tests.tiny_models import TOWERS, randomize_batch_norms, tiny_model

LARGER = {"vit": 48, "resnet": 96}


@pytest.mark.parametrize("tower", TOWERS)
def test_load_at_another_resolution_equals_interpolation_at_run_time(tower, tmp_path):
    model = tiny_model(tower).eval()
    randomize_batch_norms(model)
    model.save_pretrained(tmp_path)
    size = LARGER[tower]
    pixels = torch.randn(2, 3, size, size)
    expected = model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
    larger = ClipHfModel.from_pretrained(tmp_path, vision_config={"image_size": size})
    assert larger.config.vision_config.image_size == size
    torch.testing.assert_close(larger.get_image_features(pixels).pooler_output, expected)
    tower_class = {"vit": ClipHfViTModel, "resnet": ClipHfResNetModel}[tower]
    image_tower = tower_class.from_pretrained(tmp_path, image_size=size)
    torch.testing.assert_close(image_tower(pixels).image_embeds, expected)
    larger.save_pretrained(tmp_path / "larger")
    again = ClipHfModel.from_pretrained(tmp_path / "larger")
    assert torch.equal(again.get_image_features(pixels).pooler_output, larger.get_image_features(pixels).pooler_output)


def test_vit_interpolates_as_transformers_does(tmp_path):
    config = CLIPVisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8
    )
    reference = CLIPVisionModel(config).eval()
    reference.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 40, 56)
    expected = reference(pixels, interpolate_pos_encoding=True).pooler_output
    model = ClipHfViTModel.from_pretrained(tmp_path)
    torch.testing.assert_close(model(pixels, interpolate_pos_encoding=True).pooler_output, expected)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (45, 39)])  # the last are not of whole patches
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_patches_are_mapped_as_by_a_convolution(size, memory_format):
    embedding = tiny_model("vit").vision_model.embeddings.patch_embedding.double()
    pixels = torch.randn(3, 3, *size).double().to(memory_format=memory_format)
    expected = nn.functional.conv2d(pixels, embedding.weight, stride=embedding.kernel_size)
    found = embedding(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(found)
    (expected_gradient,) = torch.autograd.grad(expected, embedding.weight, upstream)
    (gradient,) = torch.autograd.grad(found, embedding.weight, upstream)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-11)


@pytest.mark.parametrize("tower", TOWERS)
def test_own_size_is_left_exactly_as_it_is(tower):
    model = tiny_model(tower).eval()
    size = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size)
    features = model.get_image_features(pixels).pooler_output
    assert torch.equal(model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output, features)


def test_positions_keep_the_first_row_and_their_gradient():
    positions = nn.Parameter(torch.randn(1 + 4 * 4, 6))
    assert interpolate_positions(positions, 4, 4) is positions
    resized = interpolate_positions(positions, 3, 5)
    assert resized.shape == (16, 6)
    assert torch.equal(resized[0], positions[0])
    resized.sum().backward()
    assert (positions.grad != 0).any()
    constant = torch.ones(1 + 4 * 4, 6, dtype=torch.bfloat16)
    assert torch.equal(interpolate_positions(constant, 8, 8), torch.ones(65, 6, dtype=torch.bfloat16))
