"""Times one picture against many labels: our zero-shot pipeline, and transformers' stock one on the same model.

    python scripts/benchmarks/zero_shot_pipeline.py --architecture RN50 --num_labels 1000

The two take turns. Each turn begins with a call whose labels are new to the pipeline, and goes on with calls that
repeat them; medians are reported. Weights and labels are random, which changes no time.
"""

import json
import os
import platform
import random
import statistics
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import Pipeline, ZeroShotImageClassificationPipeline, pipeline

from clip_hf import ClipHfConfig, ClipHfModel
from clip_hf.model.architectures_clip_hf import ARCHITECTURES
from clip_hf.model.image_processing_clip_hf import ClipHfImageProcessor
from clip_hf.model.tokenization_clip_hf import ClipHfTokenizer
from clip_hf.model.zero_shot_pipeline_clip_hf import TASK, ClipHfZeroShotPipeline

RESULTS = Path(__file__).parent / "results" / "zero_shot_pipeline.json"
TEMPLATE = "This is a photo of {}."


def random_labels(number: int) -> list[str]:
    """Returns different labels of one to three words, of two or three syllables each."""
    generator = random.Random(0)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    labels: dict[str, None] = {}
    while len(labels) < number:
        words = [
            "".join(generator.choices(syllables, k=generator.randint(2, 3))) for _ in range(generator.randint(1, 3))
        ]
        labels[" ".join(words)] = None
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


def seconds_of(pipe: Pipeline, picture: Image.Image, labels: list[str]) -> float:
    """Returns the time of one call; its answer is on the CPU when it returns."""
    start = time.perf_counter()
    pipe(picture, candidate_labels=labels, hypothesis_template=TEMPLATE)
    return time.perf_counter() - start


def largest_difference(ours: Pipeline, stock: Pipeline, picture: Image.Image, labels: list[str]) -> float:
    """Returns how far the two scores of a label are apart at most; also the warm-up."""
    answers = [pipe(picture, candidate_labels=labels, hypothesis_template=TEMPLATE) for pipe in (ours, stock)]
    first, second = ({one["label"]: one["score"] for one in answer} for answer in answers)
    return max(abs(first[label] - second[label]) for label in labels)


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default="ViT-B/32", help="the model's")
    parser.add_argument("--num_labels", type=int, default=1000, help="labels that the picture is set against")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each pipeline")
    parser.add_argument("--next_calls", type=int, default=2, help="calls after the first one of a turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    parser.add_argument("--device", default="cpu", help="where the model runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    labels = random_labels(args.num_labels)
    ours, stock = build_pipelines(args.architecture, labels, args.device)
    picture = Image.effect_noise((640, 480), 100).convert("RGB")
    encoded = ours.tokenizer([TEMPLATE.format(label) for label in labels])
    difference = largest_difference(ours, stock, picture, labels)
    times: dict[str, list[float]] = {f"{name} {call}": [] for name in ("ours", "stock") for call in ("first", "next")}
    for _ in range(args.repeats):
        ours.forget_labels()
        for name, pipe in (("ours", ours), ("stock", stock)):
            times[f"{name} first"].append(seconds_of(pipe, picture, labels))
            times[f"{name} next"] += [seconds_of(pipe, picture, labels) for _ in range(args.next_calls)]
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}

    print(f"{'':10}{'first call':>14}{'next calls':>14}  (seconds, {args.num_labels} labels, {args.architecture})")
    for name in ("ours", "stock"):
        print(f"{name:10}{medians[f'{name} first']:14.4f}{medians[f'{name} next']:14.4f}")
    ratios = {call: medians[f"stock {call}"] / medians[f"ours {call}"] for call in ("first", "next")}
    print(f"{'stock/ours':10}{ratios['first']:14.2f}{ratios['next']:14.1f}")
    report = {
        "date": date.today().isoformat(),
        "hardware": {"processor": platform.processor() or platform.machine(), "cpu_count": os.cpu_count()},
        "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "threads": args.threads,
        "architecture": args.architecture,
        "num_labels": args.num_labels,
        "mean_tokens_per_label": round(statistics.mean(map(len, encoded["input_ids"])), 2),
        "median_seconds": {name: round(seconds, 5) for name, seconds in medians.items()},
        "all_seconds": {name: [round(one, 5) for one in seconds] for name, seconds in times.items()},
        "times_faster": {call: round(ratio, 2) for call, ratio in ratios.items()},
        "largest_score_difference": difference,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"saved to {args.output}")


if __name__ == "__main__":
    main()
