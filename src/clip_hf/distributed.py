"""Rank, world size and the collectives that gradients flow through; without a process group, a world of one.

The backward pass of each collective is its adjoint: a rank gets the sum of what the losses of all ranks ask of its
tensor. It needs no reduction by the backend, so it runs on every backend (gloo included) and adds up in the order of
the ranks: the same numbers on every machine.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's number, from 0 to `world_size() - 1`."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _is_initialized() else 1


def all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, concatenated along the first dimension in the order of the ranks.

    Args:
        tensor: (B, ...), the same shape and dtype on every rank.

    Returns:
        (world size * B, ...), equal on every rank.
    """
    return _AllGather.apply(tensor) if world_size() > 1 else tensor


def all_to_all(tensor: Tensor) -> Tensor:
    """The transpose of the ranks' tensors: chunk r of the result is what rank r has as the chunk of this rank.

    Args:
        tensor: (world size * B, ...), the same shape and dtype on every rank; chunk r is for rank r.

    Returns:
        (world size * B, ...); chunk r comes from rank r.
    """
    return _AllToAll.apply(tensor) if world_size() > 1 else tensor


def gather_lists(items: list[Any]) -> list[Any]:
    """Returns the items of all ranks, in the order of the ranks.

    Args:
        items: that can be pickled; any number of them.
    """
    if world_size() == 1:
        return items
    gathered: list[list[Any]] = [[]] * world_size()
    dist.all_gather_object(gathered, items)
    return [item for some in gathered for item in some]


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        gathered = tensor.new_empty((world_size() * len(tensor), *tensor.shape[1:]))
        dist.all_gather(list(gathered.chunk(world_size())), tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_to_all(grad).unflatten(0, (world_size(), -1)).sum(0)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, tensor.contiguous())
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_to_all(grad)
