"""Options of a training that cannot go together, or not with this model: told before any data is read."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.trainer_utils import IntervalStrategy
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from clip_hf.data.data_args import DataArguments
from clip_hf.evaluation.retrieval import Ranks, retrieval_metrics
from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.training.checkpoints import is_resuming, last_checkpoint, require_no_checkpoints
from clip_hf.training.engines import divides_parameters
from clip_hf.training.lora import check_adapter, rank_in
from clip_hf.training.model_args import ModelArguments
from clip_hf.training.tower_locks import require_unlocking
from clip_hf.training.training_args import SCHEDULERS_OF_METRICS, WHOLE_RUN, ClipTrainingArguments

if TYPE_CHECKING:
    from clip_hf.training.zero_shot import ZeroShotArguments

logger = logging.get_logger(__name__)


def check_command(
    model_args: ModelArguments,
    data_args: DataArguments,
    zero_shot_args: "ZeroShotArguments",
    args: ClipTrainingArguments,
) -> None:
    """Checks the options of a command.

    Args:
        model_args: which model.
        data_args: which pairs.
        zero_shot_args: what is classified at each evaluation.
        args: of the training.

    Raises:
        ValueError: some cannot go together, or need a library that is missing; or a new run is to begin among the
            checkpoints of another.
    """
    config, folder = model_args.build_config(), Path(args.output_dir)
    check_options(args, config)
    library = _library_of(args)
    if library is not None and find_spec(library) is None:
        raise ValueError(
            f"optim is {OptimizerNames(args.optim).value}, which needs a library that is not installed: "
            f"`pip install {library}`"
        )
    check_own_batches(args)
    for name, value in {"eval_data": data_args.eval_data, "zero_shot_data": zero_shot_args.zero_shot_data}.items():
        if value is not None and args.eval_strategy == IntervalStrategy.NO:
            logger.warning(  # not an error: a recipe may hold the data that one run does without
                f"{name} is {value}, but eval_strategy is 'no', and nothing is evaluated: add --eval_strategy steps "
                "or epoch if it should be"
            )
    _check_metric(args, zero_shot_args)
    if zero_shot_args.zero_shot_data is not None:
        require_whole_model(args)
    rank = model_args.lora_rank
    if rank is not None:
        check_adapter(rank, args, config)
    if model_args.model is not None and (found := rank_in(model_args.model)) is not None:
        raise ValueError(
            f"model is {model_args.model}, a checkpoint amid a training with lora_rank {found}, whose adapter is not "
            "merged: continue that training with --resume_from_checkpoint, or name its output folder once it has ended"
        )
    if is_resuming(args.resume_from_checkpoint):
        resume_from = str(args.resume_from_checkpoint)
        checkpoint = last_checkpoint(folder) if resume_from.lower() == "true" else resume_from
        if checkpoint is not None and (found := rank_in(checkpoint)) != rank:
            raise ValueError(
                f"lora_rank is {rank}, but that of the training to resume, in {checkpoint}, is {found}: give the same"
            )
    elif data_args.dry_run_data is None:
        require_no_checkpoints(folder)


def check_options(args: ClipTrainingArguments, config: ClipHfConfig) -> None:
    """Checks what a model is to be trained with.

    Args:
        args: of the training.
        config: of the model.

    Raises:
        ValueError: options cannot go together, or need another image tower.
    """
    _check_image_tower(args, config.vision_config.model_type == "clip_hf_vit")
    _check_sizes(args, config)
    _check_locks(args)
    _check_optimizer(args)
    _check_engine(args)


def check_trained_model(model: nn.Module) -> None:
    """Checks that a model is one that can be trained.

    Args:
        model: to be trained.

    Raises:
        ValueError: it is no `ClipHfModel`, or has parameters in half precision.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type != "clip_hf":
        raise ValueError(
            f"the model is of type '{model_type}', but ClipTrainer trains 'clip_hf' models: open the checkpoint "
            "with ClipHfModel.from_pretrained, which also reads transformers' CLIP"
        )
    half = {one.dtype for one in model.parameters() if one.requires_grad} & {torch.float16, torch.bfloat16}
    if half:
        raise ValueError(
            f"the model is in {', '.join(sorted(map(str, half)))}, in which Adam's averages and small steps vanish: "
            "open it with dtype=torch.float32, and ask for half precision with bf16=True"
        )


