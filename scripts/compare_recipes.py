"""Trains variants of a recipe, one after the other, and compares their recall on the evaluation set.

python scripts/compare_recipes.py scripts/recipes/flickr8k_variants.yaml --train_data photos --eval_data more_photos

What was trained to the end is not trained again, what was not goes on. Options not known here are train.py's.
"""

import json
import os
import shlex
import subprocess
import sys
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from clip_hf.training.mistakes import told_in_a_line
from clip_hf.training.recipe import read_recipe
from clip_hf.training.variants import read_variants

TRAIN = os.path.relpath(Path(__file__).with_name("train.py"))  # results name the command, and no place of this machine


def train(options: dict[str, Any], folder: Path, more: list[str]) -> dict[str, Any]:
    """Returns what the training of a variant left in results.json, after the training if need be."""
    results, recipe = folder / "results.json", folder / "recipe.yaml"
    written = f"# with {shlex.join(more)}\n" + yaml.safe_dump(options | {"output_dir": str(folder)})
    command = [TRAIN, str(recipe), *more]
    if recipe.is_file():
        if recipe.read_text(encoding="utf-8") != written:
            sys.exit(f"{folder} holds another training, or one of other options: delete it, or name another --output")
        is_saved = results.is_file() and any(folder.glob("model*.safetensors"))  # figures come before the weights
        done = json.loads(results.read_text(encoding="utf-8")) if is_saved else None
        if done is not None and done["training"]["steps"] == done["training"]["max_steps"]:
            return done
        command += ["--resume_from_checkpoint", "true"]
    folder.mkdir(parents=True, exist_ok=True)
    recipe.write_text(written, encoding="utf-8")
    if code := subprocess.run([sys.executable, *command], check=False).returncode:
        sys.exit(f"the training in {folder} ended with code {code}: what it said is above")
    return json.loads(results.read_text(encoding="utf-8"))


def summarise(variant: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Returns what is compared, from one variant's results.json."""
    training = results["training"]
    return {
        "options": variant,
        "command": results["command"],
        "num_parameters": results["num_parameters"],
        "seconds": round(training["train_runtime"]),
        "evaluations": [
            {"pairs": entry["step"] * training["batch_size"], "mean_recall": entry["eval_mean_recall"]}
            for entry in results["history"]
            if "eval_mean_recall" in entry
        ],
        "metrics": {name: value for name, value in results["evaluation"].items() if "recall" in name},
    }


def draw(variants: dict[str, Any], path: Path) -> None:
    """Draws the recall of each variant over the pairs that it has seen."""
    axis = Figure(figsize=(8, 5), layout="constrained").subplots()
    for name, variant in variants.items():
        points = [(entry["pairs"], 100 * entry["mean_recall"]) for entry in variant["evaluations"]]
        axis.plot(*zip(*points, strict=True), marker=".", label=name)
    axis.set(xlabel="pairs seen", ylabel="mean of R@1, R@5 and R@10, both directions (%)")
    axis.legend()
    axis.figure.savefig(path, dpi=120)


def main() -> None:
    """Trains and compares."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("variants", help="YAML file of a recipe, options for all, and those of each variant")
    parser.add_argument("--output", type=Path, default=Path("outputs/variants"), help="folder (%(default)s)")
    parser.add_argument("--output_dir", "--output-dir", help=SUPPRESS)
    args, more = parser.parse_known_args()
    if args.output_dir is not None:  # train.py would take it for every variant
        parser.error("each variant has a folder of its own: name that of all with --output")
    with told_in_a_line(ValueError, OSError):
        variants = read_variants(args.variants, more)
    found = {}
    for name, variant in variants.items():
        print(f"{name}: {len(found) + 1} of {len(variants)}", flush=True)
        found[name] = summarise(variant.changes, train(variant.options, args.output / variant.folder, more))
    comparison = json.dumps(read_recipe(args.variants) | {"variants": found}, indent=2)
    (args.output / "comparison.json").write_text(comparison + "\n", encoding="utf-8")
    draw(found, args.output / "comparison.png")
    for name, variant in sorted(found.items(), key=lambda item: -item[1]["evaluations"][-1]["mean_recall"]):
        print(f"{name:34}{variant['evaluations'][-1]['mean_recall']:8.1%} mean recall{variant['seconds']:8,} s")
    print(f"\nsaved to {args.output}/comparison.json")


if __name__ == "__main__":
    main()
