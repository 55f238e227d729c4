"""Which model is trained, as options of a command."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from clip_hf.data.samples import Samples, captions_for_tokenizer
from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.configuration_clip_hf_towers import ClipHfTextConfig
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessor
from clip_hf.model.modeling_clip_hf import ClipHfModel
from clip_hf.model.normalization_clip_hf import require_same_normalization
from clip_hf.model.processing_clip_hf import ClipHfProcessor
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer
from clip_hf.training.checkpoints import UNFINISHED, checkpoint_to_resume, publish, settle
from clip_hf.training.training_args import ClipTrainingArguments

logger = logging.get_logger(__name__)

ARCHITECTURE = "ViT-B/32"
VOCAB_SIZE = 49_408


@dataclass
class ModelArguments:
    """Which model: `model`, or the others.

    Raises:
        ValueError: an option is no JSON, or would not be heeded beside the others.
    """

    model: str | None = field(default=None, metadata={"help": "Checkpoint to train further: a folder or a Hub name."})
    architecture: str | None = field(
        default=None, metadata={"help": f"Architecture to train from the beginning, by default {ARCHITECTURE}."}
    )
    config: dict | str | None = field(
        default=None, metadata={"help": "Fields of its ClipHfConfig to change, as JSON."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Side of the images in pixels, if another."})
    tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer's folder; by default, one is trained."})
    vocab_size: int | None = field(
        default=None, metadata={"help": f"Most entries of a tokenizer that is trained, by default {VOCAB_SIZE:,}."}
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Rank of an adapter that is trained in place of the weights of `model`."}
    )

    def __post_init__(self) -> None:
        """Reads JSON, and checks what can be known before a file is opened."""
        if self.lora_rank is not None and self.model is None:
            raise ValueError("lora_rank is for training a checkpoint further: name one with model")
        for name, others in {"architecture": ("model",), "vocab_size": ("model", "tokenizer")}.items():
            for other in others:
                if getattr(self, name) is not None and getattr(self, other) is not None:
                    raise ValueError(
                        f"{name} is {getattr(self, name)}, but that of {other} {getattr(self, other)} is taken: leave "
                        "one of the two out"
                    )
        if isinstance(self.config, str):
            try:
                self.config = dict(json.loads(self.config))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"""config is '{self.config}', but must be JSON such as '{{"projection_dim": 512}}': {error}"""
                ) from error
        for name in ("text_config", "vision_config"):
            fields = (self.config or {}).get(name, {})
            if not isinstance(fields, dict):
                raise ValueError(
                    f"""config has {name} {fields}, but must map its fields to values, such as {{"{name}": """
                    """{"num_hidden_layers": 6}}"""
                )

    @property
    def changes(self) -> dict[str, Any]:
        """Fields of the configuration that are to be others."""
        changes = dict(self.config) if isinstance(self.config, dict) else {}
        if self.image_size is not None:
            changes["vision_config"] = changes.get("vision_config", {}) | {"image_size": self.image_size}
        return changes

    def build_config(self, **text_config: Any) -> ClipHfConfig:
        """Returns the configuration of the model: the checkpoint's or the architecture's, with what is changed.

        Args:
            text_config: fields of the text tower to change as well.
        """
        changes = self.changes
        if text_config:
            changes["text_config"] = changes.get("text_config", {}) | text_config
        if self.model is not None:
            return ClipHfConfig.from_pretrained(self.model, **changes)
        return ClipHfConfig.from_architecture(self.architecture or ARCHITECTURE, **changes)


def build_tokenizer(
    args: ModelArguments,
    context_length: int,
    sources: list[Samples],
    training_args: ClipTrainingArguments,
    is_dry_run: bool = False,
) -> ClipHfTokenizer:
    """Returns the tokenizer, loaded or, by one process for all, trained; a resumed run has that of its checkpoint.

    Args:
        args: which.
        context_length: of a new one, in tokens.
        sources: whose captions a new one learns from.
        training_args: of the run.
        is_dry_run: leave the output folder as it is; each process then trains a new one for itself.

    Raises:
        ValueError: the checkpoint to resume is not there.
    """
    if args.tokenizer is not None:
        return ClipHfTokenizer.from_pretrained(args.tokenizer)
    output_dir = Path(training_args.output_dir)
    unfinished = output_dir / UNFINISHED / "tokenizer"
    with training_args.main_process_first(local=False):
        is_writer = training_args.process_index == 0 and not is_dry_run
        if is_writer:
            settle(output_dir)
        checkpoint = checkpoint_to_resume(training_args.resume_from_checkpoint, output_dir)
        if checkpoint is not None:
            return ClipHfTokenizer.from_pretrained(checkpoint)
        if is_dry_run:
            return _train_tokenizer(args, context_length, sources)
        if is_writer:
            _train_tokenizer(args, context_length, sources).save_pretrained(unfinished)
            publish(unfinished, output_dir)
        return ClipHfTokenizer.from_pretrained(output_dir / unfinished.name)


def _train_tokenizer(args: ModelArguments, context_length: int, sources: list[Samples]) -> ClipHfTokenizer:
    return ClipHfTokenizer.train(captions_for_tokenizer(sources), args.vocab_size or VOCAB_SIZE, context_length)


def _check_tokenizer(args: ModelArguments, tokenizer: ClipHfTokenizer, config: ClipHfTextConfig) -> None:
    """Checks that a text tower can read what another tokenizer than its own writes."""
    limits = {
        "tokens": (len(tokenizer), config.vocab_size),
        "positions": (tokenizer.model_max_length, config.max_position_embeddings),
    }
    for what, (found, most) in limits.items():
        if found > most:
            raise ValueError(
                f"tokenizer {args.tokenizer} has {found:,} {what}, but model {args.model} only {most:,}: leave the "
                "tokenizer out, or train a new model for it"
            )
    if tokenizer.eos_token_id != config.eos_token_id:
        raise ValueError(
            f"tokenizer {args.tokenizer} ends texts with the id {tokenizer.eos_token_id}, but {args.model} looks "
            f"for {config.eos_token_id}: leave the tokenizer out, or train a new model for it"
        )
    try:
        own = ClipHfTokenizer.from_pretrained(str(args.model)).get_vocab()
    except (OSError, ValueError):  # the checkpoint brings none
        return
    if own != tokenizer.get_vocab():
        logger.warning(
            f"tokenizer {args.tokenizer} has another vocabulary than that of model {args.model}, whose embeddings of "
            "tokens then mean others: leave the tokenizer out unless that is intended"
        )


def build_model(
    args: ModelArguments, sources: list[Samples], training_args: ClipTrainingArguments, is_dry_run: bool = False
) -> tuple[ClipHfModel, ClipHfProcessor]:
    """Returns the model and its processor, opened or new.

    Args:
        args: which.
        sources: whose captions a new tokenizer learns from.
        training_args: of the run, which a resumed one continues with its own tokenizer.
        is_dry_run: leave the output folder as it is.

    Raises:
        ValueError: the model cannot read what the tokenizer writes, or there is no checkpoint to resume.
    """
    if args.model is not None:
        size: dict[str, Any] = (
            {} if args.image_size is None else {"size": args.image_size, "crop_size": args.image_size}
        )
        image_processor = ClipHfImageProcessor.from_pretrained(args.model, **size)
        tokenizer = ClipHfTokenizer.from_pretrained(args.tokenizer or args.model)
        # Released checkpoints are in float16, in which Adam's averages vanish.
        model: ClipHfModel = ClipHfModel.from_pretrained(  # type: ignore[assignment]
            args.model, dtype=torch.float32, **args.changes
        )
        if args.tokenizer is not None:
            _check_tokenizer(args, tokenizer, model.config.text_config)
        require_same_normalization(model.config.vision_config, image_processor)
        return model, ClipHfProcessor(image_processor, tokenizer)
    context_length = args.build_config().text_config.max_position_embeddings
    tokenizer = build_tokenizer(args, context_length, sources, training_args, is_dry_run)
    config = args.build_config(vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length)
    vision = config.vision_config
    image_processor = ClipHfImageProcessor(
        size=vision.image_size, crop_size=vision.image_size, image_mean=vision.image_mean, image_std=vision.image_std
    )
    return ClipHfModel(config), ClipHfProcessor(image_processor, tokenizer)
