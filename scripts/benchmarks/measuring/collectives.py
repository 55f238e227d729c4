"""What a process sends to others, collective by collective."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback


class CollectiveCounter(TorchDispatchMode):
    """Adds up what this process sends in a collective, by name, while `is_counting`."""

    is_counting = False

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.world_size = world_size
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self.is_counting and func.namespace == "c10d":
            name = func.overloadpacket.__name__
            num_bytes = sum(leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
            share = (self.world_size - 1) / self.world_size
            if name == "allreduce_":
                num_bytes *= 2
            elif name.startswith("alltoall"):
                num_bytes /= 2  # as much comes in as goes out
            elif "gather" in name or "scatter" in name:
                num_bytes *= self.world_size / (self.world_size + 1)  # the whole is beside one part of it
            self.sent[name] += round(num_bytes * share)
        return func(*args, **(kwargs or {}))


class SecondStep(TrainerCallback):
    """Counts during the second step: the first one prepares."""

    def __init__(self, counter: CollectiveCounter) -> None:
        self.counter = counter

    def on_step_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Starts."""
        self.counter.is_counting = state.global_step == 1

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Stops."""
        self.counter.is_counting = False
