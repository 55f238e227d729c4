"""Which model is trained, as options of a command."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from clip_hf.data.samples import Samples, captions_for_tokenizer
from clip_hf.model.configuration_clip_hf import ClipHfConfig
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessor
from clip_hf.model.modeling_clip_hf import ClipHfModel
from clip_hf.model.processing_clip_hf import ClipHfProcessor
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer
from clip_hf.training.checkpoints import UNFINISHED, is_resuming, publish, settle
from clip_hf.training.training_args import ClipTrainingArguments


@dataclass
class ModelArguments:
    """Which model: `model`, or the others."""

    model: str | None = field(default=None, metadata={"help": "Checkpoint to train further: a folder or a Hub name."})
    architecture: str = field(default="ViT-B/32", metadata={"help": "Architecture to train from the beginning."})
    config: dict | str | None = field(
        default=None, metadata={"help": "Fields of its ClipHfConfig to change, as JSON."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Side of the images in pixels, if another."})
    tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer's folder; by default, one is trained."})
    vocab_size: int = field(default=49_408, metadata={"help": "Most entries of a tokenizer that is trained."})
    lora_rank: int | None = field(
        default=None, metadata={"help": "Rank of an adapter that is trained in place of the weights of `model`."}
    )

    def __post_init__(self) -> None:
        """Raises ValueError for an adapter of weights that nobody has trained."""
        if self.lora_rank is not None and self.model is None:
            raise ValueError("lora_rank is for training a checkpoint further: name one with model")


def build_tokenizer(
    args: ModelArguments, context_length: int, sources: list[Samples], training_args: ClipTrainingArguments
) -> ClipHfTokenizer:
    """Returns the tokenizer, loaded or, by one process for all, trained; a resumed run has that of its beginning.

    Args:
        args: which.
        context_length: of a new one, in tokens.
        sources: whose captions a new one learns from.
        training_args: of the run.
    """
    if args.tokenizer is not None:
        return ClipHfTokenizer.from_pretrained(args.tokenizer)
    output_dir = Path(training_args.output_dir)
    folder = output_dir / "tokenizer"
    with training_args.main_process_first(local=False):
        if training_args.process_index == 0:
            settle(output_dir)
            if not (is_resuming(training_args.resume_from_checkpoint) and folder.is_dir()):
                tokenizer = ClipHfTokenizer.train(captions_for_tokenizer(sources), args.vocab_size, context_length)
                tokenizer.save_pretrained(output_dir / UNFINISHED / folder.name)
                publish(output_dir / UNFINISHED / folder.name, output_dir)
        return ClipHfTokenizer.from_pretrained(folder)


def build_model(
    args: ModelArguments, sources: list[Samples], training_args: ClipTrainingArguments
) -> tuple[ClipHfModel, ClipHfProcessor]:
    """Returns the model and its processor, opened or new.

    Args:
        args: which.
        sources: whose captions a new tokenizer learns from.
        training_args: of the run, which a resumed one continues with its own tokenizer.
    """
    changes = json.loads(args.config) if isinstance(args.config, str) else args.config or {}
    if args.image_size is not None:
        changes["vision_config"] = changes.get("vision_config", {}) | {"image_size": args.image_size}
    if args.model is not None:
        size = {} if args.image_size is None else {"size": args.image_size, "crop_size": args.image_size}
        image_processor = ClipHfImageProcessor.from_pretrained(args.model, **size)
        tokenizer = ClipHfTokenizer.from_pretrained(args.tokenizer or args.model)
        model: ClipHfModel = ClipHfModel.from_pretrained(args.model, **changes)  # type: ignore[assignment]
        return model, ClipHfProcessor(image_processor, tokenizer)
    text_config = ClipHfConfig.from_architecture(args.architecture, **changes).text_config
    tokenizer = build_tokenizer(args, text_config.max_position_embeddings, sources, training_args)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    text_config = changes.pop("text_config", {}) | sizes
    config = ClipHfConfig.from_architecture(args.architecture, text_config=text_config, **changes)
    vision = config.vision_config
    image_processor = ClipHfImageProcessor(
        size=vision.image_size, crop_size=vision.image_size, image_mean=vision.image_mean, image_std=vision.image_std
    )
    return ClipHfModel(config), ClipHfProcessor(image_processor, tokenizer)
