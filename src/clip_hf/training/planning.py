"""What a training takes of each device: memory, communication and time, before it is started.

Memory of parameters follows from the engine; that of activations from what autograd saves in the forward pass of a
chunk, counted on the meta device. With `grad_cache_chunk_size`, one chunk's activations are held at a time.

Shapes: W devices, B pairs of a device, N = W B pairs of the batch, D joint embedding, P parameters.
"""

import re
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn

from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.modeling_clip_hf import ClipHfModel
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer
from clip_hf.model_card.page import measure_sizes
from clip_hf.training.activation_memory import saved_bytes
from clip_hf.training.lora import TARGETS
from clip_hf.training.model_args import ModelArguments
from clip_hf.training.training_args import WHOLE_RUN, ClipTrainingArguments

TOWERS = ("image", "text")
# Of parameters, gradients and Adam's averages, how many the devices divide among themselves, counted from the last.
DIVIDED = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}
# What scripts/deepspeed/*.json give: buckets of so many bytes, and how many of them; ZeRO-3 also keeps collected
# parameters, up to so many bytes.
BUCKET_BYTES, NUM_BUCKETS = 4 * 50_000_000, {"zero1": 1, "zero2": 2, "zero3": 2}
COLLECTED_BYTES = 4e9
# Bytes of an optimizer's averages for each parameter.
BYTES_OF_AVERAGES = {"adamw_torch": 8, "adamw_torch_fused": 8, "sgd": 0}
BYTES_OF_AVERAGES |= dict.fromkeys(("adamw_torch_8bit", "adamw_bnb_8bit", "adamw_8bit"), 2) | {"adamw_torch_4bit": 1}
# How often all parameters go round in a step; scripts/benchmarks/communication.py counts it.
ROUNDS = {"ddp": 2, "zero1": 3, "zero2": 3, "zero3": 3}
# Of the activations, in bfloat16, as counted on a CPU; layer norms and the like stay in float32.
SHARE_IN_BF16 = 0.55
# Of an accelerator's loss, logits that are held whole, with their softmax; of more there is a tile, and what weighs a
# block of it.
WHOLE_LOGITS = 4096**2
TILE_BYTES = 4 * (WHOLE_LOGITS + 2**20)


