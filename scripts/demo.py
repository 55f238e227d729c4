"""Trains a small CLIP on images that it draws itself, and evaluates it on images of combinations it never saw."""

import argparse
import json
import runpy
import shlex
import sys
from pathlib import Path

from transformers import pipeline, set_seed

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfProcessor, ClipHfTokenizer
from clip_hf.data.collator import ImageTextCollator, ImageTextPairs
from clip_hf.data.shapes import CHANCE, COMBINATIONS, SEEN, UNSEEN, ZERO_SHOT_TEMPLATES, ShapesDataset, accuracy
from clip_hf.evaluation.figures import draw_named
from clip_hf.training import ClipTrainer, ClipTrainingArguments

CLASSES = {combination.name: combination for combination in COMBINATIONS}
BATCH_SIZE = 60  # divides the number of combinations in training: in the order drawn, no batch holds one twice
RECIPE = {"per_device_train_batch_size": BATCH_SIZE, "train_sampling_strategy": "sequential", "learning_rate": 3e-3}
RECIPE |= {"warmup_steps": 0.1, "dataloader_num_workers": 1, "dataloader_pin_memory": False}
RECIPE |= {"save_strategy": "no", "report_to": "none"}
USAGE = """
import clip_hf, transformers
classify = transformers.pipeline("zero-shot-image-classification", model="{folder}")
classify("{image}", candidate_labels=["red circle", "red heart", "blue circle"], hypothesis_template="a {{}}")
"""


def train(folder: Path, num_steps: int, seed: int) -> None:
    """Trains a ResNet and a text Transformer from random weights and saves them with their processor."""
    set_seed(seed)
    captions = [caption for combination in SEEN for caption in combination.captions]
    tokenizer = ClipHfTokenizer.train(captions, vocab_size=602, context_length=16)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 16, "vocab_size": len(tokenizer)}
    vision_config = {"model_type": "clip_hf_resnet", "image_size": 64, "width": 8, "depths": (1, 1, 1, 1)}
    model = ClipHfModel(ClipHfConfig(text_config=sizes, vision_config=vision_config, projection_dim=64))
    processor = ClipHfProcessor(ClipHfImageProcessor(size=64, crop_size=64), tokenizer)
    args = ClipTrainingArguments(
        str(folder), max_steps=num_steps, logging_steps=max(1, num_steps // 6), seed=seed, use_cpu=True, **RECIPE
    )
    drawn = ShapesDataset(SEEN, num_examples=num_steps * BATCH_SIZE, seed=seed)
    pairs = ImageTextPairs(drawn, processor, "training", seed)
    trainer = ClipTrainer(model, args, ImageTextCollator(processor), pairs, processing_class=processor)
    trainer.train()
    trainer.save_model()


def evaluate(folder: Path, shapes: ShapesDataset) -> None:
    """Runs the evaluation scripts on one image of each combination, and on the others."""
    shapes.write(once := folder / "images" / "one_of_each", range(len(UNSEEN)))
    shapes.write(rest := folder / "images" / "others", range(len(UNSEEN), len(shapes)))
    (templates := folder / "templates.txt").write_text("\n".join(ZERO_SHOT_TEMPLATES))
    common = ["--model", folder / "model", "--cache_dir", folder / "features", "--device", "cpu", "--num_workers", 0]
    for name, options in {
        "retrieval": ["--data", once],
        "zero_shot": ["--data", rest, "--templates", templates],
        "linear_probe": ["--data", rest, "--train_data", once, "--num_draws", 1],
    }.items():
        script, output_dir = Path(__file__).with_name(f"evaluate_{name}.py"), folder / "model" / "evaluations" / name
        sys.argv = [str(part) for part in (script, *common, *options, "--output_dir", output_dir)]
        print(f"\npython {shlex.join(sys.argv)}\n")
        runpy.run_path(sys.argv[0], run_name="__main__")  # in this process, which has torch imported


def main() -> None:
    """Trains, asks, reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"), help="folder of everything it makes")
    parser.add_argument("--num_steps", type=int, default=1600, help=f"training steps of {BATCH_SIZE} pairs")
    parser.add_argument("--num_images", type=int, default=480, help="images of unseen combinations to name")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of all images")
    args = parser.parse_args()
    folder = args.output_dir / "model"
    print(f"Training on {len(SEEN)} of {len(COMBINATIONS)} combinations; {len(UNSEEN)} are held out.")
    train(folder, args.num_steps, args.seed)

    classify = pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    shown = ShapesDataset(UNSEEN, num_examples=max(args.num_images, 2 * len(UNSEEN)), seed=args.seed + 1)
    images, truths = zip(*((shown[i]["image"], shown.combination(i)) for i in range(args.num_images)), strict=True)
    options = {"candidate_labels": list(CLASSES), "hypothesis_template": list(ZERO_SHOT_TEMPLATES), "batch_size": 60}
    answers = classify(list(images), **options)
    found = accuracy([[CLASSES[item["label"]] for item in answer] for answer in answers], truths)
    print(f"\n{len(images)} images of unseen combinations, named among all {len(CLASSES)}:\n")
    print(f"{'':10}{'correct':>9}{'chance':>9}")
    for name, share in found.items():
        print(f"{name:10}{share:>9.1%}{CHANCE[name]:>9.1%}")
    results = {"unseen": found, "chance": CHANCE, "num_images": len(images), "num_classes": len(CLASSES)}
    (args.output_dir / "results.json").write_text(json.dumps(results | vars(args), indent=2, default=str) + "\n")
    title = f"Combinations never seen in training, named among all {len(CLASSES)}"
    draw_named(args.output_dir / "demo.png", title, images[:15], answers, [truth.name for truth in truths])
    images[0].save(args.output_dir / "image.png")
    evaluate(args.output_dir, shown)
    print(f"\nImages with their answers: {args.output_dir / 'demo.png'}")
    print(f"The model: {folder}. Three lines that use it:")
    print(USAGE.format(folder=folder, image=args.output_dir / "image.png"))


if __name__ == "__main__":
    main()
