"""How a CLIP model is trained: transformers' arguments, the paper's defaults, and what contrastive training adds."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import get_cpu_distributed_information
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.utils import logging

from clip_hf.training.engine_args import command, configure_deepspeed, configure_fsdp, require_engine_options

logger = logging.get_logger(__name__)

DEFAULT_METRIC = "mean_recall"
WHOLE_RUN = -1  # as a number of steps
MOST_DATA_WORKERS = 8
FULL_SIZE_SHARE = 0.2
SCHEDULERS_OF_METRICS = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def default_num_workers() -> int:
    """Returns how many processes prepare a process's data: its share of the cores but one, at least 1, at most 8."""
    _name_local_world_size()
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = num_cores // get_cpu_distributed_information().local_world_size
    return min(max(1, share - 1), MOST_DATA_WORKERS)


def _name_local_world_size() -> None:
    # DeepSpeed's launcher has a name of its own, which accelerate does not know: on a CPU, each process would start a
    # thread for every core.
    if "LOCAL_SIZE" in os.environ:
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["LOCAL_SIZE"])


def _help(name: str) -> Mapping[str, str]:
    """Returns transformers' own words on a field of which only the default is ours."""
    return TrainingArguments.__dataclass_fields__[name].metadata


@dataclass
class ClipTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the defaults of CLIP (paper, arXiv 2103.00020, tables 18 to 20).

    `per_device_train_batch_size` is what one device contributes to the contrastive batch: each image of all devices is
    compared with each text of all devices. How much of it the towers hold at a time is `grad_cache_chunk_size`, which
    takes the place of gradient accumulation. `bf16` means autocast around float32 parameters in every engine.
    `max_grad_norm` is transformers' 1.0, where the paper names no bound: 0 is none.

    Raises:
        ValueError: an option is out of range, or would change what is optimised without saying so.
    """

    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Pairs of all devices in a step, each compared with each. Given instead of "
            "`per_device_train_batch_size`, which becomes a device's equal share of it."
        },
    )
    grad_cache_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Images, and texts, of a device whose activations are held at a time; all of them by default. "
            "Smaller chunks take less memory and, whatever their size, a third more compute; gradients stay exact."
        },
    )
    grad_cache_text_chunk_size: int | None = field(
        default=None,
        metadata={"help": "Texts of a device whose activations are held at a time, if not as many as images."},
    )
    loss_tile_size: int | None = field(
        default=None,
        metadata={"help": "Rows and columns of the similarities that the loss holds at a time; chosen by default."},
    )
    image_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the image tower, if not `learning_rate`."}
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the text tower, if not `learning_rate`."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Learning rate of a tower's layer as a multiple of that of the layer above."}
    )
    image_locked_steps: float = field(
        default=0,
        metadata={
            "help": "Steps for which the image tower stays as it is; a share of the run if below 1; -1 for all of it."
        },
    )
    text_locked_steps: float = field(
        default=0,
        metadata={
            "help": "Steps for which the text tower stays as it is; a share of the run if below 1; -1 for all of it."
        },
    )
    patch_dropout: float = field(
        default=0.0, metadata={"help": "Share of each image's patches that a ViT leaves out in training (FLIP)."}
    )
    unmasked_share: float = field(
        default=0.0, metadata={"help": "Share of the run, at its end, in which `patch_dropout` leaves out no patch."}
    )
    smaller_image_sizes: list[int] | None = field(
        default=None,
        metadata={
            "help": "Sides, in pixels, of the images that training begins with, one after the other for equal shares "
            "of the run; its end sees the full size."
        },
    )
    full_size_share: float = field(
        default=FULL_SIZE_SHARE,
        metadata={"help": "Share of the run, at its end, that sees images in full size in any case."},
    )
    exclude_duplicate_texts: bool = field(
        default=False, metadata={"help": "Leave pairs that have the same text out of each other's negatives."}
    )
    sync_batch_norm: bool = field(
        default=False, metadata={"help": "Normalise a ResNet's features over the images of all devices."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Share of the weights' moving average that a step keeps; saved in the folder `ema`."},
    )

    learning_rate: float = field(default=5e-4, metadata=_help("learning_rate"))
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata=_help("lr_scheduler_type"))
    warmup_steps: float = field(default=2000, metadata=_help("warmup_steps"))
    weight_decay: float = field(
        default=0.2,
        metadata={"help": "Decoupled weight decay of all tensors but gains, biases and other vectors and numbers."},
    )
    adam_beta2: float | None = field(
        default=None,
        metadata={"help": "Decay of Adam's second moment; by default 0.98 for a ViT and 0.999 for a ResNet."},
    )
    adam_epsilon: float | None = field(
        default=None, metadata={"help": "Adam's epsilon; by default 1e-6 for a ViT and 1e-8 for a ResNet."}
    )
    dataloader_drop_last: bool = field(
        default=True,
        metadata={
            "help": "Leave out the last training batch of an epoch if it is smaller. Evaluation sees all pairs."
        },
    )
    dataloader_num_workers: int = field(
        default_factory=default_num_workers,
        metadata={
            "help": "Processes that prepare data, for each process that trains; by default its share of the cores but "
            f"one, at least 1 and at most {MOST_DATA_WORKERS}. 0 prepares it in between the steps."
        },
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={"help": f"Metric by which checkpoints are compared, where they are; {DEFAULT_METRIC} by default."},
    )
    remove_unused_columns: bool = field(default=False, metadata=_help("remove_unused_columns"))
    ddp_find_unused_parameters: bool | None = field(default=False, metadata=_help("ddp_find_unused_parameters"))
    logging_nan_inf_filter: bool = field(default=False, metadata=_help("logging_nan_inf_filter"))

    def __post_init__(self) -> None:
        """Checks everything that can be known before there is a model."""
        self._require_positive()
        self._require_schedules()
        self._share_global_batch()
        self._require_one_batch_per_step()
        require_engine_options(self)
        self._require_checkpoints()
        _name_local_world_size()
        if not torch.accelerator.is_available():
            self.use_cpu = True  # or, under DeepSpeed, each process takes itself for the only one
        self._choose_metric()
        super().__post_init__()
        self._require_whole_batch()
        if self.eval_strategy == IntervalStrategy.NO:
            self.eval_on_start = False  # a recipe's; without evaluation there is nothing to evaluate on
        if self.lr_scheduler_type in SCHEDULERS_OF_METRICS:  # which would else wait for the least of any metric
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode} | (vars(self)["lr_scheduler_kwargs"] or {})
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs are visible to one process, which would split the contrastive batch among them. "
                f"Give each GPU a process, `torchrun --nproc_per_node {self.n_gpu} {command()}`, or show "
                "this one a single GPU with CUDA_VISIBLE_DEVICES"
            )
        if self.deepspeed:
            configure_deepspeed(self)
        elif self.fsdp_plugin_args is not None:
            configure_fsdp(self)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is pickled: transformers puts the arguments next to the weights and uploads both."""
        return self.__dict__ | {"hub_token": None}

    @property
    def chunk_sizes(self) -> tuple[int | None, int | None]:
        """How many images and how many texts the model embeds at a time, None for all."""
        return self.grad_cache_chunk_size, self.grad_cache_text_chunk_size or self.grad_cache_chunk_size

    def _require_one_batch_per_step(self) -> None:
        if self.gradient_accumulation_steps != 1:
            size, steps = self.per_device_train_batch_size, self.gradient_accumulation_steps
            raise ValueError(
                f"gradient_accumulation_steps is {steps}, but a pair's negatives are the whole batch, and "
                "accumulation would only average the losses of small ones. For the same memory and the exact gradient "
                f"set per_device_train_batch_size={size * steps} and grad_cache_chunk_size={size}"
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size would change the contrastive batch, and with it the loss: set "
                "per_device_train_batch_size, and fit memory with grad_cache_chunk_size"
            )
        if self.batch_eval_metrics:
            raise ValueError(
                "batch_eval_metrics is set, but retrieval is of the whole evaluation set and not the mean of its "
                "batches: leave it out"
            )
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {self.label_smoothing_factor}, but CLIP's loss has none: leave it out"
            )

    def _share_global_batch(self) -> None:
        if self.global_batch_size is None:
            return
        num_devices = get_cpu_distributed_information().world_size  # whichever launcher says it, on GPUs as well
        if self.global_batch_size % num_devices:
            raise ValueError(
                f"global_batch_size is {self.global_batch_size}, which {num_devices} processes cannot share equally: "
                f"use a multiple of {num_devices}"
            )
        given, share = vars(self)["per_device_train_batch_size"], self.global_batch_size // num_devices
        if given not in (TrainingArguments.per_device_train_batch_size, share):
            raise ValueError(
                f"global_batch_size={self.global_batch_size} gives each of {num_devices} processes {share} pairs, but "
                f"per_device_train_batch_size is {given}: set one of the two"
            )
        self.per_device_train_batch_size = share

    def _require_whole_batch(self) -> None:
        if self.global_batch_size is None:
            return
        num_started = self.global_batch_size // self.per_device_train_batch_size
        if num_started != self.world_size:
            raise ValueError(
                f"{num_started} processes were started to share global_batch_size={self.global_batch_size}, but "
                f"{self.world_size} of them train together: start them with torchrun, "
                f"`torchrun --nproc_per_node {num_started} {command()}`"
            )

    def _require_positive(self) -> None:
        for name in ("global_batch_size", "grad_cache_chunk_size", "grad_cache_text_chunk_size", "loss_tile_size"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} is {value}, but must be a whole number, at least 1, or not given")
        for name in ("image_learning_rate", "text_learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is {value}, but must be at least 0, or not given")

    def _require_schedules(self) -> None:
        for name in ("image_locked_steps", "text_locked_steps"):
            steps = getattr(self, name)
            if steps != WHOLE_RUN and not (0 <= steps < 1 or (steps >= 1 and steps % 1 == 0)):
                raise ValueError(
                    f"{name} is {steps}, but must be a number of steps, a share of the run below 1, or {WHOLE_RUN} "
                    "for all of it"
                )
        for name in ("patch_dropout", "unmasked_share", "full_size_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 0 and below 1")
        if self.patch_dropout and self.image_locked_steps == WHOLE_RUN:
            raise ValueError(
                f"patch_dropout is {self.patch_dropout}, but the image tower is locked for the whole run and leaves "
                "nothing out: drop one of the two options"
            )
        if self.unmasked_share and not self.patch_dropout:
            raise ValueError(
                f"unmasked_share is {self.unmasked_share}, but there is no patch_dropout to end: set both"
            )
        if self.full_size_share != FULL_SIZE_SHARE and not self.smaller_image_sizes:
            raise ValueError(
                f"full_size_share is {self.full_size_share}, but there are no smaller_image_sizes, and all images are "
                "of full size: set both"
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}, but must be above 0 and at most 1, which is none")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, but must be at least 0 and below 1, or not given")

    def _require_checkpoints(self) -> None:
        strategy = SaveStrategy(self.save_strategy)
        if self.save_steps != TrainingArguments.save_steps and strategy != SaveStrategy.STEPS:
            logger.warning(  # not an error: a recipe may hold them
                f"save_steps is {self.save_steps}, but save_strategy is '{strategy.value}', which knows no steps"
            )
        if str(self.resume_from_checkpoint).lower() != "true":
            return
        if self.save_only_model:
            raise ValueError(
                "resume_from_checkpoint is true, but save_only_model is, too, which leaves nothing to continue from: "
                "leave one of them out"
            )
        if strategy == SaveStrategy.NO:
            logger.warning(
                "resume_from_checkpoint is true, but save_strategy is 'no': only what SIGTERM leaves can be continued"
            )

    def _choose_metric(self) -> None:
        if self.metric_for_best_model is None and self._compares_checkpoints():
            self.metric_for_best_model = DEFAULT_METRIC
        metric = self.metric_for_best_model or ""
        if metric.endswith("_rank") and vars(self)["greater_is_better"] is None:
            self.greater_is_better = False
        if metric.endswith("num_broken"):
            raise ValueError(
                f"metric_for_best_model is {metric}, a count that says nothing of a model: name a metric such as "
                f"{DEFAULT_METRIC} or zero_shot_top_1_accuracy"
            )
        if metric.endswith("loss"):
            raise ValueError(
                f"metric_for_best_model is {metric}, but a contrastive loss depends on the batch "
                f"and says little of a model: name a metric such as {DEFAULT_METRIC}, text_retrieval_recall@1, or "
                "zero_shot_top_1_accuracy"
            )

    def _compares_checkpoints(self) -> bool:
        return (
            self.load_best_model_at_end
            or self.save_strategy == SaveStrategy.BEST
            or self.lr_scheduler_type in SCHEDULERS_OF_METRICS
        )
