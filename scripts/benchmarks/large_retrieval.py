"""Ranks random texts and images in both directions, and reports time and memory above the features.

Noise of unit length has the recall of chance, which the figures must show. Linux and macOS.

    python scripts/benchmarks/large_retrieval.py --num_images 40000 --num_texts 200000
"""

import time
from argparse import Namespace
from typing import Any

import torch
from measuring.floors import Floor
from measuring.memory import forget_peak, peak_megabytes
from measuring.options import make_parser
from measuring.reports import save
from measuring.rounds import compare

from clip_hf.evaluation.retrieval import TILE_SIZE, rank_matches, retrieval_metrics


def noise(number: int, width: int) -> torch.Tensor:
    """Returns (number, width) random vectors of unit length, made in place."""
    vectors = torch.randn(number, width)
    for some in vectors.split(TILE_SIZE):
        some /= torch.linalg.vector_norm(some, dim=1, keepdim=True)
    return vectors


def measure(args: Namespace) -> dict[str, Any]:
    """Returns one case: the ranks of all texts and images."""
    torch.manual_seed(0)
    floor = Floor({(1, TILE_SIZE, args.width, TILE_SIZE): args.num_images * args.num_texts / TILE_SIZE**2})
    floor()
    images, texts = noise(args.num_images, args.width), noise(args.num_texts, args.width)
    image_of_text = torch.arange(args.num_texts) % args.num_images
    before, start = forget_peak(), time.perf_counter()
    metrics = retrieval_metrics(*rank_matches(images, texts, image_of_text))
    seconds, megabytes = time.perf_counter() - start, peak_megabytes() - before
    return compare(
        f"{args.num_images:,} images, {args.num_texts:,} texts, width {args.width}",
        {"clip_hf": [seconds], "floor": [floor.seconds]},
        args.num_texts,
        floor=f"the similarities alone: {floor}",
        note=f"; {megabytes:,.0f} MB above the features",
        megabytes_above_features=megabytes,
        most_megabytes=1000,
        metrics=metrics,
        chance_of_image_recall_at_10=10 / args.num_images,
    )


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--num_images", type=int, default=100_000, help="images")
    parser.add_argument("--num_texts", type=int, default=500_000, help="texts, shared evenly among the images")
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    args = parser.parse_args()
    save("Retrieval", "texts", args, [measure(args)])


if __name__ == "__main__":
    main()
