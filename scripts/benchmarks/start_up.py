"""Times what a user waits for: `import clip_hf`, and opening a ViT-L/14, each in fresh processes and in turns.

python scripts/benchmarks/start_up.py --architecture ViT-L/14
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from measuring.options import make_parser
from measuring.reports import save
from measuring.rounds import compare, turns

IMPORTS = {
    "clip_hf": "import clip_hf",
    "transformers": "import torch; from transformers import PreTrainedModel, AutoModel, AutoProcessor",
}
IMPORTS_FLOOR = "what the peer imports, all of which ours import first"
CLASSES = {"clip_hf": "ClipHfModel", "transformers": "CLIPModel"}
OPENING_FLOOR = "the tensors alone, by safetensors' load_file; the rest is the building of modules"


def seconds_of(code: str, before: str = "") -> float:
    """Returns the seconds that code takes in a fresh process, behind the code before it."""
    timed = f"import time\n{before}\nstart = time.perf_counter()\n{code}\nprint(time.perf_counter() - start)"
    printed = subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True).stdout
    return float(printed.split()[-1])


def import_seconds(repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of the imports, without the start of Python."""
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for name, counts in turns(list(IMPORTS), repeats, "Imports"):
        one = seconds_of(IMPORTS[name])
        seconds[name] += [one] * counts
    return seconds | {"floor": seconds["transformers"]}


def opening_seconds(architecture: str, repeats: int) -> dict[str, list[float]]:
    """Returns the seconds that ours and transformers take to open the same weights, each from its own files.

    Those of the "floor" are for the weights alone.
    """
    from measuring.models import build_models

    models = build_models(architecture)
    seconds: dict[str, list[float]] = {name: [] for name in (*CLASSES, "floor")}
    with tempfile.TemporaryDirectory() as folder:
        for name in CLASSES:
            getattr(models, name).save_pretrained(Path(folder, name))
        ways = {
            name: (f"{kind}.from_pretrained({str(Path(folder, name))!r})", f"from {name} import {kind}")
            for name, kind in CLASSES.items()
        }
        weights = str(Path(folder, "clip_hf", "model.safetensors"))
        ways["floor"] = (f"load_file({weights!r})", "from safetensors.torch import load_file")
        for name, counts in turns(list(ways), repeats, "Openings"):
            one = seconds_of(*ways[name])
            seconds[name] += [one] * counts  # the first reads the file into the system's cache
    return seconds


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__, repeats=5)
    parser.add_argument("--architecture", default="ViT-L/14", help="of the model that is opened: a ViT")
    args = parser.parse_args()
    aims, title = {"transformers": round(1 / 1.2, 2)}, f"from_pretrained, {args.architecture}"
    cases = [
        compare("imports of a fresh process", import_seconds(args.repeats), 1, aims, floor=IMPORTS_FLOOR),
        compare(
            title, opening_seconds(args.architecture, args.repeats), 1, {"transformers": 1.0}, floor=OPENING_FLOOR
        ),
    ]
    save("Start-up", "starts", args, cases)


if __name__ == "__main__":
    main()
