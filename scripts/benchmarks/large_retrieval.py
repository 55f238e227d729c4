"""Ranks random texts and images in both directions, and reports time and memory above the features.

Noise of unit length has the recall of chance, which the figures must show. Linux and macOS.

    python scripts/benchmarks/large_retrieval.py --num_images 100000 --num_texts 500000
"""

import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from measuring.memory import peak_megabytes
from measuring.reports import RESULTS, save
from measuring.rounds import compare

from clip_hf.evaluation.retrieval import TILE_SIZE, rank_matches, retrieval_metrics


def noise(number: int, width: int) -> torch.Tensor:
    """Returns (number, width) random vectors of unit length, made in place."""
    vectors = torch.randn(number, width)
    for some in vectors.split(TILE_SIZE):
        some /= torch.linalg.vector_norm(some, dim=1, keepdim=True)
    return vectors


def floor_seconds(num_images: int, num_texts: int, width: int) -> float:
    """Returns the time of the similarities alone, from one tile of them, the best of several."""
    images, texts = noise(TILE_SIZE, width), noise(TILE_SIZE, width)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        torch.matmul(images, texts.T)
        seconds.append(time.perf_counter() - start)
    return min(seconds) * num_images * num_texts / TILE_SIZE**2


def measure(args: Namespace) -> dict[str, Any]:
    """Returns one case: the ranks of all texts and images."""
    torch.manual_seed(0)
    floor = floor_seconds(args.num_images, args.num_texts, args.width)
    images, texts = noise(args.num_images, args.width), noise(args.num_texts, args.width)
    image_of_text = torch.arange(args.num_texts) % args.num_images
    before, start = peak_megabytes(), time.perf_counter()
    metrics = retrieval_metrics(*rank_matches(images, texts, image_of_text))
    seconds = time.perf_counter() - start
    return compare(
        f"{args.num_images:,} images, {args.num_texts:,} texts, width {args.width}",
        {"clip_hf": [seconds], "floor": [floor]},
        args.num_texts,
        floor="the similarities alone, by torch.matmul",
        megabytes_above_features=round(peak_megabytes() - before),
        most_megabytes=1000,
        metrics=metrics,
        chance_of_image_recall_at_10=10 / args.num_images,
    )


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num_images", type=int, default=100_000, help="images")
    parser.add_argument("--num_texts", type=int, default=500_000, help="texts, shared evenly among the images")
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    parser.add_argument("--output", type=Path, default=RESULTS / "large_retrieval.json", help="JSON file to write")
    args = parser.parse_args()
    case = measure(args)
    save(args.output, "Retrieval", "texts", args, [case])
    print(f"{case['seconds']['clip_hf'][0]:,.0f} seconds, {case['megabytes_above_features']:,} MB above the features")


if __name__ == "__main__":
    main()