@dataclass
class Training:
    """What is trained.

    Args:
        config: of the model.
        global_batch_size: N.
        chunk_size: images, and texts, embedded at a time on a device; None for all of them.
        text_length: mean number of tokens.
        bf16: whether matrices are multiplied in bfloat16.
        text_chunk_size: texts embedded at a time, if not as many as images.
        optimizer: of `BYTES_OF_AVERAGES`.
        lora_rank: of an adapter that is trained in place of the weights.
        locked: the towers, "image" or "text", that are held for the whole run.
        patch_dropout: share of an image's patches that is left out.
        unmasked_share: of the run, at its end, in which none is.
        smaller_image_sizes: in pixels, of the images that the run begins with, each for as long.
        full_size_share: of the run, at its end, in which images have their full size.
        activation_checkpointing: whether a layer's activations are computed again.
        has_average: whether a moving average of the weights is kept.

    Raises:
        ValueError: a number is out of range, or the optimizer unknown.
    """

    config: ClipHfConfig
    global_batch_size: int
    chunk_size: int | None = None
    text_length: int = 16
    bf16: bool = False
    text_chunk_size: int | None = None
    optimizer: str = "adamw_torch"
    lora_rank: int | None = None
    locked: tuple[str, ...] = ()
    patch_dropout: float = 0.0
    unmasked_share: float = 0.0
    smaller_image_sizes: tuple[int, ...] = ()
    full_size_share: float = 0.2
    activation_checkpointing: bool = False
    has_average: bool = False

    def __post_init__(self) -> None:
        """Checks the numbers, and measures the model."""
        for name in ("global_batch_size", "chunk_size", "text_chunk_size", "text_length", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        longest = self.config.text_config.max_position_embeddings
        if self.text_length > longest:
            raise ValueError(f"text_length is {self.text_length}, but the model reads {longest} tokens at most")
        if self.optimizer not in BYTES_OF_AVERAGES:
            raise ValueError(f"optim is {self.optimizer}, but what is known is {', '.join(BYTES_OF_AVERAGES)}")
        sizes = measure_sizes(self.config)
        parameters = sizes["parameters"]
        adapters = _adapter_sizes(self.config, self.lora_rank) if self.lora_rank else {}
        self.num_parameters = parameters["model"] + sum(adapters.values())
        learning = adapters or {tower: parameters[tower] for tower in TOWERS}
        self.trained_of_tower = {tower: size for tower, size in learning.items() if tower not in self.locked}
        self.num_trained = sum(self.trained_of_tower.values())
        if not adapters:
            self.num_trained += parameters["model"] - parameters["image"] - parameters["text"]
        areas = [(size / self.config.vision_config.image_size) ** 2 for size in self.smaller_image_sizes]
        smaller = sum((1 - area) / len(areas) for area in areas) * (1 - self.full_size_share)
        self.flops = {
            "image": sizes["flops"]["image"] * (1 - self.patch_dropout * (1 - self.unmasked_share)) * (1 - smaller),
            "text": sizes["flops"]["text"] * self.text_length / longest,
        }
        self.flops_of_pair = sum(self.flops.values())
        share = 0.0 if self.unmasked_share else self.patch_dropout  # of the most that is held in the run
        self.bytes_of_image, self.bytes_of_text = saved_bytes(
            self.config, self.text_length, share, self.activation_checkpointing
        )

    @classmethod
    def from_options(
        cls, model_args: ModelArguments, args: ClipTrainingArguments, num_devices: int, text_length: int
    ) -> Self:
        """Returns what a command trains; compiled towers hold somewhat less, and locks of a part of it change nothing.

        Args:
            model_args: which model.
            args: of the training.
            num_devices: W.
            text_length: mean number of tokens.

        Raises:
            OSError: a checkpoint or a tokenizer is not there.
            ValueError: as the class.
        """
        vocab_size = model_args.vocab_size
        if model_args.tokenizer is not None:
            vocab_size = len(ClipHfTokenizer.from_pretrained(model_args.tokenizer))
        return cls(
            model_args.build_config(**({} if vocab_size is None else {"vocab_size": vocab_size})),
            args.global_batch_size or args.per_device_train_batch_size * num_devices,
            args.grad_cache_chunk_size,
            text_length,
            args.bf16 or args.fp16,
            args.grad_cache_text_chunk_size,
            str(getattr(args.optim, "value", args.optim)),
            model_args.lora_rank,
            tuple(tower for tower in TOWERS if getattr(args, f"{tower}_locked_steps") == WHOLE_RUN),
            args.patch_dropout,
            args.unmasked_share,
            tuple(args.smaller_image_sizes or ()),
            args.full_size_share,
            bool(args.activation_checkpointing),
            args.ema_decay is not None,
        )

    def chunk_sizes(self, num_devices: int) -> tuple[int, int]:
        """Returns how many images, and texts, a device embeds at a time.

        Args:
            num_devices: W.
        """
        own_size = self.global_batch_size // num_devices
        images = min(self.chunk_size or own_size, own_size)
        return images, min(self.text_chunk_size or images, own_size)


@dataclass
class Hardware:
    """The devices.

    Args:
        num_devices: W.
        flops_per_second: of matrix products, at the peak of one device.
        efficiency: share of it that a training reaches, in (0, 1].
        bandwidth: of one device to the others, in bytes per second.

    Raises:
        ValueError: a number is out of range.
    """

    num_devices: int
    flops_per_second: float
    efficiency: float
    bandwidth: float

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} is {value}, but must be above 0")
        if self.efficiency > 1:
            raise ValueError(f"efficiency is {self.efficiency}, but is a share of the peak, at most 1")


@dataclass
class Plan:
    """What one device holds, sends and takes in a step.

    Args:
        memory: bytes, by what they are for, an average of the weights among the parameters, of gradients what finds
            no place where activations were, and the engine's buffers beside its parts; the libraries' come on top.
        sent: bytes to other devices.
        compute_seconds: of the step.
        communication_seconds: of the step, were none of it hidden behind computing.
        pairs_per_second: of all devices.
    """

    memory: dict[str, float] = field(default_factory=dict)
    sent: float = 0.0
    compute_seconds: float = 0.0
    communication_seconds: float = 0.0
    pairs_per_second: float = 0.0


