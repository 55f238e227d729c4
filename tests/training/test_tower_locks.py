"""Locked towers: not a bit of them changes until their step comes, and nothing else knows of them."""

import pytest
import torch
from transformers import TrainerCallback

from clip_hf.losses import clip_loss
from tests.tiny_models import TOWERS, tiny_model
from tests.tiny_pairs import TinyPairs, collate
from tests.training.test_trainer import make_trainer

NUM_STEPS = 4
BATCH_SIZE = 8
CONSTANT = {"max_steps": NUM_STEPS, "lr_scheduler_type": "constant", "learning_rate": 1e-3, "weight_decay": 0.5}
# Behind the last batch norm of a block, whose gains begin at 0, gradients are so small that a small epsilon would make
# steps of their rounding.
CONSTANT |= {"train_sampling_strategy": "sequential", "adam_epsilon": 1e-3}


class StopAfterSteps(TrainerCallback):
    def on_step_end(self, args, state, control, **objects):
        control.should_training_stop = state.global_step == NUM_STEPS


def trained(folder, tower, **options):
    model = tiny_model(tower)
    trainer = make_trainer(folder, model, TinyPairs(model.config, NUM_STEPS * BATCH_SIZE), **(CONSTANT | options))
    trainer.add_callback(StopAfterSteps())
    trainer.train()
    return trainer


def part(trainer, name):
    return {key: tensor for key, tensor in trainer.model.state_dict().items() if key.startswith(name)}


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("tower", TOWERS)
def test_a_tower_locked_for_good_has_no_gradient_state_or_activation(tower, chunk_size, tmp_path):
    trainer = trained(tmp_path, tower, image_locked_steps=-1, grad_cache_chunk_size=chunk_size)
    before = tiny_model(tower).state_dict()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("vision_model"), name
    in_optimizer = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in in_optimizer for p in trainer.model.vision_model.parameters())

    saved = []
    batch = collate([trainer.train_dataset[index] for index in range(BATCH_SIZE)])
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape), lambda _: None):
        trainer.model.get_image_features(batch["pixel_values"])
    assert not saved


@pytest.mark.parametrize("locked", ["vision_model", "text_model"])
@pytest.mark.parametrize("tower", TOWERS)
def test_until_its_step_a_tower_is_as_if_it_were_locked_for_good(tower, locked, tmp_path):
    option = "image_locked_steps" if locked == "vision_model" else "text_locked_steps"
    held, forever = (
        trained(tmp_path, tower, **{option: steps, "max_steps": NUM_STEPS + 1}) for steps in (NUM_STEPS, -1)
    )
    before = tiny_model(tower).state_dict()
    for name, tensor in part(held, locked).items():
        assert torch.equal(tensor, before[name]), name
    for name, parameter in held.model.get_submodule(locked).named_parameters():
        state = held.optimizer.state[parameter]
        assert not state["exp_avg"].any() and not state["exp_avg_sq"].any(), name
    for name, tensor in forever.model.state_dict().items():
        assert torch.allclose(held.model.state_dict()[name], tensor, rtol=0, atol=1e-5), name
    norms = [[entry["grad_norm"] for entry in run.state.log_history if "loss" in entry] for run in (held, forever)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("steps", [2, 0.5])
@pytest.mark.parametrize("tower", TOWERS)
def test_an_unlocked_tower_starts_like_a_new_one(tower, steps, tmp_path):
    """The reference is torch's AdamW, to which a parameter without a gradient does not exist."""
    trainer = trained(tmp_path, tower, image_locked_steps=steps, max_grad_norm=0.0)
    model, args = tiny_model(tower), trainer.args
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    group = trainer.optimizer.param_groups[0]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=group["betas"], eps=group["eps"])
    pairs = TinyPairs(model.config, NUM_STEPS * BATCH_SIZE)
    for step in range(NUM_STEPS):
        model.train()
        model.vision_model.train(step >= 2).requires_grad_(step >= 2)
        batch = collate([pairs[index] for index in range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)])
        output = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])
        clip_loss(output.image_embeds, output.text_embeds, output.scale).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.state_dict().items():
        # With Adam's steps miscounted, weights are 1e-3 off.
        assert torch.allclose(trainer.model.state_dict()[name], parameter, rtol=0, atol=1e-5), name


@pytest.mark.peers
@pytest.mark.parametrize(
    "options", [{"image_learning_rate": 1e-4}, {"layer_decay": 0.5}, {"image_locked_steps": 2, "layer_decay": 0.5}]
)
def test_rates_of_an_8_bit_optimizer_are_those_of_adam(options, tmp_path):
    """torchao's: it holds rates in tensors, and rounds the averages of matrices, which moves few weights far."""
    pytest.importorskip("torchao")
    with torch.compiler.set_stance("force_eager"):
        eight_bits = trained(tmp_path / "8", "vit", optim="adamw_torch_8bit", lr_scheduler_type="cosine", **options)
    plain = trained(tmp_path / "32", "vit", lr_scheduler_type="cosine", **options)
    for name, tensor in plain.model.state_dict().items():
        assert torch.allclose(eight_bits.model.state_dict()[name], tensor, rtol=0, atol=2e-4), name


def test_a_resumed_run_unlocks_at_the_same_step(tmp_path):
    whole = trained(tmp_path / "whole", "resnet", image_locked_steps=3, save_strategy="steps", save_steps=1)
    for step in (2, 3):
        model = tiny_model("resnet", seed=1)
        pairs = TinyPairs(model.config, NUM_STEPS * BATCH_SIZE)
        trainer = make_trainer(tmp_path / "again", model, pairs, image_locked_steps=3, **CONSTANT)
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(trainer.model.state_dict()[name], tensor), (step, name)


def test_what_cannot_be_locked_is_refused(tmp_path):
    with pytest.raises(ValueError, match="leaves only the temperature"):
        make_trainer(tmp_path, image_locked_steps=-1, text_locked_steps=-1)
    with pytest.raises(ValueError, match="image_locked_steps is 9, but the run has 2 steps"):
        epochs = CONSTANT | {"max_steps": -1, "num_train_epochs": 2, "image_locked_steps": 9}
        make_trainer(tmp_path, pairs=TinyPairs(tiny_model("vit").config, BATCH_SIZE), **epochs).train()
    with pytest.raises(ValueError, match="lr_scheduler_type is"):
        make_trainer(
            tmp_path,
            image_locked_steps=2,
            lr_scheduler_type="reduce_lr_on_plateau",
            eval_strategy="epoch",
            eval_pairs=TinyPairs(tiny_model("vit").config, 4),
        )
