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
RECIPES: dict[str, str | None] = dict.fromkeys(
    ("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64", "vit_b_32", "vit_b_16", "vit_l_14")
)
RECIPES["vit_l_14_336px"] = "ViT-L/14@336px"
MEMORIES = (16, 24, 48, 80)  # GB
COUNTS = (1, 8, 64, 512, 4096)
NUM_PAIRS = 400_000_000  # of the paper's data, section 2.2
PEAK, EFFICIENCY, BANDWIDTH = 400e12, 0.4, 25e9
TEXT_LENGTH = 16


def largest_chunk(training: Training, hardware: Hardware, gigabytes: float) -> int:
    """Returns the most images at a time, a power of two or 0, with which ZeRO-1 leaves a tenth of the memory free."""
    size = training.global_batch_size // hardware.num_devices
    while size >= 1:
        training.chunk_size = size
        if sum(plan(training, hardware, "zero1").memory.values()) <= 0.9e9 * gigabytes:
            break
        size //= 2
    return size


def render_rows(name: str, training: Training, num_epochs: float) -> tuple[list[str], list[str]]:
    """Returns a recipe's row of each table."""
    eight = Hardware(8, PEAK, EFFICIENCY, BANDWIDTH)
    chunks = [largest_chunk(training, eight, gigabytes) for gigabytes in MEMORIES]
    sizes = [f"{training.num_parameters / 1e6:,.0f}", f"{training.flops_of_pair / 1e9:,.1f}"]
    sizes += [f"{chunk:,}" if chunk else "none" for chunk in chunks]
    days = []
    for count in COUNTS:
        devices = Hardware(count, PEAK, EFFICIENCY, BANDWIDTH)
        largest_chunk(training, devices, MEMORIES[-1])
        pairs_per_second = plan(training, devices, "zero1").pairs_per_second
        number = num_epochs * NUM_PAIRS / pairs_per_second / 86400
        days.append(f"{number:,.0f}" if number >= 100 else f"{number:.2g}")
    return [name, *sizes], [name, f"{num_epochs:g}", *days]


def render_table(rows: list[list[str]]) -> str:
    """Returns rows, the first of them the header, as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def render_page(page: str) -> str:
    """Returns the page with both tables written anew."""
    memory = [["recipe", "million parameters", "GFLOPs a pair", *(f"{size} GB" for size in MEMORIES)]]
    time = [["recipe", "epochs", *(f"{count} GPU{'s' * (count > 1)}" for count in COUNTS)]]
    for stem, architecture in RECIPES.items():
        recipe = str(PAGE.with_name(f"{stem}.yaml"))
        training = read_training(recipe, 1, TEXT_LENGTH, architecture)
        rows = render_rows(f"[{stem}]({stem}.yaml)", training, read_recipe(recipe)["num_train_epochs"])
        memory.append(rows[0])
        time.append(rows[1])
    for name, table in {"memory": memory, "time": time}.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        head, _, rest = page.partition(begin)
        page = head + begin + render_table(table) + "\n" + end + rest.partition(end)[2]
    return page


if __name__ == "__main__":
    ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"rendered {PAGE}")
