"""Trains CLIP: a released architecture from the beginning, or a checkpoint further, on one processor or many GPUs.

python scripts/train.py scripts/recipes/shapes.yaml
torchrun --nproc_per_node 8 scripts/train.py recipe.yaml --bf16 --per_device_train_batch_size 4096
deepspeed scripts/train.py recipe.yaml --deepspeed scripts/deepspeed/zero2.json
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record
from transformers import set_seed

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTokenizer
from clip_hf.data.collator import ImageTextCollator, ImageTextPairs
from clip_hf.data.data_args import DataArguments
from clip_hf.data.dry_run import dry_run
from clip_hf.data.samples import Samples, captions_for_tokenizer
from clip_hf.training import ClipTrainer, ClipTrainingArguments
from clip_hf.training.initial_weights import whole_on_every_process
from clip_hf.training.recipe import parse_recipe


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


def build_tokenizer(
    args: ModelArguments, context_length: int, sources: list[Samples], training_args: ClipTrainingArguments
) -> ClipHfTokenizer:
    """Returns the tokenizer, loaded or, by one process for all, trained; a resumed run has that of its beginning."""
    if args.tokenizer is not None:
        return ClipHfTokenizer.from_pretrained(args.tokenizer)
    folder = Path(training_args.output_dir, "tokenizer")
    with training_args.main_process_first(local=False):
        is_there = training_args.resume_from_checkpoint is not None and folder.is_dir()
        if training_args.process_index == 0 and not is_there:
            captions = captions_for_tokenizer(sources)
            ClipHfTokenizer.train(captions, args.vocab_size, context_length).save_pretrained(folder)
        return ClipHfTokenizer.from_pretrained(folder)


def build(
    args: ModelArguments, sources: list[Samples], training_args: ClipTrainingArguments
) -> tuple[ClipHfModel, ClipHfProcessor]:
    """Returns the model and its processor, opened or new."""
    changes = json.loads(args.config) if isinstance(args.config, str) else args.config or {}
    if args.image_size is not None:
        changes["vision_config"] = changes.get("vision_config", {}) | {"image_size": args.image_size}
    if args.model is not None:
        size = {} if args.image_size is None else {"size": args.image_size, "crop_size": args.image_size}
        image_processor = ClipHfImageProcessor.from_pretrained(args.model, **size)
        tokenizer = ClipHfTokenizer.from_pretrained(args.tokenizer or args.model)
        return ClipHfModel.from_pretrained(args.model, **changes), ClipHfProcessor(image_processor, tokenizer)
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


@record
def main(args: list[str] | None = None) -> None:
    """Trains, and saves model, processor, results.json and curves.png."""
    parsed = parse_recipe((ModelArguments, DataArguments, ClipTrainingArguments), __doc__, args)
    model_args, data_args, training_args = parsed
    set_seed(training_args.seed)
    eval_source = data_args.open_evaluation_source(training_args.eval_strategy.value)
    sources = data_args.open_training_sources()
    with whole_on_every_process(training_args):
        model, processor = build(model_args, sources, training_args)
    pairs = data_args.training_pairs(sources, processor, training_args.seed, training_args.output_dir)
    if data_args.dry_run_data is not None:
        options = {"batch_size": training_args.train_batch_size, "num_workers": training_args.dataloader_num_workers}
        return print(json.dumps(dry_run(pairs, data_args.dry_run_data, training_args.output_dir, **options), indent=2))
    eval_pairs = eval_source and ImageTextPairs(eval_source, processor, "evaluation")
    trainer = ClipTrainer(model, training_args, ImageTextCollator(processor), pairs, eval_pairs, processor)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.end()


if __name__ == "__main__":
    main()
