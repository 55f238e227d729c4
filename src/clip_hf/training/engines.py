"""What runs a training step: the engine that accelerate chose, and the compiler."""

from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from clip_hf.training.training_args import ClipTrainingArguments

if TYPE_CHECKING:
    from clip_hf.model.modeling_clip_hf import ClipHfModel


def require_engine(args: ClipTrainingArguments, accelerator: Accelerator) -> None:
    """Raises ValueError if the engine is another than the one asked for.

    Args:
        args: of the run.
        accelerator: of the trainer.
    """
    if args.fsdp and accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"FSDP is asked for, but on {args.device.type} accelerate would train with "
            f"{accelerator.distributed_type.value} and say nothing: use FSDP on accelerators, or leave it out"
        )


def divides_parameters(args: ClipTrainingArguments) -> bool:
    """Returns whether no process has the whole model.

    Args:
        args: of the run.
    """
    return bool(args.fsdp or (args.deepspeed and args.hf_deepspeed_config.is_zero3()))


def compile_towers(model: "ClipHfModel", args: ClipTrainingArguments) -> None:
    """Compiles each tower at its first step: whole, and in chunks, too, at which the compiler of a model gives up.

    Args:
        model: the model.
        args: with the compiler's backend and mode.
    """
    # DistributedDataParallel would have the compiler divide a tower at its buckets, and a chunk that is computed a
    # second time would keep other tensors than at first.
    torch._dynamo.config.optimize_ddp = False
    for tower in (model.vision_model, model.text_model):
        tower.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
