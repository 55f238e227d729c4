"""The moving average of the weights: its formula, its folder, and that a resumed run has the same one."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, TrainerCallback

from tests.tiny_models import TOWERS, tiny_model
from tests.tiny_pairs import TinyPairs
from tests.training.test_trainer import make_trainer

DECAY = 0.3  # from the fourth step on; before, (1 + t) / (10 + t) is smaller
OPTIONS = {"max_steps": 6, "learning_rate": 1e-2, "ema_decay": DECAY}


class KeepWeights(TrainerCallback):
    def __init__(self):
        self.history = []

    def on_train_begin(self, args, state, control, model, **objects):
        self.on_step_end(args, state, control, model)

    def on_step_end(self, args, state, control, model, **objects):
        self.history.append({name: tensor.clone().double() for name, tensor in model.named_parameters()})


@pytest.mark.parametrize("tower", TOWERS)
def test_the_average_is_that_of_the_formula_and_opens_as_a_model(tower, tmp_path):
    weights = KeepWeights()
    trainer = make_trainer(tmp_path, tiny_model(tower), callbacks=[weights], **OPTIONS)
    trainer.train()
    trainer.save_model()
    saved = AutoModel.from_pretrained(tmp_path / "ema")
    for name, parameter in saved.named_parameters():
        average = weights.history[0][name]
        for step, now in enumerate(weights.history[1:], start=1):
            decay = min(DECAY, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * now[name]
        assert torch.allclose(parameter.double(), average, rtol=0, atol=1e-6), name
    for name, buffer in saved.named_buffers():
        assert torch.equal(buffer, trainer.model.get_buffer(name)), name
    last = load_file(tmp_path / "model.safetensors")
    assert any(not torch.equal(last[name], parameter) for name, parameter in saved.named_parameters())


def test_a_resumed_run_has_the_same_average(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, **OPTIONS).train()
    again = make_trainer(tmp_path / "again", tiny_model("vit", seed=1), save_strategy="steps", save_steps=2, **OPTIONS)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    expected = load_file(tmp_path / "checkpoint-6" / "ema" / "model.safetensors")
    found = load_file(tmp_path / "again" / "checkpoint-6" / "ema" / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_average_beside_the_best_model_is_that_of_its_checkpoint(tmp_path):
    """A ResNet's running statistics are not averaged: those of another step would not be its weights'."""
    model = tiny_model("resnet")
    every_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_first_step", "greater_is_better": False}
    trainer = make_trainer(tmp_path, model, eval_pairs=TinyPairs(model.config, 8), **every_step, **best, **OPTIONS)
    trainer.compute_metrics = lambda prediction: {"first_step": trainer.state.global_step}
    trainer.train()
    trainer.save_model()
    found, expected, last = (
        load_file(tmp_path / folder / "ema" / "model.safetensors") for folder in ("", "checkpoint-1", "checkpoint-6")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert any(not torch.equal(found[name], tensor) for name, tensor in last.items())


def test_without_the_option_there_is_no_average(tmp_path):
    trainer = make_trainer(tmp_path, **OPTIONS | {"ema_decay": None, "save_strategy": "steps", "save_steps": 2})
    trainer.train()
    assert not (tmp_path / "checkpoint-2" / "ema").exists()
    again = make_trainer(tmp_path / "again", **OPTIONS)
    with pytest.raises(ValueError, match="holds no average"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_divided_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_hf.training.combinations.divides_parameters", lambda args: True)
    with pytest.raises(ValueError, match="no process the whole weights"):
        make_trainer(tmp_path, ema_decay=0.9)