def plan(training: Training, hardware: Hardware, engine: str) -> Plan:
    """Returns the plan of a training on some devices.

    Args:
        training: what is trained.
        hardware: on what.
        engine: of `DIVIDED`.

    Raises:
        ValueError: the devices cannot share the batch equally.
    """
    num_devices, batch_size = hardware.num_devices, training.global_batch_size
    if batch_size % num_devices:
        raise ValueError(f"global_batch_size is {batch_size}, which {num_devices} devices cannot share equally")
    own_size = batch_size // num_devices
    num_logits = own_size * batch_size
    num_images, num_texts = training.chunk_sizes(num_devices)
    num_parameters, vision = training.num_parameters, training.config.vision_config
    text_bytes = 4 * training.config.projection_dim

    averages = BYTES_OF_AVERAGES[training.optimizer]
    parts: dict[str, float] = {
        "parameters": 4 * num_parameters,
        "gradients": 4 * training.num_trained,
        "optimizer": averages * training.num_trained,
    }
    for name in list(parts)[len(parts) - DIVIDED[engine] :]:
        parts[name] /= num_devices
    parts["parameters"] += 4 * num_parameters * training.has_average
    # Of two towers, the first has its backward pass when both are saved, unless chunks are recomputed one by one.
    is_chunked = min(num_images, num_texts) < own_size
    if is_chunked and DIVIDED[engine] > 1:
        # Autograd adds up those of all chunks of a tower before the engine gets them to divide.
        parts["gradients"] += 4 * max(training.trained_of_tower.values()) * (1 - 1 / num_devices)
    saved = {"image": num_images * training.bytes_of_image, "text": num_texts * training.bytes_of_text}
    towers = [size for tower, size in saved.items() if tower not in training.locked]
    activations = max(towers) if is_chunked else sum(towers)
    if training.bf16:
        activations = SHARE_IN_BF16 * activations + 2 * num_parameters
    if not is_chunked:  # gradients come as activations go
        parts["gradients"] = max(0, parts["gradients"] - activations)
    memory = parts | {
        "buffers": _buffer_bytes(training, num_devices, engine, activations if is_chunked else 0.0),
        "activations": activations,
        "batch": own_size * (vision.num_channels * vision.image_size**2 + 8 * training.text_length + 4 * text_bytes),
        "loss": 2 * batch_size * text_bytes + (8 * num_logits if num_logits <= WHOLE_LOGITS else TILE_BYTES),
    }
    ring = 1 - 1 / num_devices
    moved = num_parameters if engine == "zero3" else training.num_trained
    sent = ring * (ROUNDS[engine] * 4 * moved + 2 * batch_size * text_bytes)
    # A backward pass takes twice the forward pass, or once where weights have no gradients; a chunk's forward pass
    # comes twice, and that of a layer whose activations are not kept once more. A locked tower has no more than one.
    passes = 1 + (1 if training.lora_rank else 2) + is_chunked + training.activation_checkpointing
    of_pair = sum(flops * (1 if tower in training.locked else passes) for tower, flops in training.flops.items())
    flops = own_size * (of_pair + 2 * batch_size * text_bytes)
    seconds = flops / (hardware.flops_per_second * hardware.efficiency)
    waiting = sent / hardware.bandwidth if num_devices > 1 else 0.0
    return Plan(memory, sent, seconds, waiting, batch_size / (seconds + waiting))


def _buffer_bytes(training: Training, num_devices: int, engine: str, activations_before: float) -> float:
    """Returns what an engine holds beside its parts of parameters, gradients and averages.

    Args:
        training: what is trained.
        num_devices: W.
        engine: of `DIVIDED`.
        activations_before: bytes of those that are gone when the first gradients reach the engine, as in chunks.
    """
    size = 4 * training.num_trained
    if engine == "ddp":
        return size * (num_devices > 1)  # the buckets of all gradients
    # DeepSpeed copies its part of the parameters, and the optimizer changes the copy.
    collected = min(4 * training.num_parameters, COLLECTED_BYTES) * (engine == "zero3" and num_devices > 1)
    buckets: float = NUM_BUCKETS[engine] * min(size, BUCKET_BYTES)
    if engine != "zero3":  # of which scripts/benchmarks/planned_memory.py measured both together
        buckets = max(0.0, buckets - activations_before)
    return size / num_devices + buckets + collected


def _adapter_sizes(config: ClipHfConfig, rank: int) -> dict[str, int]:
    """Returns the parameters of an adapter in each tower."""
    with torch.device("meta"):
        model = ClipHfModel(config)
    sizes = dict.fromkeys(TOWERS, 0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and re.fullmatch(TARGETS, name):
            sizes["text" if name.startswith("text_model") else "image"] += rank * sum(module.weight.shape)
    return sizes
