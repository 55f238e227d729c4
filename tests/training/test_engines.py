"""The compiler that users get, inductor, and what may be asked for beside it."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModel

from clip_hf.training.lora import Adapter
from tests.tiny_models import tiny_model
from tests.training.test_trainer import make_trainer

# Not Adam, which makes whole steps of what rounding leaves of gradients that are zero.
OPTIONS = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}


def trained(folder, tower, lora_rank=None, **options) -> dict[str, torch.Tensor]:
    """What is saved, the adapter merged."""
    model, options = tiny_model(tower), OPTIONS | options
    adapter = lora_rank and Adapter(model, lora_rank, make_trainer(folder, tiny_model(tower), **options).args)
    trainer = make_trainer(folder, model, **options)
    trainer.train()
    if adapter:
        adapter.save_and_merge(str(folder), should_save=True)
    trainer.save_model()
    return AutoModel.from_pretrained(folder).state_dict()


def assert_compiles_to_the_same(folder, tower, backend, **options):
    torch._dynamo.reset()
    counters.clear()
    plain = trained(folder / "plain", tower, **options)
    assert not counters["stats"]
    compiled = trained(folder / "compiled", tower, torch_compile_backend=backend, **options)
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]
    assert compiled.keys() == plain.keys()
    before = tiny_model(tower).state_dict()
    assert max((plain[name].float() - tensor.float()).abs().max() for name, tensor in before.items()) > 1e-3
    for name, tensor in plain.items():
        assert torch.allclose(compiled[name].float(), tensor.float(), rtol=1e-4, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tower", "options"),
    [
        ("vit", {"grad_cache_chunk_size": 3}),  # of eight pairs: the last chunk is another size, and compiled for any
        ("resnet", {"max_steps": 2}),  # in its third step, rounding decides on which side of zero a ReLU is
    ],
    ids=str,
)
def test_what_inductor_makes_trains_as_no_compiler(tower, options, tmp_path):
    assert_compiles_to_the_same(tmp_path, tower, "inductor", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tower", "options"),
    [
        ("vit", {"activation_checkpointing": True, "grad_cache_chunk_size": 3}),
        ("resnet", {"activation_checkpointing": True}),
        ("vit", {"lora_rank": 2, "grad_cache_chunk_size": 3}),
        ("vit", {"ema_decay": 0.9, "layer_decay": 0.5, "smaller_image_sizes": [16]}),
    ],
    ids=str,
)
def test_compiled_towers_train_with_other_options(tower, options, tmp_path):
    assert_compiles_to_the_same(tmp_path, tower, "aot_eager", **options)
