"""What runs a training step: the engine that accelerate chose, and the compiler."""

from typing import TYPE_CHECKING

from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env

from clip_hf.training.training_args import ClipTrainingArguments

if TYPE_CHECKING:
    from clip_hf.model.modeling_clip_hf import ClipHfModel


def require_engine(args: ClipTrainingArguments, accelerator: Accelerator) -> None:
    """Raises ValueError if the engine is another than the one asked for.

    Args:
        args: of the run.
        accelerator: of the trainer.
    """
    wants_fsdp = args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if wants_fsdp and accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"FSDP is asked for, but on {args.device.type} accelerate would train with "
            f"{accelerator.distributed_type.value} and say nothing: use FSDP on accelerators, or leave it out"
        )
    if wants_fsdp and not accelerator.is_fsdp2:
        raise ValueError("FSDP version 1 hides which parameters are gains and biases: set the FSDP version to 2")


def divides_parameters(args: ClipTrainingArguments, accelerator: Accelerator) -> bool:
    """Returns whether no process has the whole model.

    Args:
        args: of the run.
        accelerator: of the trainer.
    """
    is_zero3 = bool(args.deepspeed and args.hf_deepspeed_config.is_zero3())
    return is_zero3 or accelerator.distributed_type == DistributedType.FSDP


def compile_towers(model: "ClipHfModel", args: ClipTrainingArguments) -> None:
    """Compiles each tower at its first step: whole, and in chunks, too, at which the compiler of a model gives up.

    Args:
        model: the model.
        args: with the compiler's backend and mode.
    """
    for tower in (model.vision_model, model.text_model):
        tower.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
