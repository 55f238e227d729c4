"""Times one image against many labels: our zero-shot pipeline, and transformers' stock one on the same model.

    python scripts/benchmarks/zero_shot_pipeline.py --architecture RN50 --num_labels 1000

A first call meets labels that are new to our pipeline, a later one labels that it has seen; to the stock one, all
calls are alike. Weights and labels are random, which changes no time.
"""

import random
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from measuring.reports import RESULTS, save
from measuring.rounds import compare, take_turns
from PIL import Image
from transformers import Pipeline, ZeroShotImageClassificationPipeline, pipeline

from clip_hf import ClipHfConfig, ClipHfImageProcessor, ClipHfModel, ClipHfTokenizer, ClipHfZeroShotPipeline
from clip_hf.model.architectures_clip_hf import ARCHITECTURES
from clip_hf.model.zero_shot_pipeline_clip_hf import TASK

TEMPLATE = "This is a photo of {}."


def random_labels(number: int) -> list[str]:
    """Returns different labels of one to three words, of two or three syllables each."""
    generator = random.Random(0)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    labels: dict[str, None] = {}
    while len(labels) < number:
        lengths = [generator.randint(2, 3) for _ in range(generator.randint(1, 3))]
        labels[" ".join("".join(generator.choices(syllables, k=length)) for length in lengths)] = None
    return list(labels)


def build_pipelines(architecture: str, labels: list[str], device: str) -> tuple[Pipeline, Pipeline]:
    """Returns our pipeline and the stock one, around one model of random weights."""
    tokenizer = ClipHfTokenizer.train([TEMPLATE.format(label) for label in labels], vocab_size=2000)
    torch.manual_seed(0)
    config = ClipHfConfig.from_architecture(architecture, text_config={"vocab_size": len(tokenizer)})
    size = config.vision_config.image_size
    parts: dict[str, Any] = {
        "model": ClipHfModel(config).eval(),
        "tokenizer": tokenizer,
        "image_processor": ClipHfImageProcessor(size=size, crop_size=size),
        "device": device,
    }
    classes = (ClipHfZeroShotPipeline, ZeroShotImageClassificationPipeline)
    ours, stock = (pipeline(TASK, pipeline_class=one, **parts) for one in classes)
    return ours, stock


def measure(args: Namespace) -> list[dict[str, Any]]:
    """Returns two cases: calls with new labels, and with labels seen before."""
    labels = random_labels(args.num_labels)
    ours, stock = build_pipelines(args.architecture, labels, args.device)
    image = Image.effect_noise((640, 480), 100).convert("RGB")

    def call(pipe: Pipeline) -> dict[str, float]:
        answer = pipe(image, candidate_labels=labels, hypothesis_template=TEMPLATE)
        return {one["label"]: one["score"] for one in answer}  # on the CPU, so all is done

    def first_call() -> None:
        ours.forget_labels()
        call(ours)

    scores, expected = call(ours), call(stock)
    difference = max(abs(scores[label] - expected[label]) for label in labels)
    ways = {"clip_hf, first call": first_call, "clip_hf": lambda: call(ours), "transformers": lambda: call(stock)}
    seconds = take_turns(ways, args.repeats, args.architecture)
    first = {"clip_hf": seconds.pop("clip_hf, first call"), "transformers": seconds["transformers"]}
    title = f"one image, {len(labels):,} labels, {args.architecture}"
    facts = {"largest_difference_of_scores": difference}
    return [
        compare(f"{title}, first call", first, 1, target=1.0, **facts),
        compare(f"{title}, later calls", seconds, 1, target=100.0 if args.device == "cpu" else 20.0, **facts),
    ]


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default="ViT-B/32", help="the model's")
    parser.add_argument("--num_labels", type=int, default=1000, help="labels that the image is set against")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each pipeline")
    parser.add_argument("--device", default="cpu", help="where the model runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "zero_shot_pipeline.json", help="JSON file to write")
    args = parser.parse_args()
    save(args.output, "Zero-shot pipeline", "images", args, measure(args))


if __name__ == "__main__":
    main()
