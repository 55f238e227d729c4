"""What training must give, written out: one plain process, the whole batch, and nothing of ours but the model."""

import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_hf import ClipHfModel
from tests.distributed.run_engines import BATCH_SIZE, LEARNING_RATES, MAX_GRAD_NORM, NUM_STEPS
from tests.tiny_pairs import TinyPairs, collate

NUM_RANKS = 2
MAX_LOGIT_SCALE = math.log(100)
ADAM_BETAS = {"vit": (0.9, 0.98), "resnet": (0.9, 0.999)}
# Where a gradient is zero but for rounding, as of what is added to all keys alike, the paper's 1e-6 and 1e-8 let Adam
# make a whole step of it. A ResNet's is above most of its gradients, so that a small change of one stays small.
ADAM_EPSILONS = {"vit": 1e-4, "resnet": 1e-2}


@functools.cache
def reference(
    model_folder: Path,
    optim: str,
    num_pairs: int,
    group_size: int,
    is_synced: bool = False,
    image_rate: float | None = None,
) -> dict[str, Any]:
    """The training, step by step: log, rates, parameters, buffers, and how far gradients moved each parameter.

    A batch norm sees `group_size` images at a time, of one rank or, `is_synced`, that many of each rank.
    """
    groups = torch.arange(BATCH_SIZE).split(group_size)
    if is_synced:
        groups = torch.arange(BATCH_SIZE).view(NUM_RANKS, -1, group_size).transpose(0, 1).flatten(1).unbind()
    model = ClipHfModel.from_pretrained(model_folder).train()
    rates = decays_and_rates(model, LEARNING_RATES[optim], image_rate)
    named = dict(model.named_parameters())
    options = [{"params": [named[name]], "weight_decay": decay, "lr": rate} for name, (decay, rate) in rates.items()]
    if optim == "sgd":
        optimizer = torch.optim.SGD(options)
    else:
        tower = model_folder.name.split("-")[0]
        optimizer = torch.optim.AdamW(options, betas=ADAM_BETAS[tower], eps=ADAM_EPSILONS[tower])
    pairs = TinyPairs(model.config, num_pairs)
    log = []
    for start in range(0, NUM_STEPS * BATCH_SIZE, BATCH_SIZE):
        batch = collate([pairs[index % num_pairs] for index in range(start, start + BATCH_SIZE)])
        images = torch.cat([model(pixel_values=batch["pixel_values"][rows]).image_embeds for rows in groups])
        images = images[torch.cat(groups).argsort()]
        texts = model(input_ids=batch["input_ids"]).text_embeds
        scale = bounded(model.logit_scale).exp()
        logits = scale * images @ texts.T
        labels = torch.arange(BATCH_SIZE)
        loss = (nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)) / 2
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        entry = {"loss": loss, "grad_norm": grad_norm, "scale": scale, "text_retrieval_accuracy": accuracy}
        log.append({key: value.item() for key, value in entry.items()})
    parameters = {name: parameter.detach() for name, parameter in named.items()}
    first = dict(ClipHfModel.from_pretrained(model_folder).named_parameters())
    kept = {name: (1 - rate * decay) ** NUM_STEPS for name, (decay, rate) in rates.items()}
    moved = {name: torch.dist(parameter, kept[name] * first[name]).item() for name, parameter in parameters.items()}
    buffers = dict(model.named_buffers())
    return {"log": log, "rates": rates, "parameters": parameters, "moved": moved, "buffers": buffers}


def decays_and_rates(model: ClipHfModel, rate: float, image_rate: float | None) -> dict[str, tuple[float, float]]:
    """Weight decay and learning rate of each parameter: what has two dimensions or more decays, by the paper's 0.2."""
    return {
        name: (
            0.2 if parameter.ndim >= 2 else 0.0,
            image_rate if image_rate is not None and name.startswith("vision_model.") else rate,
        )
        for name, parameter in model.named_parameters()
    }


def bounded(logit_scale: Tensor) -> Tensor:
    """The logarithm of the scale, 100 at most; at the bound, only a gradient that leads down goes through."""
    at_bound = logit_scale.detach() >= MAX_LOGIT_SCALE
    passed = logit_scale * 1.0
    passed.register_hook(lambda gradient: torch.where(at_bound, gradient.clamp(min=0), gradient))
    return passed + (logit_scale.detach().clamp(max=MAX_LOGIT_SCALE) - logit_scale.detach())
