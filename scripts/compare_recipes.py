"""Trains variants of a recipe, one after the other, and compares their recall on the evaluation set.

python scripts/compare_recipes.py scripts/recipes/flickr8k_variants.yaml --train_data photos --eval_data more_photos

A variant that has been trained is not trained again. The output folder gets a folder of each, comparison.json and
comparison.png. Options that this command does not know are those of scripts/train.py.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from clip_hf.training.recipe import read_recipe

TRAIN = Path(__file__).with_name("train.py")


def train(options: dict[str, Any], folder: Path, more: list[str]) -> dict[str, Any]:
    """Returns what the training of a variant left in results.json, after the training if need be."""
    results = folder / "results.json"
    if not results.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(options | {"output_dir": str(folder)}), encoding="utf-8")
        subprocess.run([sys.executable, TRAIN, recipe, *more], check=True)
    return json.loads(results.read_text(encoding="utf-8"))


def summarise(variant: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Returns what is compared, from one variant's results.json."""
    batch_size = results["training"]["batch_size"]
    evaluations = [
        {"pairs": entry["step"] * batch_size, "mean_recall": entry["eval_mean_recall"]}
        for entry in results["history"]
        if "eval_mean_recall" in entry
    ]
    return {
        "options": variant,
        "num_parameters": results["num_parameters"],
        "seconds": round(results["training"]["train_runtime"]),
        "evaluations": evaluations,
        "metrics": {name: value for name, value in results["evaluation"].items() if "recall" in name},
    }


def draw(variants: dict[str, Any], path: Path) -> None:
    """Draws the recall of each variant over the pairs that it has seen."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for name, variant in variants.items():
        points = [(entry["pairs"], 100 * entry["mean_recall"]) for entry in variant["evaluations"]]
        axis.plot(*zip(*points, strict=True), marker=".", label=name)
    axis.set(xlabel="pairs seen", ylabel="mean of R@1, R@5 and R@10, both directions (%)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains and compares."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "variants", type=Path, help="YAML file of a recipe, options for all, and those of each variant"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/variants"), help="folder (%(default)s)")
    args, more = parser.parse_known_args()
    content = yaml.safe_load(args.variants.read_text(encoding="utf-8"))
    base = read_recipe(str(args.variants.parent / content["recipe"])) | content.get("options", {})
    found = {}
    for number, (name, variant) in enumerate(content["variants"].items(), start=1):
        print(f"{name}: {number} of {len(content['variants'])}", flush=True)
        folder = args.output / name.replace(" ", "_").replace(",", "")
        found[name] = summarise(variant, train(base | variant, folder, more))
    comparison = {"recipe": content["recipe"], "options": content.get("options", {}), "variants": found}
    (args.output / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    draw(found, args.output / "comparison.png")
    for name, variant in sorted(found.items(), key=lambda item: -item[1]["evaluations"][-1]["mean_recall"]):
        print(f"{name:34}{variant['evaluations'][-1]['mean_recall']:8.1%} mean recall{variant['seconds']:8,} s")
    print(f"\nsaved to {args.output}/comparison.json")


if __name__ == "__main__":
    main()
