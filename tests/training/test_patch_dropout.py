"""Patch dropout: which patches go, when, and that a gradient cache loses the same ones again."""

import pytest
import torch

from tests.tiny_models import random_pixels, tiny_model
from tests.training.test_trainer import make_trainer

NUM_PATCHES = 16  # of the tiny ViT


def features(model, pixels, share):
    """The class embedding's row and the patches' rows that reach the Transformer."""
    model.vision_model.embeddings.patch_dropout = share
    return model.vision_model.embeddings(pixels)


@pytest.mark.parametrize(("share", "num_kept"), [(0.5, 8), (0.75, 4), (0.99, 1), (0.4, 10)])
def test_each_image_keeps_its_class_embedding_and_a_share_of_its_patches(share, num_kept):
    model = tiny_model("vit").train()
    pixels = random_pixels(model.config, 8)
    every, some = features(model, pixels, 0.0), features(model, pixels, share)
    assert some.shape[1] == 1 + num_kept
    assert torch.equal(some[:, 0], every[:, 0])
    which = (some[:, :, None] == every[:, None]).all(dim=-1)  # (B, kept, all)
    assert which.sum(dim=-1).eq(1).all() and which.sum(dim=1).le(1).all()
    chosen = which.any(dim=1)
    assert len({tuple(row.tolist()) for row in chosen}) > 1, "images lose different patches"


def test_evaluation_leaves_nothing_out():
    model = tiny_model("vit").eval()
    assert features(model, random_pixels(model.config), 0.5).shape[1] == 1 + NUM_PATCHES


def test_what_is_recomputed_lost_the_same_patches():
    """Reference: the same chunks in one plain graph."""
    gradients = []
    for checkpointed in (True, False):
        torch.manual_seed(5)
        model = tiny_model("vit").train()
        model.vision_model.embeddings.patch_dropout = 0.5
        pixels = random_pixels(model.config, 6)
        torch.manual_seed(6)
        if checkpointed:
            embeds = model(pixel_values=pixels, chunk_sizes=(2, None)).image_embeds
        else:
            embeds = torch.cat([model(pixel_values=chunk).image_embeds for chunk in pixels.split(2)])
        torch.rand(100)  # whoever draws in between
        (embeds @ embeds.T).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.vision_model.parameters()])
    for checkpointed, plain in zip(*gradients, strict=True):
        assert torch.allclose(checkpointed, plain, rtol=0, atol=1e-6 * max(1.0, float(plain.abs().max())))


def test_the_end_of_the_run_is_unmasked(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, patch_dropout=0.5, unmasked_share=0.25)
    lengths = []
    trainer.model.vision_model.pre_layernorm.register_forward_hook(
        lambda module, inputs, output: lengths.append(output.shape[1])
    )
    trainer.train()
    assert lengths == [1 + NUM_PATCHES // 2] * 3 + [1 + NUM_PATCHES]


def test_a_resnet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no patches"):
        make_trainer(tmp_path, tiny_model("resnet"), patch_dropout=0.5)