def check_own_batches(args: ClipTrainingArguments) -> None:
    """Checks what a training set that makes its own batches, such as `TrainingPairs`, would not heed.

    Args:
        args: of the training.

    Raises:
        ValueError: the order of the samples is another than at random, or several processes are to take a last,
            smaller batch.
    """
    if args.train_sampling_strategy != "random":
        raise ValueError(
            f"train_sampling_strategy is '{args.train_sampling_strategy}', but this training set makes its own "
            "batches, at random: leave the option out"
        )
    if not args.dataloader_drop_last and args.world_size > 1:
        raise ValueError(
            "dataloader_drop_last is false, but what is left of an epoch may not be shared equally by "
            f"{args.world_size} processes, which would fill it up to a batch that one process does not have: leave "
            "the option out, or train on one process"
        )


def check_ready_optimizer(args: ClipTrainingArguments) -> None:
    """Checks what an optimizer that is made already, `optimizers=`, would not heed.

    Args:
        args: of the training.

    Raises:
        ValueError: a tower, or a layer, is to have a learning rate of its own, for a while or for good.
    """
    options = {name: getattr(args, name) for name in ("image_learning_rate", "text_learning_rate")}
    options |= {"layer_decay": args.layer_decay if args.layer_decay < 1 else None}
    for name in ("image_locked_steps", "text_locked_steps"):
        options[name] = getattr(args, name) if getattr(args, name) not in (0, WHOLE_RUN) else None
    if given := [f"{name} is {value}" for name, value in options.items() if value is not None]:
        raise ValueError(
            f"{', '.join(given)}, but the optimizer is made already, with rates of its own: leave optimizers out, or "
            "give its groups their rates and leave these options out"
        )


def require_whole_model(args: ClipTrainingArguments) -> None:
    """Checks that zero-shot classification has a model to classify with.

    Args:
        args: of the training.

    Raises:
        ValueError: an engine leaves no process the whole model.
    """
    if divides_parameters(args):
        raise ValueError(
            "zero-shot evaluation during training needs the whole model on each process, which ZeRO-3 and FSDP "
            "divide: use ZeRO-2, or evaluate the checkpoints with scripts/evaluate_zero_shot.py"
        )


def _check_metric(args: ClipTrainingArguments, zero_shot_args: "ZeroShotArguments") -> None:
    metric, first = args.metric_for_best_model, Ranks(*torch.tensor([[0], [0], [1]]))
    names = [*retrieval_metrics(first, first), *zero_shot_args.metric_names]
    if args.eval_strategy != IntervalStrategy.NO and metric and metric.removeprefix("eval_") not in names:
        raise ValueError(
            f"metric_for_best_model is {metric}, but the evaluation gives {', '.join(names)}: name one of them, or "
            "give the zero_shot_data that a zero-shot accuracy is of"
        )


def _check_image_tower(args: ClipTrainingArguments, is_vit: bool) -> None:
    if args.patch_dropout and not is_vit:
        raise ValueError(
            f"patch_dropout is {args.patch_dropout}, but the image tower is a ResNet, which has no patches to leave "
            "out: drop the option, or train a ViT"
        )
    if args.sync_batch_norm and (is_vit or args.image_locked_steps == WHOLE_RUN):
        problem = "has no batch norm" if is_vit else "is locked for the whole run, and its statistics with it"
        raise ValueError(
            f"sync_batch_norm is set, but the image tower {problem}: leave the option out, or train a ResNet"
        )


