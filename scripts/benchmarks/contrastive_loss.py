"""Times the contrastive loss on a CPU, forward and backward: in tiles, and with the plain matrix where it fits.

Each way runs in a fresh process. Its time is the best of several, set beside the time that `torch.matmul` would take
for the 8 x num_pairs^2 x width flops of the tiled loss, at the best rate seen before and after the repeats. Its memory
is what the process grew by, above the embeddings and including their gradients. Linux and macOS.
"""

import json
import os
import platform
import resource
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F

from clip_hf.losses import clip_loss


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def matmul_gflops(width: int) -> float:
    """The best rate, in 10^9 flops per second, of 20 products of (1024, width) and (width, 1024)."""
    left, right = torch.randn(1024, width), torch.randn(width, 1024)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        torch.matmul(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**2 * width / min(seconds) / 1e9


def measure(num_pairs: int, width: int, tile_size: int, repeats: int) -> dict[str, object]:
    """Best time and peak memory of the loss and its three gradients."""
    torch.manual_seed(0)
    images, texts = torch.randn(num_pairs, width), torch.randn(num_pairs, width)
    texts.add_(images, alpha=0.3)  # matching pairs have a cosine of about 0.3
    parts = F.normalize(images, out=images), F.normalize(texts, out=texts), torch.tensor(50.0)
    inputs = [part.requires_grad_() for part in parts]
    clip_loss(*torch.randn(2, 64, width, requires_grad=True), torch.tensor(50.0), 32).backward()  # loads the kernels
    gflops, seconds, before = [matmul_gflops(width)], [], peak_megabytes()
    for _ in range(repeats):
        for part in inputs:
            part.grad = None
        start = time.perf_counter()
        clip_loss(*inputs, tile_size).backward()
        seconds.append(time.perf_counter() - start)
        gflops.append(matmul_gflops(width))
    floor = 8 * num_pairs**2 * width / max(gflops) / 1e9
    return {
        "seconds": round(min(seconds), 3),
        "matmul_floor_seconds": round(floor, 3),
        "times_matmul_floor": round(min(seconds) / floor, 3),
        "peak_megabytes_above_inputs": round(peak_megabytes() - before),
        "all_seconds": [round(one, 3) for one in seconds],
        "all_matmul_gflops": [round(one, 1) for one in gflops],
    }


def main() -> None:
    """Measures each batch size in each way, prints and saves the numbers."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num_pairs", type=int, nargs="+", default=[8192, 32768], help="pairs in the batch")
    parser.add_argument("--width", type=int, default=512, help="width of the joint embedding space")
    parser.add_argument("--tile_size", type=int, default=1024, help="side of a tile")
    parser.add_argument("--repeats", type=int, default=5, help="the best of so many is reported")
    parser.add_argument("--max_plain_pairs", type=int, default=8192, help="largest batch for the plain matrix")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "contrastive_loss.json")
    args = parser.parse_args()
    report = {
        "date": date.today().isoformat(),
        "hardware": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "load_average": os.getloadavg(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "width": args.width,
        "results": [],
    }
    for num_pairs in args.num_pairs:
        ways = {"tiled": args.tile_size} | ({"plain": num_pairs} if num_pairs <= args.max_plain_pairs else {})
        for way, tile_size in ways.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                measured = pool.submit(measure, num_pairs, args.width, tile_size, args.repeats).result()
            report["results"].append({"num_pairs": num_pairs, "way": way, "tile_size": tile_size, **measured})
            print(json.dumps(report["results"][-1]), flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
