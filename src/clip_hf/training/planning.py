"""What a training takes of each device: memory, communication and time, before it is started.

Memory of parameters follows from the engine; that of activations from what autograd saves in the forward pass of a
chunk, counted on the meta device. With `grad_cache_chunk_size`, one chunk's activations are held at a time.

Shapes: W devices, B pairs of a device, N = W B pairs of the batch, D joint embedding, P parameters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.modeling_clip_hf import ClipHfModel
from clip_hf.model_card.page import measure_sizes

# Bytes of a parameter that every device holds, and that the devices divide among themselves: it, its gradient, and
# Adam's two averages, in float32.
BYTES_OF_PARAMETERS = {"ddp": (16, 0), "zero1": (8, 8), "zero2": (4, 12), "zero3": (0, 16)}
# How often all parameters go round in a step; scripts/benchmarks/communication.py counts it.
ROUNDS = {"ddp": 2, "zero1": 3, "zero2": 3, "zero3": 3}
# Of the activations, in bfloat16, as counted on a CPU; layer norms and the like stay in float32.
SHARE_IN_BF16 = 0.55
TILE_BYTES = 2 * 4 * 4096**2  # of logits, and of their exponentials


@dataclass
class Training:
    """What is trained.

    Args:
        config: of the model.
        global_batch_size: N.
        chunk_size: images, and texts, embedded at a time on a device; None for all of them.
        text_length: mean number of tokens.
        bf16: whether matrices are multiplied in bfloat16.

    Raises:
        ValueError: a number is below 1.
    """

    config: ClipHfConfig
    global_batch_size: int
    chunk_size: int | None = None
    text_length: int = 16
    bf16: bool = False

    def __post_init__(self) -> None:
        """Checks the numbers, and measures the model."""
        for name in ("global_batch_size", "chunk_size", "text_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        sizes = measure_sizes(self.config)
        self.num_parameters = sizes["parameters"]["model"]
        longest = self.config.text_config.max_position_embeddings
        self.flops_of_pair = sizes["flops"]["image"] + sizes["flops"]["text"] * self.text_length / longest
        self.bytes_of_image, self.bytes_of_text = saved_bytes(self.config, self.text_length)


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
        memory: bytes, by what they are for; the libraries' own come on top.
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
        engine: of `BYTES_OF_PARAMETERS`.

    Raises:
        ValueError: the devices cannot share the batch equally.
    """
    num_devices, batch_size = hardware.num_devices, training.global_batch_size
    if batch_size % num_devices:
        raise ValueError(f"global_batch_size is {batch_size}, which {num_devices} devices cannot share equally")
    own_size = batch_size // num_devices
    chunk_size = min(training.chunk_size or own_size, own_size)
    num_parameters, vision = training.num_parameters, training.config.vision_config
    text_bytes = 4 * training.config.projection_dim

    whole, divided = BYTES_OF_PARAMETERS[engine]
    # Of two towers, the first has its backward pass when both are saved, unless chunks are recomputed one by one.
    is_chunked = chunk_size < own_size
    towers = (training.bytes_of_image, training.bytes_of_text)
    activations = chunk_size * (max(towers) if is_chunked else sum(towers))
    if training.bf16:
        activations = SHARE_IN_BF16 * activations + 2 * num_parameters
    memory = {
        "parameters": num_parameters * (whole + divided / num_devices),
        "activations": activations,
        "batch": own_size * (vision.num_channels * vision.image_size**2 + 8 * training.text_length + 4 * text_bytes),
        "loss": 2 * batch_size * text_bytes + min(TILE_BYTES, 8 * own_size * batch_size),
    }
    ring = 1 - 1 / num_devices
    sent = ring * (ROUNDS[engine] * 4 * num_parameters + 2 * batch_size * text_bytes)
    # A backward pass takes twice the forward pass, and a chunk's forward pass comes twice.
    flops = own_size * ((4 if is_chunked else 3) * training.flops_of_pair + 2 * batch_size * text_bytes)
    seconds = flops / (hardware.flops_per_second * hardware.efficiency)
    waiting = sent / hardware.bandwidth if num_devices > 1 else 0.0
    return Plan(memory, sent, seconds, waiting, batch_size / (seconds + waiting))


def saved_bytes(config: ClipHfConfig, text_length: int) -> tuple[float, float]:
    """Returns the bytes that autograd keeps of an image, and of a text, until their backward pass, in float32.

    Args:
        config: of the model.
        text_length: in tokens.
    """
    vision = config.vision_config
    with torch.device("meta"):
        model = ClipHfModel(config).train()

        def image_bytes(number: int) -> int:
            pixels = torch.empty(number, vision.num_channels, vision.image_size, vision.image_size)
            with _counting() as saved:
                _ = model.vision_model(pixel_values=pixels)
            return sum(saved.values())

        def text_bytes(number: int) -> int:
            with _counting() as saved:
                _ = model.text_model(input_ids=torch.empty(number, text_length, dtype=torch.long))
            return sum(saved.values())

        # What two more take: parameters and buffers, which are saved as well, do not count.
        return (image_bytes(4) - image_bytes(2)) / 2, (text_bytes(4) - text_bytes(2)) / 2


@contextmanager
def _counting() -> Iterator[dict[int, int]]:
    """Fills a dictionary with the bytes of each storage that autograd saves."""
    saved: dict[int, int] = {}
    kept: list[Tensor] = []  # or storages would be freed, and their addresses be given to others

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved
