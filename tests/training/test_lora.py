"""Adapters: what is trained, what is saved, and that both results are one model."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from clip_hf.training.lora import Adapter
from tests.tiny_models import random_ids, random_pixels, tiny_model
from tests.training.test_trainer import make_trainer

OPTIONS = {"max_steps": 3, "learning_rate": 1e-2, "warmup_steps": 0}


def features(model):
    model.eval()
    with torch.no_grad():
        output = model(input_ids=random_ids(model.config), pixel_values=random_pixels(model.config))
    return torch.cat([output.image_embeds, output.text_embeds])


def adapted(folder, rank=2, **options):
    model = tiny_model("vit")
    trainer = make_trainer(folder, model, **(OPTIONS | options))
    adapter = Adapter(model, rank, trainer.args)
    return make_trainer(folder, model, **(OPTIONS | options)), adapter


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_adapter_and_merged_weights_are_one_model(chunk_size, tmp_path):
    trainer, adapter = adapted(tmp_path, grad_cache_chunk_size=chunk_size)
    trainer.train()
    adapter.save_and_merge(str(tmp_path), should_save=True)
    trainer.save_model()

    before = tiny_model("vit")
    merged = AutoModel.from_pretrained(tmp_path)
    assert merged.state_dict().keys() == before.state_dict().keys()
    changed = {
        name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])
    }
    expected = ("qkv.weight", "out_proj.weight", "fc1.weight", "fc2.weight")
    assert changed == {name for name in before.state_dict() if ".layers." in name and name.endswith(expected)}
    beside = PeftModel.from_pretrained(before, tmp_path / "adapter")
    torch.testing.assert_close(features(beside), features(merged), atol=1e-6, rtol=0)
    assert (features(merged) - features(tiny_model("vit"))).abs().max() > 1e-3


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_activation_checkpointing_changes_nothing(chunk_size, tmp_path):
    """Though nothing that enters a tower needs a gradient."""
    states = []
    for checkpointing in (False, True):
        options = {"grad_cache_chunk_size": chunk_size, "activation_checkpointing": checkpointing}
        trainer, _ = adapted(tmp_path / str(checkpointing), **options)
        before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        trainer.train()
        states.append(trainer.model.state_dict())
        changed = {name for name, tensor in states[-1].items() if not torch.equal(tensor, before[name])}
        assert changed == {name for name in before if ".lora_" in name}
    plain, checkpointed = states
    for name, tensor in plain.items():
        assert torch.equal(checkpointed[name], tensor), name


def test_only_the_adapter_is_trained(tmp_path):
    trainer, _ = adapted(tmp_path)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    optimizer = trainer.create_optimizer()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


def test_a_resumed_run_has_the_same_adapter(tmp_path):
    whole, _ = adapted(tmp_path, save_strategy="steps", save_steps=1)
    whole.train()
    again, _ = adapted(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("tower", "rank", "options", "problem"),
    [
        ("vit", 0, {}, "lora_rank is 0"),
        ("resnet", 2, {}, "batch norm statistics would move"),
        ("vit", 2, {"ema_decay": 0.9}, "cannot go with ema_decay"),
    ],
)
def test_what_cannot_go_together_is_refused(tower, rank, options, problem, tmp_path):
    model = tiny_model(tower)
    args = make_trainer(tmp_path, tiny_model(tower), **options).args
    with pytest.raises(ValueError, match=problem):
        Adapter(model, rank, args)


def test_the_text_tower_of_a_locked_resnet_can_have_one(tmp_path):
    model = tiny_model("resnet")
    args = make_trainer(tmp_path, tiny_model("resnet"), image_locked_steps=-1).args
    Adapter(model, 2, args)
    assert all("text_model" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
