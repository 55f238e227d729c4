"""What a computation would take if it were its matrix products alone."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Product = tuple[int, int, int, int]
"""Shapes (batch, rows, inner) and (batch, inner, columns)."""

_ATTENTION = ("_scaled_dot_product_flash_attention", "_scaled_dot_product_attention_math")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = args[-2:]
            self.products[math.prod(left.shape[:-2]), *left.shape[-2:], right.shape[-1]] += 1
        elif name == "convolution":
            weight = args[1]
            self.products[1, result[:, 0].numel(), weight[0].numel(), len(weight)] += 1
        elif name.startswith(_ATTENTION):
            query, key = args[0], args[1]
            (batch, heads, length, width), keys = query.shape, key.shape[-2]
            self.products[batch * heads, length, width, keys] += 1
            self.products[batch * heads, length, keys, width] += 1
        return result


def matrix_products(compute: Callable[[], Any]) -> Counter[Product]:
    """Returns how often each matrix product occurs in a computation; a convolution counts as one over its patches.

    Args:
        compute: the computation, called once.
    """
    with _Recorder() as recorder:
        compute()
    return recorder.products


def floor_of(compute: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """Returns a function that does the matrix products of a computation with `torch.matmul`, and nothing else.

    Args:
        compute: the computation, called once.
        dtype: of the products.
    """
    operands = [
        (torch.randn(batch, rows, inner, dtype=dtype), torch.randn(batch, inner, columns, dtype=dtype), count)
        for (batch, rows, inner, columns), count in matrix_products(compute).items()
    ]
    # Two dimensions where two will do: a batch of one takes a slower kernel.
    operands = [(left[0], right[0], n) if len(left) == 1 else (left, right, n) for left, right, n in operands]
    results = [torch.matmul(left, right) for left, right, _ in operands]

    def multiply() -> None:
        for (left, right, count), result in zip(operands, results, strict=True):
            for _ in range(count):
                torch.matmul(left, right, out=result)

    return multiply
