"""Times the contrastive loss forward and backward, and its memory: ours, in tiles where it chooses so, and OpenCLIP's.

Each way runs in fresh processes, in turns. Its memory is what the process grew by, above the embeddings and including
their gradients. The floor is the time that torch.matmul takes, beside each loss, for the 8 x num_pairs^2 x width flops
of the tiled loss; the plain one has 6. Linux and macOS.
"""

import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring.memory import in_fresh_process, peak_megabytes
from measuring.reports import RESULTS, save
from measuring.rounds import compare
from tqdm import tqdm

from clip_hf.losses import clip_loss

SCALE = torch.tensor(50.0)


def matmul_gflops(width: int) -> float:
    """The best rate, in 10^9 flops per second, of 20 products of (1024, width) and (width, 1024)."""
    left, right = torch.randn(1024, width), torch.randn(width, 1024)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        torch.matmul(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**2 * width / min(seconds) / 1e9


def find_loss(way: str) -> Callable[..., Any]:
    """Returns the loss of two matrices of embeddings and the scale."""
    if way == "clip_hf":
        return clip_loss
    from open_clip import ClipLoss

    return ClipLoss()


def measure(way: str, num_pairs: int, width: int) -> dict[str, float]:
    """Time, memory and floor of a loss and its three gradients."""
    torch.manual_seed(0)
    images, texts = torch.randn(num_pairs, width), torch.randn(num_pairs, width)
    texts.add_(images, alpha=0.3)  # matching pairs have a cosine of about 0.3
    inputs = [part.requires_grad_() for part in (F.normalize(images, out=images), F.normalize(texts, out=texts))]
    loss, scale = find_loss(way), SCALE.clone().requires_grad_()
    for some in (64, 1500):  # loads the kernels of either form
        loss(*torch.randn(2, some, width, requires_grad=True), scale).backward()
    before, first_rate = peak_megabytes(), matmul_gflops(width)
    start = time.perf_counter()
    loss(*inputs, scale).backward()
    seconds, rate = time.perf_counter() - start, max(first_rate, matmul_gflops(width))
    return {"seconds": seconds, "megabytes": peak_megabytes() - before, "floor": 8 * num_pairs**2 * width / rate / 1e9}


def compare_losses(num_pairs: int, args: Namespace) -> dict[str, Any]:
    """Returns one case: the losses of one number of pairs."""
    ways = ["clip_hf", *(["open_clip"] if args.open_clip and num_pairs <= args.max_open_clip_pairs else [])]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for way in tqdm(ways * args.repeats, desc=f"{num_pairs} pairs", leave=False):
        runs[way].append(in_fresh_process(measure, way, num_pairs, args.width))
    seconds = {way: [run["seconds"] for run in runs[way]] for way in ways}
    seconds["floor"] = [run["floor"] for run in runs["clip_hf"]]
    memory = {way: round(max(run["megabytes"] for run in runs[way])) for way in ways}
    floor = "8 x num_pairs^2 x width flops by torch.matmul"
    return compare(
        f"{num_pairs:,} pairs", seconds, num_pairs, target=1.0, floor=floor, peak_megabytes_above_inputs=memory
    )


def main() -> None:
    """Measures each number of pairs in each way, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num_pairs", type=int, nargs="+", default=[4096, 8192, 16384, 32768], help="in the batch")
    parser.add_argument("--width", type=int, default=512, help="width of the joint embedding space")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way")
    parser.add_argument("--max_open_clip_pairs", type=int, default=16384, help="32,768 would take 16 GB")
    parser.add_argument("--no_open_clip", dest="open_clip", action="store_false", help="measure ours alone")
    parser.add_argument("--output", type=Path, default=RESULTS / "contrastive_loss.json", help="JSON file to write")
    args = parser.parse_args()
    cases = [compare_losses(num_pairs, args) for num_pairs in args.num_pairs]
    save(args.output, "Contrastive loss", "pairs", args, cases)


if __name__ == "__main__":
    main()
