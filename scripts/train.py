"""Trains CLIP: a released architecture from the beginning, or a checkpoint further, on one processor or many GPUs.

python scripts/train.py scripts/recipes/shapes.yaml
torchrun --nproc_per_node 8 scripts/train.py recipe.yaml --bf16 --per_device_train_batch_size 4096
deepspeed scripts/train.py recipe.yaml --deepspeed scripts/deepspeed/zero2.json
"""

import json

from torch.distributed.elastic.multiprocessing.errors import record
from transformers import set_seed

from clip_hf.data.collator import ImageTextCollator, ImageTextPairs
from clip_hf.data.data_args import DataArguments
from clip_hf.data.dry_run import dry_run
from clip_hf.distributed import gather_lists
from clip_hf.training import ClipTrainer, ClipTrainingArguments
from clip_hf.training.combinations import check_command
from clip_hf.training.initial_weights import whole_on_every_process
from clip_hf.training.lora import Adapter
from clip_hf.training.mistakes import told_in_a_line
from clip_hf.training.model_args import ModelArguments, build_model
from clip_hf.training.recipe import parse_recipe
from clip_hf.training.zero_shot import ZeroShotArguments


@record
def main(args: list[str] | None = None) -> None:
    """Trains, and saves model, processor, results.json and curves.png."""
    options = (ModelArguments, DataArguments, ZeroShotArguments, ClipTrainingArguments)
    with told_in_a_line(ValueError, OSError):
        model_args, data_args, zero_shot_args, training_args = parse_recipe(options, __doc__, args)
        check_command(model_args, data_args, zero_shot_args, training_args)
        is_dry_run = data_args.dry_run_data is not None
        set_seed(training_args.seed)
        num_workers = training_args.dataloader_num_workers
        eval_source = data_args.open_evaluation_source(training_args.eval_strategy.value)
        sources = data_args.open_training_sources()
        with whole_on_every_process(training_args):
            model, processor = build_model(model_args, sources, training_args, is_dry_run)
        seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
        pairs = data_args.training_pairs(sources, processor, seed, training_args.output_dir)
        if is_dry_run:
            what = data_args.dry_run_data, training_args.output_dir, training_args.train_batch_size, num_workers
            return print(json.dumps(dry_run(pairs, *what), indent=2))
        eval_pairs = eval_source and ImageTextPairs(eval_source, processor, "evaluation")
        if eval_pairs and training_args.eval_strategy != "no":
            eval_pairs.check(training_args.process_index, training_args.world_size, num_workers, gather_lists)
        adapter = Adapter(model, model_args.lora_rank, training_args) if model_args.lora_rank is not None else None
        trainer = ClipTrainer(model, training_args, ImageTextCollator(processor), pairs, eval_pairs, processor)
        trainer.results.add_options(
            model_arguments=model_args, data_arguments=data_args, zero_shot_arguments=zero_shot_args
        )
        what = processor, training_args.eval_batch_size, num_workers, data_args.image_column
        if (zero_shot := zero_shot_args.open(*what)) is not None:
            trainer.evaluate_also(zero_shot)
    with told_in_a_line():
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        if adapter is not None:
            adapter.save_and_merge(training_args.output_dir, training_args.should_save)
        trainer.save_model()
        trainer.end()


if __name__ == "__main__":
    main()
