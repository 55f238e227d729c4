"""Several ways to do one thing, timed in turns, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

OURS = "clip_hf"
# Greatest difference between the numbers of two ways that count as the same, for unit vectors, losses and scores.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}


def turns(names: Sequence[str], repeats: int, title: str) -> Iterator[tuple[str, bool]]:
    """Yields the names in turns, each turn beginning with another, and whether it counts: the first turn warms up.

    Args:
        names: of the ways.
        repeats: turns that count.
        title: of the progress bar.
    """
    with tqdm(total=len(names) * (repeats + 1), desc=title, leave=False) as progress:
        for turn in range(repeats + 1):
            first = turn % len(names)
            for name in [*names[first:], *names[:first]]:
                progress.set_postfix_str(name)
                yield name, turn > 0
                progress.update()


def take_turns(ways: Mapping[str, Callable[[], Any]], repeats: int, title: str) -> dict[str, list[float]]:
    """Returns the seconds of each call: every way once to warm up, then all of them, `repeats` times.

    Args:
        ways: by name; each is called without arguments. Work that it leaves to a GPU is waited for.
        repeats: timed calls of each.
        title: of the progress bar.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for name, counts in turns(list(ways), repeats, title):
        start = time.perf_counter()
        ways[name]()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        if counts:
            seconds[name].append(time.perf_counter() - start)
    return seconds


def largest_difference(results: Mapping[str, Tensor], dtype: str = "float32") -> float:
    """Returns the greatest difference between what the ways compute.

    Args:
        results: of each way, of one shape.
        dtype: in which they were computed, one of `TOLERANCES`.

    Raises:
        RuntimeError: it is above the tolerance: the ways do not do the same thing.
    """
    first, *others = (result.detach().float().cpu() for result in results.values())
    difference = max((other - first).abs().max().item() for other in others)
    if not difference <= TOLERANCES[dtype]:
        raise RuntimeError(f"{', '.join(results)} differ by {difference:.2g}, more than {TOLERANCES[dtype]:g}")
    return difference


def compare(
    title: str,
    seconds: Mapping[str, list[float]],
    amount: float,
    aims: Mapping[str, float | None] | None = None,
    bound: str | None = None,
    cause: str = "",
    **facts: Any,
) -> dict[str, Any]:
    """Returns a case of a row: rates, and how many times faster our best way is than peers', turn by turn.

    Args:
        title: of the case.
        seconds: of each way in turns; of a "floor", if there is one, the least time that ours could take. Our ways
            begin with `OURS`.
        amount: of work in a call, in the unit of the row.
        aims: for the beginning of peers' names, how many times faster ours are to be than the best of them; by
            default, one comparison with the best of all peers, without an aim.
        bound: what bounds ours.
        cause: why ours are not faster, a sentence, for where an aim is missed.
        facts: further entries.
    """
    times = {name: list(some) for name, some in seconds.items()}
    floor = min(times.pop("floor", [0]))
    medians = {name: statistics.median(some) for name, some in times.items()}
    ours = min((name for name in medians if name.startswith(OURS)), key=medians.__getitem__)
    peers = [name for name in medians if not name.startswith(OURS)]
    case: dict[str, Any] = {"case": title, "amount": amount, "ours": ours, "versus": []}
    for family, aim in (aims or {"": None}).items():
        if members := [name for name in peers if name.startswith(family)]:
            best = min(members, key=medians.__getitem__)
            case["versus"].append({"peer": best, "aim": aim} | _ratio(times[best], times[ours]))
    missed = [one for one in case["versus"] if one["aim"] and one["times_faster"] < one["aim"]]
    case |= {"bound": bound} if bound else {}
    if missed:
        case["why"] = " ".join([cause, *(_why(one, medians, ours, floor) for one in missed)]).strip()
    if floor:
        case["share_of_floor"] = {name: round(floor / median, 4) for name, median in medians.items()}
    rates = {name: float(f"{amount / median:.4g}") for name, median in medians.items()}
    all_seconds = {name: [float(f"{one:.4g}") for one in some] for name, some in times.items()}
    return case | facts | {"per_second": rates, "seconds": all_seconds}


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
    low, median, high = statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else 3 * ratios
    return {"times_faster": round(median, 3), "quartiles": [round(low, 3), round(high, 3)]}


def _why(missed: Mapping[str, Any], medians: Mapping[str, float], ours: str, floor: float) -> str:
    """Says in numbers why an aim was missed."""
    peer = missed["peer"]
    if floor:
        reached, theirs = floor / medians[ours], floor / medians[peer]
        shares = f"Ours reach {reached:.0%} of the floor, {peer} {theirs:.0%}"
        # Packed weights may beat the floor, whose products are of plain ones: it then bounds nothing.
        if 1 / theirs > missed["aim"] or reached > 1:
            return f"{shares}."
        return f"{shares}: it takes {1 / theirs:.3g} times the floor of ours, and no more can be won over it."
    low, high = missed["quartiles"]
    return f"{peer} takes {medians[peer]:.3g} s, ours {medians[ours]:.3g} s; half of the turns lie in {low} to {high}."
