"""Activation checkpointing changes memory, not numbers: gradients and batch-norm statistics stay as without it."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.tiny_models import TOWERS, random_ids, random_pixels, tiny_model


def step(model, **checkpointing):
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable(**checkpointing)
    for seed in range(2):
        loss = model(
            random_ids(model.config, seed=seed), random_pixels(model.config, seed=seed), return_loss=True
        ).loss
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return loss, gradients, dict(model.named_buffers())


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("tower", TOWERS)
def test_gradients_and_statistics_are_equal(tower, use_reentrant):
    loss, gradients, buffers = step(tiny_model(tower))
    other_loss, other_gradients, other_buffers = step(
        tiny_model(tower), activation_checkpointing_kwargs={"use_reentrant": use_reentrant}
    )
    assert torch.equal(loss, other_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, rtol=0, atol=1e-7, msg=name)
    for name, buffer in buffers.items():
        assert torch.equal(other_buffers[name], buffer), name
    if tower == "resnet":
        assert buffers["vision_model.layer1.0.bn1.num_batches_tracked"] == 2


@pytest.mark.parametrize("tower", TOWERS)
def test_checkpointing_does_recompute(tower):
    """Fewer activations are kept than without it, so the test above compares two different computations."""

    def saved_bytes(model):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(random_ids(model.config), random_pixels(model.config))
        return total

    plain, checkpointed = tiny_model(tower).train(), tiny_model(tower).train()
    checkpointed.activation_checkpointing_enable()
    assert saved_bytes(checkpointed) < 0.5 * saved_bytes(plain)


def test_statistics_move_once_where_the_whole_tower_is_recomputed():
    plain, recomputed = tiny_model("resnet").train(), tiny_model("resnet").train()
    pixels = random_pixels(plain.config)
    plain.vision_model(pixels).image_embeds.sum().backward()
    checkpoint(lambda x: recomputed.vision_model(x).image_embeds, pixels, use_reentrant=False).sum().backward()
    for name, buffer in plain.named_buffers():
        assert torch.equal(dict(recomputed.named_buffers())[name], buffer), name