def _check_sizes(args: ClipTrainingArguments, config: ClipHfConfig) -> None:
    vision = config.vision_config
    # A ResNet halves its images five times.
    step = vision.patch_size if vision.model_type == "clip_hf_vit" else 32
    for size in args.smaller_image_sizes or []:
        if not 0 < size < vision.image_size or size % step:
            raise ValueError(
                f"smaller_image_sizes has {size}, but the model's images have {vision.image_size} pixels: take "
                f"multiples of {step} below that"
            )


def _check_locks(args: ClipTrainingArguments) -> None:
    steps = {"image": args.image_locked_steps, "text": args.text_locked_steps}
    if all(one == WHOLE_RUN for one in steps.values()):
        raise ValueError(
            f"image_locked_steps and text_locked_steps are {WHOLE_RUN}, which leaves only the temperature to train: "
            "unlock a tower"
        )
    if args.max_steps > 0:  # or it is checked when the steps of the epochs are known
        require_unlocking(args, args.max_steps)
    for tower in steps:
        if steps[tower] == WHOLE_RUN and (rate := getattr(args, f"{tower}_learning_rate")) is not None:
            raise ValueError(
                f"{tower}_learning_rate is {rate}, but {tower}_locked_steps is {WHOLE_RUN}, and the tower learns "
                "nothing: leave one of the two out"
            )
    if _has_temporary_lock(args) and args.lr_scheduler_type in SCHEDULERS_OF_METRICS:
        raise ValueError(
            f"lr_scheduler_type is {args.lr_scheduler_type}, which changes the rate it finds, and that of a "
            "locked tower is zero: take another, such as cosine, or lock the tower for the whole run"
        )


def _has_temporary_lock(args: ClipTrainingArguments) -> bool:
    return any(steps not in (0, WHOLE_RUN) for steps in (args.image_locked_steps, args.text_locked_steps))


def _library_of(args: ClipTrainingArguments) -> str | None:
    """The library of an optimizer with averages of few bits."""
    optimizer = OptimizerNames(args.optim).value
    if not optimizer.endswith("bit"):
        return None
    return "torchao" if optimizer.startswith("adamw_torch") else "bitsandbytes"


def _check_optimizer(args: ClipTrainingArguments) -> None:
    if _library_of(args) == "bitsandbytes" and _has_temporary_lock(args):
        raise ValueError(
            f"optim is {OptimizerNames(args.optim).value}, which counts the steps of a locked tower and would "
            "start it with steps far too large: take adamw_torch_8bit, or lock the tower for the whole run"
        )
    if _library_of(args) == "torchao" and args.deepspeed:
        raise ValueError(
            f"optim is {OptimizerNames(args.optim).value}, but DeepSpeed's parts of the parameters have any size, and "
            "of one that is no multiple of torchao's blocks the averages would keep 32 bits: leave DeepSpeed out, or "
            "take another optimizer"
        )


def _check_engine(args: ClipTrainingArguments) -> None:
    options = ("activation_checkpointing", "grad_cache_chunk_size", "grad_cache_text_chunk_size")
    recomputing = [name for name in options if getattr(args, name)]
    if args.fsdp and args.torch_compile and recomputing:
        raise ValueError(
            f"torch_compile and {recomputing[0]} are set, but where FSDP brings parameters together, a compiled tower "
            "keeps other tensors when it is computed again than at first: leave one of them out, or use ZeRO-2"
        )
    if args.fsdp and args.device.type == "cpu":
        raise ValueError(
            "fsdp is set, but accelerate knows it on accelerators alone, and on a CPU would train without it and say "
            "nothing: leave it out, or divide the model with DeepSpeed's ZeRO-3"
        )
    if args.ema_decay is not None and divides_parameters(args):
        raise ValueError(
            f"ema_decay is {args.ema_decay}, but ZeRO-3 and FSDP leave no process the whole weights to average: "
            "use ZeRO-2, or leave ema_decay out"
        )
