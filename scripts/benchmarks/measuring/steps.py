"""One optimizer step of a model, however its loss is computed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def stepper(model: nn.Module, compute_loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Returns a function that takes a step: forward, backward and AdamW.

    Args:
        model: put into training mode.
        compute_loss: of the model's parameters.
    """
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5, weight_decay=0.2, fused=True)

    def step() -> None:
        compute_loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
