"""Times what a user waits for: `import clip_hf`, and opening a ViT-L/14, each in fresh processes and in turns.

python scripts/benchmarks/start_up.py --architecture ViT-L/14
"""

import subprocess
import sys
import tempfile
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from pathlib import Path

from measuring.reports import RESULTS, save
from measuring.rounds import compare, take_turns

IMPORTS = {
    "clip_hf": "import clip_hf",
    "transformers": "import torch; from transformers import PreTrainedModel, AutoModel, AutoProcessor",
}
# The time of opening alone, behind the imports.
OPENING = """
import time
from {module} import {name}
start = time.perf_counter()
{name}.from_pretrained(r"{folder}")
print(time.perf_counter() - start)
"""


def run(code: str) -> str:
    """Returns what a fresh process prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def opening_seconds(architecture: str, repeats: int) -> dict[str, list[float]]:
    """Returns the seconds that ours and transformers take to open the same weights, each from its own files."""
    from measuring.models import build_models

    models = build_models(architecture)
    seconds: dict[str, list[float]] = {"clip_hf": [], "transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        models.clip_hf.save_pretrained(Path(folder, "clip_hf"))
        models.transformers.save_pretrained(Path(folder, "transformers"))
        for turn in range(repeats + 1):  # the first reads the files into the system's cache
            for way, module, name in (("clip_hf", "clip_hf", "ClipHfModel"), ("transformers",) * 2 + ("CLIPModel",)):
                printed = run(OPENING.format(module=module, name=name, folder=Path(folder, way)))
                if turn:
                    seconds[way].append(float(printed.split()[-1]))
    return seconds


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--architecture", default="ViT-L/14", help="of the model that is opened: a ViT")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument("--output", type=Path, default=RESULTS / "start_up.json", help="JSON file to write")
    args = parser.parse_args()
    ways = {name: lambda code=code: run(code) for name, code in IMPORTS.items()}
    cases = [
        compare("imports of a fresh process", take_turns(ways, args.repeats, "Imports"), 1, target=round(1 / 1.2, 2)),
        compare(
            f"from_pretrained, {args.architecture}", opening_seconds(args.architecture, args.repeats), 1, target=1
        ),
    ]
    save(args.output, "Start-up", "starts", args, cases)


if __name__ == "__main__":
    main()
