"""Times the contrastive loss forward and backward, and its memory: ours, in tiles where it chooses so, and OpenCLIP's.

OpenCLIP's as it comes and compiled; transformers' is the same computation as the former.

In turns, on a CPU each in a fresh process. The memory of a way is what the process, or the GPU, holds at most above
the embeddings and their gradients. The floor is the 8 x num_pairs^2 x width operations of the tiled loss, at the best
rate of torch.matmul in the same process; the plain one has 6. Linux, and with less certainty of memory macOS.

    python scripts/benchmarks/contrastive_loss.py --num_pairs 4096 8192
"""

import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measuring.floors import Floor
from measuring.memory import forget_peak, in_fresh_process, peak_megabytes
from measuring.options import add_device, make_parser
from measuring.reports import save
from measuring.rounds import compare, turns

from clip_hf.losses import clip_loss

WAYS = ("clip_hf", "open_clip", "open_clip compiled")
SCALE = torch.tensor(50.0)
BYTES_PER_LOGIT = 16  # of OpenCLIP's loss, as its memory grows
CAUSES = {
    "cpu": "Beside the products there are exponentials and sums.",
    "cuda": "Logits that are not held are computed twice, and of the milliseconds that few pairs take, starting "
    "kernels is a part.",
}
MOST_TIMES_PRODUCTS = 1.25  # the aim: of the time that the products alone take in the same process, best of several


def find_loss(way: str) -> Callable[..., Any]:
    """Returns the loss of two matrices of embeddings and the scale."""
    if way == "clip_hf":
        return clip_loss
    from open_clip import ClipLoss

    return torch.compile(ClipLoss(), dynamic=False) if way.endswith("compiled") else ClipLoss()


def measure(way: str, num_pairs: int, width: int, device: str = "cpu", dtype: str = "float32") -> dict[str, float]:
    """Returns seconds, megabytes and floor of a loss and its three gradients."""
    torch.manual_seed(0)
    options = {"device": device, "dtype": getattr(torch, dtype)}
    images, texts = torch.randn(num_pairs, width, **options), torch.randn(num_pairs, width, **options)
    texts.add_(images, alpha=0.3)  # matching pairs have a cosine of about 0.3
    inputs = [part.requires_grad_() for part in (F.normalize(images, out=images), F.normalize(texts, out=texts))]
    loss, scale = find_loss(way), SCALE.to(**options).requires_grad_()
    for some in [num_pairs] if way.endswith("compiled") else (64, 1500):  # loads the kernels of either form
        loss(*torch.randn(2, some, width, requires_grad=True, **options), scale).backward()
    side = 1024 if device == "cpu" else 4096  # a GPU needs more to reach its best rate
    floor = Floor({(1, side, width, side): 4 * (num_pairs / side) ** 2}, 0, device, dtype)
    floor()
    gradients, before = sum(part.nbytes for part in inputs) / 1e6, forget_peak()
    start = time.perf_counter()
    value = loss(*inputs, scale)
    value.backward()
    value.item()  # waits for a GPU
    seconds = time.perf_counter() - start
    megabytes = max(0.0, peak_megabytes() - before - gradients)
    floor()
    return {"seconds": seconds, "megabytes": megabytes, "floor": floor.seconds, "loss": value.item()}


def compare_losses(num_pairs: int, args: Namespace) -> dict[str, Any]:
    """Returns one case: the losses of one number of pairs."""
    is_compared = args.open_clip and num_pairs <= args.max_open_clip_pairs
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in (WAYS if is_compared else WAYS[:1])}
    measured = partial(in_fresh_process, measure) if args.device == "cpu" else measure
    for way, counts in turns(list(runs), args.repeats, f"{num_pairs} pairs"):
        if counts or args.device != "cpu":  # a fresh process is warmed up in itself
            run = measured(way, num_pairs, args.width, args.device, args.dtype)
            runs[way] += [run] * counts
    seconds = {way: [run["seconds"] for run in some] for way, some in runs.items()}
    seconds["floor"] = [run["floor"] for some in runs.values() for run in some]
    memory = {way: round(max(run["megabytes"] for run in some), 1) for way, some in runs.items()}
    facts: dict[str, Any] = {"losses": {way: some[0]["loss"] for way, some in runs.items()}}
    if args.open_clip and not is_compared:
        gigabytes = BYTES_PER_LOGIT * num_pairs**2 / 1e9
        facts["open_clip"] = f"not measured: it would hold about {gigabytes:.0f} GB, {BYTES_PER_LOGIT} bytes a logit"
    times = min(run["seconds"] / run["floor"] for run in runs["clip_hf"])
    facts["times_its_products"] = {"best": round(times, 3), "aim": MOST_TIMES_PRODUCTS}
    note = f"; {times:.2f} times its products at best; "
    note += ", ".join(f"{way} {megabytes:,.0f} MB" for way, megabytes in memory.items())
    facts |= {"floor": "8 x num_pairs^2 x width operations by torch.matmul", "note": note}
    facts["megabytes_above_inputs_and_gradients"] = memory
    cause = CAUSES.get(torch.device(args.device).type, "")
    case = compare(f"{num_pairs:,} pairs", seconds, num_pairs, {"": 1.0}, cause=cause, **facts)
    if times > MOST_TIMES_PRODUCTS:
        case.setdefault("why", cause)
    return case


def main() -> None:
    """Measures each number of pairs in each way, prints and saves."""
    parser = make_parser(__file__, __doc__, repeats=3)
    parser.add_argument("--num_pairs", type=int, nargs="+", default=[4096, 8192, 16384, 32768], help="in the batch")
    parser.add_argument("--width", type=int, default=512, help="width of the joint embedding space")
    parser.add_argument("--max_open_clip_pairs", type=int, default=16384, help="16 GB at 32,768")
    parser.add_argument("--no_open_clip", dest="open_clip", action="store_false", help="measure ours alone")
    add_device(parser)
    args = parser.parse_args()
    save("Contrastive loss", "pairs", args, [compare_losses(num_pairs, args) for num_pairs in args.num_pairs])


if __name__ == "__main__":
    main()
