"""What is asked of an engine, DeepSpeed or FSDP2, so that it trains what one plain process trains."""

import json
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)


def command() -> str:
    """Returns the command that is running, as a shell takes it."""
    return shlex.join(sys.argv)


def require_engine_options(args: TrainingArguments) -> None:
    """Checks how the engine is asked for, before it is set up.

    Args:
        args: of the run; `fsdp` becomes a truth value where it is the word for one.

    Raises:
        ValueError: the launcher alone asks for the engine, a precision or a compiler; or there is no launcher, or no
            file of its configuration; or accelerate does not know an option.
    """
    if str(args.fsdp).lower() in ("true", "false"):
        args.fsdp = str(args.fsdp).lower() == "true"
    # What accelerate makes of its own options would round the temperature, and decay gains and biases.
    for engine, option in (("deepspeed", "--deepspeed scripts/deepspeed/zero2.json"), ("fsdp", "--fsdp true")):
        if not getattr(args, engine) and parse_flag_from_env(f"ACCELERATE_USE_{engine.upper()}"):
            raise ValueError(
                f"accelerate launch was told to use {engine}, but the command itself decides how: add `{option}` to "
                f"it, behind {sys.argv[0]}"
            )
    _require_same_asked_of_launcher(args)
    _require_known_to_accelerate(args.accelerator_config)
    config = args.deepspeed
    if config and isinstance(config, str) and not config.lstrip().startswith("{") and not Path(config).is_file():
        raise ValueError(
            f"deepspeed is '{config}', but there is no such file: scripts/deepspeed has one for each stage"
        )
    # Without a launcher's variables DeepSpeed looks for MPI, and fails over a module that nobody asked for.
    if config and "RANK" not in os.environ and find_spec("mpi4py") is None:
        raise ValueError(
            f"DeepSpeed wants its processes started by a launcher, for one process too: `deepspeed {command()}`"
        )


def _require_same_asked_of_launcher(args: TrainingArguments) -> None:
    # transformers would take the precision and say that `bf16` is false, and the trainer would take no compiler.
    compiler = "inductor" if args.torch_compile or args.torch_compile_mode is not None else "no"
    asked_here = {
        "mixed_precision": ("bf16" if args.bf16 else "fp16" if args.fp16 else "no", "--{} true"),
        "dynamo_backend": (args.torch_compile_backend or compiler, "--torch_compile_backend {}"),
    }
    for name, (here, option) in asked_here.items():
        asked = os.environ.get(f"ACCELERATE_{name.upper()}", "no").lower()
        if asked not in ("", "no", here):
            add = "" if asked == "fp8" else f"add `{option.format(asked)}` to it, behind {sys.argv[0]}, or "
            raise ValueError(
                f"accelerate launch was told to use {name} {asked}, but the command itself decides, and says {here}: "
                f"{add}launch with `--{name} no`"
            )


def _require_known_to_accelerate(config: Any) -> None:
    if isinstance(config, str) and config.startswith("{"):
        config = json.loads(config)
    known = AcceleratorConfig.__dataclass_fields__
    if isinstance(config, dict) and (unknown := config.keys() - known.keys()):
        raise ValueError(
            f"accelerator_config has {', '.join(sorted(unknown))}, but knows {', '.join(known)}: leave the rest out"
        )


def configure_deepspeed(args: TrainingArguments) -> None:
    """Makes `bf16` mean autocast around float32 parameters, whose gradients are reduced in float32.

    Args:
        args: with a DeepSpeed configuration, which is changed.

    Raises:
        ValueError: the configuration would change what is trained.
    """
    import deepspeed

    config = args.hf_deepspeed_config.config
    for section, options in (("optimizer", "optim and learning_rate"), ("scheduler", "lr_scheduler_type")):
        if section in config:
            raise ValueError(
                f"the DeepSpeed configuration has a section '{section}', which knows nothing of parameters that "
                f"are not decayed: remove it, and set {options} instead"
            )
    for dtype in ("bf16", "fp16"):
        if config.get(dtype, {}).get("enabled", False):
            raise ValueError(
                f"the DeepSpeed configuration enables '{dtype}', which rounds the temperature and the batch norm "
                "statistics: remove the section and set bf16=True, which computes in bfloat16 under autocast and "
                "leaves the parameters in float32"
            )
    if args.fp16:
        raise ValueError("fp16=True is not supported with DeepSpeed: set bf16=True")
    autocast = config.setdefault("torch_autocast", {})
    if autocast.setdefault("enabled", args.bf16) != args.bf16:
        raise ValueError(
            f"the DeepSpeed configuration has torch_autocast.enabled={autocast['enabled']}, but "
            f"bf16={args.bf16}: remove the section, bf16 alone decides"
        )
    autocast["dtype"] = "bfloat16"
    # The modules of which DeepSpeed would send gradients, and under ZeRO-3 add up those of chunks, in bfloat16.
    autocast.setdefault("lower_precision_safe_modules", [])
    if dist.is_initialized():
        _warn_of_interrupted_build()
        # Else ZeRO-3, which divides a model while it is made, would on CPUs take the world for one process.
        deepspeed.init_distributed()
    args.mixed_precision = "no"  # accelerate's word for "cast the parameters" under DeepSpeed


def configure_fsdp(args: TrainingArguments) -> None:
    """Makes `bf16` mean autocast around float32 parameters.

    Args:
        args: with FSDP, whose plug-in's arguments are changed.

    Raises:
        ValueError: the version is not 2.
    """
    if args.fsdp_plugin_args["fsdp_version"] != 2:
        raise ValueError(
            "fsdp_config has version 1, which flattens parameters so that none is known to be a gain or a bias: "
            "set version 2"
        )
    from torch.distributed.fsdp import MixedPrecisionPolicy

    # accelerate's policy would round parameters, the temperature among them, and the embeddings to bfloat16;
    # autocast, which it applies as well, does not.
    args.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy()


def _warn_of_interrupted_build() -> None:
    """Names the file for which DeepSpeed waits, in silence and for ever, if its first start was interrupted."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
    from torch.utils.cpp_extension import _get_build_directory

    if get_accelerator().device_name() != "cpu" or int(os.environ.get("LOCAL_RANK", "0")) != 0:
        return
    lock = Path(_get_build_directory(ShareMemCommBuilder.NAME, verbose=False), "lock")
    if lock.exists():
        logger.warning(
            f"DeepSpeed waits for {lock}, which a start that compiles leaves there while it does so, a minute or two, "
            "or for good if it is killed: if no other process compiles, delete the file"
        )
