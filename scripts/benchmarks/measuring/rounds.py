"""Several ways to do one thing, timed in turns, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

OURS = "clip_hf"


def take_turns(ways: Mapping[str, Callable[[], Any]], repeats: int, title: str) -> dict[str, list[float]]:
    """Returns the seconds of each call: every way once to warm up, then all of them, `repeats` times.

    Args:
        ways: by name; each is called without arguments and returns when its work is done.
        repeats: timed calls of each.
        title: of the progress bar.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tqdm(total=len(ways) * (repeats + 1), desc=title, leave=False) as progress:
        for turn in range(repeats + 1):
            for name, way in ways.items():
                progress.set_postfix_str(name)
                start = time.perf_counter()
                way()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
                progress.update()
    return seconds


def compare(title: str, seconds: Mapping[str, list[float]], amount: float, **facts: Any) -> dict[str, Any]:
    """Returns a case of a row: medians, and how many times faster our best way is than the best of the peers'.

    Args:
        title: of the case.
        seconds: of each way, and maybe of a "floor", in turns. Our ways begin with `OURS`.
        amount: of work in a call, in the unit of the row.
        facts: further entries, such as `target`, the ratio that is aimed at.
    """
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    floor = medians.pop("floor", None)
    ours = min((name for name in medians if name.startswith(OURS)), key=medians.__getitem__)
    peers = [name for name in medians if not name.startswith(OURS)]
    case: dict[str, Any] = {"case": title, "amount": amount, "ours": ours}
    if peers:
        best = min(peers, key=medians.__getitem__)
        case |= {"best_peer": best, "times_faster": round(medians[best] / medians[ours], 3)}
    if floor is not None:
        case["share_of_floor"] = round(floor / medians[ours], 3)
    rates = {name: float(f"{amount / median:.4g}") for name, median in medians.items()}
    all_seconds = {name: [float(f"{one:.4g}") for one in times] for name, times in seconds.items()}
    return case | facts | {"per_second": rates, "seconds": all_seconds}
