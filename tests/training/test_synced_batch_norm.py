"""Batch norm over two processes; `tests/distributed/test_engines.py` trains with it."""

import pytest
import torch
from torch import nn

from clip_hf.distributed import rank, world_size
from clip_hf.training.synced_batch_norm import SyncedBatchNorm2d, synchronize_batch_norm
from tests.ranks import run_on_ranks
from tests.tiny_models import tiny_model
from tests.training.test_trainer import make_trainer


def _batch() -> torch.Tensor:
    images = torch.randn(6, 5, 3, 2, generator=torch.Generator().manual_seed(0))
    return images * torch.arange(1, 6)[:, None, None] + torch.arange(6)[:, None, None, None]


def _layer(cls: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    layer = cls(5, momentum=0.3)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    return layer


def _normalised_on_ranks() -> dict[str, object]:
    layer = _layer(SyncedBatchNorm2d)
    images = _batch().chunk(world_size())[rank()].requires_grad_()
    output = layer(images)
    (output**3).sum().backward()
    half = layer(images.bfloat16())
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    evaluated = layer.eval()(images)
    return {
        "output": output.detach(),
        "grad": images.grad,
        "weight_grad": layer.weight.grad,
        "half": half.detach(),
    } | {
        "buffers": buffers,
        "evaluated": evaluated.detach(),
    }


def test_two_processes_normalise_as_one():
    results = run_on_ranks(_normalised_on_ranks, 2)
    layer, images = _layer(nn.BatchNorm2d), _batch().requires_grad_()
    output = layer(images)
    (output**3).sum().backward()
    layer(images.bfloat16())
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([result["output"] for result in results]), output.detach(), **close)
    torch.testing.assert_close(torch.cat([result["grad"] for result in results]), images.grad, rtol=1e-4, atol=1e-4)
    weight_grad = sum(result["weight_grad"] for result in results)
    torch.testing.assert_close(weight_grad, layer.weight.grad, rtol=1e-4, atol=1e-4)
    assert all(result["half"].dtype == torch.bfloat16 for result in results)
    for result in results:
        torch.testing.assert_close(result["buffers"], dict(layer.named_buffers()), rtol=1e-2, atol=1e-2)
    evaluated = torch.cat([result["evaluated"] for result in results])
    torch.testing.assert_close(evaluated, layer.eval()(images).detach(), rtol=1e-2, atol=1e-2)


def test_a_models_tensors_stay_and_it_is_saved_as_before(tmp_path):
    model = tiny_model("resnet")
    before = dict(model.state_dict())
    synchronize_batch_norm(model)
    assert model.state_dict().keys() == before.keys()
    assert all(tensor.data_ptr() == before[name].data_ptr() for name, tensor in model.state_dict().items())
    assert any(isinstance(module, SyncedBatchNorm2d) for module in model.modules())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert not any(isinstance(module, SyncedBatchNorm2d) for module in again.modules())


def test_a_vit_has_none(tmp_path):
    with pytest.raises(ValueError, match="sync_batch_norm is set, but the image tower has no batch norm"):
        make_trainer(tmp_path, tiny_model("vit"), sync_batch_norm=True)
