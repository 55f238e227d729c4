"""Images that grow: at which step, and that no more than the image changes."""

import pytest
import torch
from transformers import TrainerState

from clip_hf.losses import clip_loss
from clip_hf.training.progressive_resolution import ProgressiveResolution
from tests.tiny_models import TOWERS, tiny_model
from tests.tiny_pairs import TinyPairs, collate
from tests.training.test_trainer import make_trainer

NUM_STEPS = 8
SIZES = {"vit": [16, 24], "resnet": [32]}
OPTIONS = {"max_steps": NUM_STEPS, "full_size_share": 0.25, "train_sampling_strategy": "sequential"}


def trained(folder, tower, resume_from=None, seed=0, **options):
    model = tiny_model(tower, seed=seed)
    pairs = TinyPairs(model.config, 8 * NUM_STEPS)
    trainer = make_trainer(folder, model, pairs, smaller_image_sizes=SIZES[tower], **(OPTIONS | options))
    sizes = []
    first = model.vision_model.embeddings if tower == "vit" else model.vision_model.stem
    first.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[-1]))
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer, sizes


@pytest.mark.parametrize(
    ("tower", "expected"), [("vit", [16] * 3 + [24] * 3 + [32] * 2), ("resnet", [32] * 6 + [64] * 2)]
)
def test_images_grow_and_a_resumed_run_sees_the_same(tower, expected, tmp_path):
    whole, sizes = trained(tmp_path, tower, save_strategy="steps", save_steps=1)
    assert sizes == expected
    checkpoint = str(tmp_path / "checkpoint-2")
    again, sizes = trained(tmp_path / "again", tower, checkpoint, seed=1)
    assert sizes == expected[2:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_images_made_smaller_some_at_a_time_are_those_made_smaller_at_once(dtype, tmp_path, monkeypatch):
    args = make_trainer(tmp_path, smaller_image_sizes=[16], grad_cache_chunk_size=3).args
    pixels = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.nn.functional.interpolate(pixels.float(), 16, mode="bilinear", antialias=True)
    numbers = []

    def interpolate(images, *args, **options):
        numbers.append(len(images))
        return resize(images, *args, **options)

    resize = torch.nn.functional.interpolate
    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)
    resolution = ProgressiveResolution()
    resolution.on_step_begin(args, TrainerState(max_steps=4), None)
    found = resolution.resized({"pixel_values": pixels})["pixel_values"]
    assert torch.equal(found, (expected.round() if dtype == torch.uint8 else expected).to(dtype))
    assert numbers == [3, 3, 2]


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("tower", TOWERS)
def test_a_step_is_that_of_smaller_images(tower, chunk_size, tmp_path):
    """The reference: the images resized by hand, in one plain graph of the same chunks."""
    options = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "weight_decay": 0.0}
    trainer, _ = trained(tmp_path, tower, grad_cache_chunk_size=chunk_size, **options)
    model = tiny_model(tower).train()
    pairs = TinyPairs(model.config, 8 * NUM_STEPS)
    batch = collate([pairs[index] for index in range(8)])
    size = SIZES[tower][0]
    pixels = torch.nn.functional.interpolate(batch["pixel_values"].float(), size, mode="bilinear", antialias=True)
    chunks = pixels.round().byte().split(chunk_size or 8)
    images = [model(pixel_values=chunk, interpolate_pos_encoding=True).image_embeds for chunk in chunks]
    texts = model(input_ids=batch["input_ids"]).text_embeds
    clip_loss(torch.cat(images), texts, model.scale).backward()
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(
            dict(trainer.model.named_parameters())[name].detach(), expected, rtol=1e-4, atol=1e-5
        )
