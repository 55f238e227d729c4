"""transformers' Trainer with the contrastive loss of the global batch."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import TorchDynamoPlugin, broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import get_last_checkpoint, has_length
from transformers.utils import logging

from clip_hf.distributed import all_gather
from clip_hf.losses import clip_loss
from clip_hf.training import combinations
from clip_hf.training.duplicate_texts import group_by_text
from clip_hf.training.engines import compile_towers, divides_parameters, require_engine
from clip_hf.training.non_finite_samples import name_non_finite_samples
from clip_hf.training.parameter_groups import ADAM_DEFAULTS, decay_parameter_names, split_by_layer, split_by_tower
from clip_hf.training.patch_dropout import PatchDropout
from clip_hf.training.progressive_resolution import ProgressiveResolution
from clip_hf.training.pushing_trainer import PushingTrainer
from clip_hf.training.results import ResultsCallback
from clip_hf.training.retrieval import evaluate_retrieval
from clip_hf.training.synced_batch_norm import synchronize_batch_norm
from clip_hf.training.tower_locks import TowerLocks
from clip_hf.training.training_args import ClipTrainingArguments
from clip_hf.training.training_log import TrainingLog
from clip_hf.training.weight_average import WeightAverage

if TYPE_CHECKING:
    from clip_hf.training.zero_shot import ZeroShotEvaluation

logger = logging.get_logger(__name__)

# Keys of a batch that the model is not given: names of its samples, and of how many texts each has.
SAMPLE_IDS = "sample_ids"
NUM_TEXTS = "num_texts"


class ClipTrainer(PushingTrainer):
    """Trains a `ClipHfModel` on the contrastive loss of all pairs of all devices.

    The constructor is that of `transformers.Trainer`. Batches hold `pixel_values` and `input_ids`, row for row, and
    may hold `sample_ids`, a list of names for error messages. One process, DistributedDataParallel, DeepSpeed's ZeRO
    stages and FSDP2 give the same parameters for the same global batch, and so does every `grad_cache_chunk_size`. A
    ResNet's batch norm alone knows only the images that it is given at a time: those of a chunk, on one device or,
    with `sync_batch_norm`, on all. The scale of the logits is 100 at most: there a gradient that would raise it does
    not pass, and one that lowers it does.

    Evaluation embeds every image and text of the evaluation set once, on whatever number of processes, and reports
    the loss of the set as one batch and retrieval in both directions (`evaluate_retrieval`). Where images have several
    texts, a batch holds those of its images in their order, and `num_texts` of each. A `compute_metrics` takes its
    place and is given the same predictions. `evaluate_also` adds zero-shot classification.

    Args:
        model: a `ClipHfModel`.
        args: `ClipTrainingArguments`.
        other_args: the other arguments of `transformers.Trainer`.
        other_options: the same, by name.

    Raises:
        ValueError: an argument has another type, or the parallelism asked for is not the one that would be used.
    """

    loss_is_scaled_for_ga = True  # the loss is the mean over all pairs of a step
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None

    def __init__(
        self,
        model: nn.Module | None = None,
        args: ClipTrainingArguments | None = None,
        *other_args: Any,
        **other_options: Any,
    ) -> None:
        if not isinstance(args, ClipTrainingArguments):
            raise ValueError(f"args is {type(args).__name__}, but must be ClipTrainingArguments")
        super().__init__(model, args, *other_args, **other_options)
        self._check_objects()
        combinations.check_options(self.args, self.model.config)
        require_engine(self.args, self.accelerator)
        if self.compute_metrics is None:
            self.compute_metrics = partial(evaluate_retrieval, device=self.args.device)
        if self.args.sync_batch_norm:
            synchronize_batch_norm(self.model)
        if self.args.torch_compile:
            compile_towers(self.model, self.args)
        self._tower_locks = TowerLocks(self.args, self.model)
        self._weight_average = WeightAverage(self.model)
        self._resolution = ProgressiveResolution()
        for callback in (self._tower_locks, PatchDropout(self.model), self._resolution, self._weight_average):
            self.add_callback(callback)
        self.results = ResultsCallback()
        self.add_callback(self.results)
        self._training_log = TrainingLog()
        self._zero_shot: ZeroShotEvaluation | None = None

    def _check_objects(self) -> None:
        combinations.check_trained_model(self.model)
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func would not be called: ClipTrainer computes the contrastive loss itself")
        if self.model_init is not None:
            raise ValueError("model_init would make a model that no lock or average knows of: give a model instead")
        if self.optimizer is not None:
            combinations.check_ready_optimizer(self.args)
        if hasattr(self.train_dataset, "loader"):
            combinations.check_own_batches(self.args)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        # Or accelerate would compile the model, whose chunks a compiler leaves as they are.
        return super()._build_accelerator_args(**kwargs) | {"dynamo_plugin": TorchDynamoPlugin(backend="no")}

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """Returns the batches of this process.

        Raises:
            ValueError: the training set does not fill one batch.
        """
        batch_size = self.args.train_batch_size * self.args.world_size
        if has_length(self.train_dataset) and self.args.dataloader_drop_last and len(self.train_dataset) < batch_size:
            raise ValueError(
                f"the training set has {len(self.train_dataset)} pairs, fewer than the batch of all devices, "
                f"{self.args.train_batch_size} x {self.args.world_size}: lower global_batch_size, or "
                "per_device_train_batch_size"
            )
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Returns the evaluation batches of this process, the last, smaller one included."""
        with self._keeping_last_batch():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Returns the batches that `predict` sees, the last, smaller one included."""
        with self._keeping_last_batch():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _keeping_last_batch(self) -> Iterator[None]:
        # transformers knows one `dataloader_drop_last` for training and evaluation.
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    # Optimization

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the names of the parameters that decay, by the paper's rule."""
        return decay_parameter_names(model)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: ClipTrainingArguments, model: Any = None) -> tuple[Any, Any]:
        """Returns the optimizer's class and arguments; what Adam is not told, it has from the kind of image tower."""
        args = copy.copy(args)
        beta2, epsilon = ADAM_DEFAULTS[model.config.vision_config.model_type]
        args.adam_beta2 = beta2 if args.adam_beta2 is None else args.adam_beta2
        args.adam_epsilon = epsilon if args.adam_epsilon is None else args.adam_epsilon
        return Trainer.get_optimizer_cls_and_kwargs(args, model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Returns the optimizer, each tower, and each layer of it, with its learning rate."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer = super().create_optimizer(model)
            learning_rates = {
                "vision_model": self.args.image_learning_rate,
                "text_model": self.args.text_learning_rate,
            }
            groups = split_by_tower(optimizer.param_groups, model, learning_rates)
            if self.args.layer_decay < 1:
                groups = split_by_layer(groups, model, self.args.layer_decay)
            optimizer.param_groups = groups
            self._tower_locks.watch(optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Returns the learning rate's schedule, and warns if it never leaves the warm-up."""
        warmup_steps = self.args.get_warmup_steps(num_training_steps)
        if warmup_steps >= num_training_steps > 0:
            logger.warning(
                f"The warm-up of {warmup_steps} steps does not end within the {num_training_steps} steps of this run: "
                "set warmup_steps to fewer, or to a fraction such as 0.05"
            )
        return super().create_scheduler(num_training_steps, optimizer)

    # The step

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Returns the loss of a batch, after its backward pass."""
        self._training_log.start()
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Returns this process's share of the loss: the mean over processes is the loss of the global batch.

        Args:
            model: the model, wrapped or not.
            inputs: a batch; see the class.
            return_outputs: also return the model's output: embeddings and scale.
            num_items_in_batch: not needed.

        Raises:
            FloatingPointError: the loss is infinite or not a number.
        """
        self._tower_locks.set_modes()
        outputs = self._embed(model, self._resolution.resized(inputs))
        image_embeds, text_embeds = self._tower_locks.hold(outputs.image_embeds, outputs.text_embeds)
        # The mean of equal numbers, for the sake of its gradient: that of the global loss on every process. At the
        # scale's bound the model lets it through or not, which no process must decide on a share of it.
        scale = all_gather(outputs.scale).mean()
        text_config = self.model.config.text_config
        groups = group_by_text(inputs["input_ids"], text_config) if self.args.exclude_duplicate_texts else None
        loss = clip_loss(image_embeds, text_embeds, scale, self.args.loss_tile_size, groups)
        if not loss.isfinite():
            samples = name_non_finite_samples(outputs.image_embeds, outputs.text_embeds, inputs.get(SAMPLE_IDS))
            self._stop_run(f"the loss is {loss.item()}", samples)
        self._training_log.record(outputs.image_embeds, outputs.text_embeds, outputs.scale)
        return (loss, outputs) if return_outputs else loss

    def _embed(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        model_inputs = {key: value for key, value in inputs.items() if key not in (SAMPLE_IDS, NUM_TEXTS)}
        return model(**model_inputs, chunk_sizes=self.args.chunk_sizes, return_dict=True)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        """Returns autocast for FSDP2 with `bf16`, whose parameters accelerate would cast; it covers other engines."""
        if self.is_fsdp_enabled and self.args.bf16:
            # A cache of cast weights would hold the whole model that FSDP divides.
            return torch.autocast(self.args.device.type, torch.bfloat16, cache_enabled=False)
        return nullcontext()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # Under fp16, gradients overflow now and then, and the loss scaler leaves the step out.
        if not self.args.fp16 and not math.isfinite(grad_norm):
            self._stop_run(f"the gradient norm is {float(grad_norm)}", "The loss was finite")
        return grad_norm

    def _stop_run(self, what: str, detail: str) -> None:
        checkpoint = get_last_checkpoint(self.args.output_dir)
        resort = f"The last good checkpoint is {checkpoint}" if checkpoint else "There is no checkpoint yet"
        raise FloatingPointError(f"In step {self.state.global_step + 1} {what}. {detail}. {resort}")

    # Evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns the metrics of the evaluation set, as `Trainer.evaluate` does."""
        with self._training_log.paused():
            return super().evaluate(*args, **kwargs)

    def evaluate_also(self, zero_shot: "ZeroShotEvaluation") -> None:
        """Adds zero-shot classification to each evaluation, of the trainer's several sets to that of the first.

        Its metrics begin with `eval_zero_shot_`.

        Args:
            zero_shot: what is classified.

        Raises:
            ValueError: an engine leaves no process the whole model.
        """
        combinations.require_whole_model(self.args)
        self._zero_shot = zero_shot

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Returns what the evaluation of a set found, and with it what classification found."""
        # Every process has the running statistics of its own images, and rank 0's are the ones that are saved.
        for buffer in self.model.buffers():
            buffer.copy_(broadcast(buffer.to(self.args.device)))
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # Of several sets, the first brings it.
        first = f"eval_{next(iter(self.eval_dataset), None)}" if isinstance(self.eval_dataset, dict) else "eval"
        if self._zero_shot is not None and metric_key_prefix in ("eval", first):
            metrics = self._zero_shot(self.model.eval())
            output.metrics.update({f"eval_zero_shot_{name}": value for name, value in metrics.items()})
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Returns the predictions of `evaluate_retrieval` for a batch, and what transformers takes for labels.

        Args:
            model: the model, wrapped or not.
            inputs: a batch; see the class.
            prediction_loss_only: not needed, since a batch has no loss of its own.
            ignore_keys: not needed.
        """
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self._embed(model, self._evened(self._prepare_inputs(inputs)))
        images, device = outputs.image_embeds, self.args.device
        num_texts = inputs.get(NUM_TEXTS, torch.ones(len(images), dtype=torch.long)).to(device)
        texts = outputs.text_embeds[: len(inputs["input_ids"])].split(num_texts.tolist())
        texts = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        labels = torch.arange(len(images), device=device)  # without them, transformers computes no metrics
        return None, (images, texts, num_texts, outputs.scale.expand(len(images))), labels

    def _evened(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns a batch with texts repeated until all processes have as many, where a model is in parts.

        Processes bring the parts together for each chunk, all at once: none may have fewer chunks than another.
        """
        if not divides_parameters(self.args):
            return inputs
        texts = inputs["input_ids"]
        most = int(all_gather(torch.tensor([len(texts)], device=texts.device)).max())
        return inputs | {"input_ids": texts[torch.arange(most, device=texts.device) % len(texts)]}

    # Logs and files

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs; a training log also has scale, retrieval in the batch and pairs per second (`TrainingLog.report`)."""
        if "loss" in logs:
            logs = logs | self._training_log.report()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns 0: transformers' estimate, text tokens times parameters, means nothing for two towers."""
        return 0

    def _init_training_state(
        self, max_steps: int, num_steps_per_epoch: int, num_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        self._weight_average.begin(self.args, checkpoint)
        return super()._init_training_state(max_steps, num_steps_per_epoch, num_epochs, checkpoint, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        folder = self._weight_average.save(output_dir or self.args.output_dir)
        if folder is not None and self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
