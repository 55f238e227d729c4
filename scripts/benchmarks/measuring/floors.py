"""What a computation would take if it were its matrix products alone."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

Product = tuple[int, int, int, int]
"""Shapes (batch, rows, inner) and (batch, inner, columns)."""

_LARGE: Product = (1, 1024, 1024, 1024)  # reaches the best rate of a machine wherever the shapes at hand do not
_CALLS = 3  # of each product in a turn


class _Recorder(TorchDispatchMode):
    """Counts the matrix products by shape, and the operations of convolutions and attention in sum."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()
        self.other_flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name, formula = func.overloadpacket.__name__, flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:
                if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return result
        result = func(*args, **kwargs)
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = args[-2:]
            self.products[math.prod(left.shape[:-2]), *left.shape[-2:], right.shape[-1]] += 1
        elif name == "_scaled_dot_product_flash_attention_for_cpu":  # which torch's registry lacks
            self.other_flops += sdpa_flop_count(*(part.shape for part in args[:3]))
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            self.other_flops += sdpa_backward_flop_count(*(part.shape for part in args[:4]))
        elif formula is not None:
            self.other_flops += formula(*args, **kwargs, out_val=result)
        return result


class Floor:
    """The least time of a computation: each of its matrix products in its best time by `torch.matmul`.

    Convolutions and attention, which need not be products of matrices in memory, count with their operations, at the
    best rate of any product. All the rest counts nothing. Calling it times each product; the best of all calls counts.

    Args:
        products: how often each occurs.
        other_flops: operations beside these.
        device: where the products are computed.
        dtype: of the products.
    """

    def __init__(
        self, products: Mapping[Product, float], other_flops: float = 0, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        self.products, self.other_flops = dict(products), other_flops
        self.best = dict.fromkeys([*products, _LARGE], math.inf)
        self.options = {"device": device, "dtype": getattr(torch, dtype)}

    @classmethod
    def of(cls, compute: Callable[[], Any], device: str = "cpu", dtype: str = "float32") -> Self:
        """Returns the floor of a computation, which is done once to see its operations."""
        with _Recorder() as recorder:
            compute()
        return cls(recorder.products, recorder.other_flops, device, dtype)

    def __call__(self) -> None:
        """Times each product some times."""
        for product in self.best:
            batch, rows, inner, columns = product
            # Two dimensions where two will do: a batch of one takes a slower kernel.
            front = (batch,) if batch > 1 else ()
            left = torch.randn(*front, rows, inner, **self.options)
            right = torch.randn(*front, inner, columns, **self.options)
            result = torch.matmul(left, right)
            for _ in range(_CALLS):
                _synchronize()
                start = time.perf_counter()
                torch.matmul(left, right, out=result)
                _synchronize()
                self.best[product] = min(self.best[product], time.perf_counter() - start)

    @property
    def flops(self) -> float:
        """Operations of the computation; a multiplication and an addition are two."""
        return self.other_flops + sum(2 * math.prod(product) * n for product, n in self.products.items())

    @property
    def seconds(self) -> float:
        """The least time, after at least one call."""
        best_rate = max(2 * math.prod(product) / seconds for product, seconds in self.best.items())
        of_products = sum(self.best[product] * number for product, number in self.products.items())
        return of_products + self.other_flops / best_rate

    def __str__(self) -> str:
        gflop = self.flops / 1e9
        return (
            f"{gflop:,.4g} GFLOP in {self.seconds:.4g} s, {gflop / self.seconds:,.4g} GFLOP/s: its matrix products by "
            "torch.matmul, convolutions and attention at the best rate of these"
        )


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
