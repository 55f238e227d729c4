"""Options of a training that cannot go together, or not with this model: told before any data is read."""

from importlib.util import find_spec
from pathlib import Path

from transformers.trainer_utils import SchedulerType

from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.training.checkpoints import is_resuming, last_checkpoint, require_no_checkpoints
from clip_hf.training.lora import check_adapter, rank_in
from clip_hf.training.model_args import ModelArguments
from clip_hf.training.tower_locks import num_locked_steps
from clip_hf.training.training_args import WHOLE_RUN, ClipTrainingArguments


def check_command(model_args: ModelArguments, args: ClipTrainingArguments, is_dry_run: bool = False) -> None:
    """Checks the options of a command.

    Args:
        model_args: which model.
        args: of the training.
        is_dry_run: nothing is to be trained.

    Raises:
        ValueError: some cannot go together, or a new run is to begin among the checkpoints of another.
    """
    config, folder = model_args.build_config(), Path(args.output_dir)
    check_options(args, config)
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
    elif not is_dry_run:
        require_no_checkpoints(folder)


def check_options(args: ClipTrainingArguments, config: ClipHfConfig) -> None:
    """Checks what a model is to be trained with.

    Args:
        args: of the training.
        config: of the model.

    Raises:
        ValueError: options cannot go together, or need another image tower or a library that is missing.
    """
    _check_image_tower(args, config.vision_config.model_type == "clip_hf_vit")
    _check_sizes(args, config)
    _check_locks(args)
    _check_optimizer(args)


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
    ends = [WHOLE_RUN if args.max_steps <= 0 else num_locked_steps(one, args.max_steps) for one in steps.values()]
    is_whole = [one == WHOLE_RUN for one in steps.values()]
    if all(is_whole) or (args.max_steps > 0 and min(ends) >= args.max_steps):
        raise ValueError(
            f"image_locked_steps is {args.image_locked_steps} and text_locked_steps {args.text_locked_steps}, of "
            f"{args.max_steps if args.max_steps > 0 else 'all'} steps, which leaves only the temperature to train: "
            "unlock a tower"
        )
    for tower in steps:
        if steps[tower] == WHOLE_RUN and (rate := getattr(args, f"{tower}_learning_rate")) is not None:
            raise ValueError(
                f"{tower}_learning_rate is {rate}, but {tower}_locked_steps is {WHOLE_RUN}, and the tower learns "
                "nothing: leave one of the two out"
            )
    relative = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
    if _has_temporary_lock(args) and args.lr_scheduler_type in relative:
        raise ValueError(
            f"lr_scheduler_type is {args.lr_scheduler_type}, which changes the rate it finds, and that of a "
            "locked tower is zero: take another, such as cosine, or lock the tower for the whole run"
        )


def _has_temporary_lock(args: ClipTrainingArguments) -> bool:
    return any(steps not in (0, WHOLE_RUN) for steps in (args.image_locked_steps, args.text_locked_steps))


def _check_optimizer(args: ClipTrainingArguments) -> None:
    optimizer = str(getattr(args.optim, "value", args.optim))
    if not optimizer.endswith("bit"):
        return
    library = "torchao" if optimizer.startswith("adamw_torch") else "bitsandbytes"
    if library == "bitsandbytes" and _has_temporary_lock(args):
        raise ValueError(
            f"optim is {optimizer}, which counts the steps of a locked tower and would start it with steps far too "
            "large: take adamw_torch_8bit, or lock the tower for the whole run"
        )
    if find_spec(library) is None:
        raise ValueError(f"optim is {optimizer}, which needs a library that is not installed: `pip install {library}`")
