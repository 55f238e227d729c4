"""Renders the tables of scripts/recipes/README.md: which recipe fits which machine, by the planner.

python scripts/render_guide.py
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from clip_hf.training.planning import Hardware, Training, plan  # noqa: E402
from clip_hf.training.recipe import read_recipe  # noqa: E402
from scripts.plan_run import read_training  # noqa: E402

PAGE = ROOT / "scripts" / "recipes" / "README.md"
# In the order of their size; the last trains a checkpoint of ViT-L/14 further, and does not say so itself.
NAMES = ("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64", "vit_b_32", "vit_b_16", "vit_l_14")
RECIPES: dict[str, str | None] = {**dict.fromkeys(NAMES), "vit_l_14_336px": "ViT-L/14@336px"}
WITH_SMALLER_BATCH, SMALLER_BATCH = ("rn50", "vit_b_32"), ("--global_batch_size", "4096")
# The others: what they are for, how many devices that is, the peak of each, and the pairs of an epoch.
OWN_MACHINES = {
    "one_gpu": ("one GPU of 24 GB and 150 TFLOP/s", 1, 150e12, 10_000_000),
    "flickr8k": ("two cores, a process each, ZeRO-2", 2, 0.05e12, 6_000),
    "flickr8k_and_emoji": ("two cores, a process each, ZeRO-2", 2, 0.05e12, 8_000),
    "shapes": ("two cores, one process", 1, 0.1e12, None),  # whose recipe counts steps
}
MEMORIES, COUNTS = (16, 24, 48, 80), (1, 8, 64, 512, 4096)  # GB, and GPUs
PEAK, EFFICIENCY, BANDWIDTH, TEXT_LENGTH, NUM_PAIRS = 400e12, 0.4, 25e9, 16, 400_000_000  # pairs: paper, section 2.2


def largest_chunk(training: Training, hardware: Hardware, gigabytes: float) -> int:
    """Returns the most images at a time, a power of two or 0, with which ZeRO-1 leaves a tenth of the memory free."""
    size = training.global_batch_size // hardware.num_devices
    while size >= 1:
        training.chunk_size = size
        if sum(plan(training, hardware, "zero1").memory.values()) <= 0.9e9 * gigabytes:
            break
        size //= 2
    return size


def short(number: float) -> str:
    """Returns a number with its first two digits, or all that it has before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def render_rows(name: str, training: Training, num_epochs: float) -> tuple[list[str], list[str]]:
    """Returns a recipe's row of each table."""
    eight, first = Hardware(8, PEAK, EFFICIENCY, BANDWIDTH), [name, f"{training.global_batch_size:,}"]
    sizes = [f"{training.num_parameters / 1e6:,.0f}", f"{training.flops_of_pair / 1e9:,.1f}"]
    for gigabytes in MEMORIES:
        sizes.append(f"{chunk:,}" if (chunk := largest_chunk(training, eight, gigabytes)) else "none")
    days = []
    for devices in (Hardware(count, PEAK, EFFICIENCY, BANDWIDTH) for count in COUNTS):
        largest_chunk(training, devices, MEMORIES[-1])
        days.append(short(num_epochs * NUM_PAIRS / 86400 / plan(training, devices, "zero1").pairs_per_second))
    return [*first, *sizes], [*first, f"{num_epochs:g}", *days]


def render_own_row(stem: str) -> list[str]:
    """Returns the row of a recipe that has a machine of its own."""
    machine, count, peak, epoch = OWN_MACHINES[stem]
    path = str(PAGE.with_name(f"{stem}.yaml"))
    training, recipe = read_training(path, count, TEXT_LENGTH), read_recipe(path)
    pairs = epoch * recipe["num_train_epochs"] if epoch else recipe["max_steps"] * training.global_batch_size
    planned = plan(training, Hardware(count, peak, EFFICIENCY, BANDWIDTH), "zero2" if count > 1 else "ddp")
    numbers = (training.num_parameters / 1e6, training.flops_of_pair / 1e9, sum(planned.memory.values()) / 1e9)
    row = [f"[{stem}]({stem}.yaml)", machine, f"{training.global_batch_size:,}", *map(short, numbers)]
    return [*row, f"{pairs:,}", short(pairs / planned.pairs_per_second / 60)]


def render_table(rows: list[list[str]]) -> str:
    """Returns rows, the first of them the header, as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def render_page(page: str) -> str:
    """Returns the page with its tables written anew."""
    memory = [["recipe", "pairs", "million parameters", "GFLOPs a pair", *(f"{size} GB" for size in MEMORIES)]]
    time = [["recipe", "pairs", "epochs", *(f"{count} GPU{'s' * (count > 1)}" for count in COUNTS)]]
    own = [["recipe", "machine", "pairs", "million parameters", "GFLOPs a pair", "GB", "pairs in all", "minutes"]]
    for stem in RECIPES:
        path = str(PAGE.with_name(f"{stem}.yaml"))
        for more in ((), SMALLER_BATCH) if stem in WITH_SMALLER_BATCH else ((),):
            training = read_training(path, 1, TEXT_LENGTH, RECIPES[stem], more)
            rows = render_rows(f"[{stem}]({stem}.yaml)", training, read_recipe(path)["num_train_epochs"])
            memory, time = [*memory, rows[0]], [*time, rows[1]]
    for name, table in {"memory": memory, "time": time, "own": [*own, *map(render_own_row, OWN_MACHINES)]}.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        head, _, rest = page.partition(begin)
        page = head + begin + render_table(table) + "\n" + end + rest.partition(end)[2]
    return page


if __name__ == "__main__":
    ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"rendered {PAGE}")
