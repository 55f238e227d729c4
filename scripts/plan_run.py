"""Says what a recipe takes of each device: memory, communication and time of a step, engine by engine.

    python scripts/plan_run.py scripts/recipes/vit_l_14.yaml --gpus 64 --memory 80 --tflops 400 --bandwidth 50

Memory is that of parameters, gradients, Adam's averages, activations, batch and loss; the libraries take a gigabyte or
two more. Time assumes that a share of the peak is reached, `--efficiency`, and that no communication is hidden.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from clip_hf import ClipHfConfig
from clip_hf.training.planning import BYTES_OF_PARAMETERS, Hardware, Training, plan
from clip_hf.training.recipe import read_recipe


def read_training(recipe: str, architecture: str | None, chunk_size: int | None, text_length: int) -> Training:
    """Returns what a recipe trains."""
    options = read_recipe(recipe)
    changes = options.get("config") or {}
    if "image_size" in options:
        changes["vision_config"] = changes.get("vision_config", {}) | {"image_size": options["image_size"]}
    architecture = architecture or options.get("architecture")
    if architecture is None:
        raise SystemExit(f"{recipe} trains a checkpoint further: say of which --architecture it is")
    config = ClipHfConfig.from_architecture(architecture, **changes)
    size = options.get("global_batch_size") or options.get("per_device_train_batch_size", 8)
    chunk_size = chunk_size or options.get("grad_cache_chunk_size")
    return Training(config, size, chunk_size, text_length, bool(options.get("bf16")))


def main(args: list[str] | None = None) -> None:
    """Prints a line for each engine."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file of scripts/recipes, or another")
    parser.add_argument("--architecture", help="of the model, where the recipe has none")
    parser.add_argument("--gpus", type=int, default=1, help="devices")
    parser.add_argument("--memory", type=float, default=80, help="of a device, in GB (10^9 bytes)")
    parser.add_argument("--tflops", type=float, default=300, help="peak of a device, in 10^12 operations per second")
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of the peak that is reached")
    parser.add_argument("--bandwidth", type=float, default=25, help="of a device to the others, in GB per second")
    parser.add_argument("--chunk_size", type=int, help="instead of the recipe's grad_cache_chunk_size")
    parser.add_argument("--text_length", type=int, default=16, help="mean number of tokens of a caption")
    options = parser.parse_args(args)
    training = read_training(options.recipe, options.architecture, options.chunk_size, options.text_length)
    hardware = Hardware(options.gpus, options.tflops * 1e12, options.efficiency, options.bandwidth * 1e9)
    chunk = training.chunk_size or training.global_batch_size // options.gpus
    print(
        f"{training.num_parameters / 1e6:,.0f} million parameters; {training.global_batch_size:,} pairs on "
        f"{options.gpus:,} devices, {chunk:,} at a time; {training.flops_of_pair / 1e9:,.1f} GFLOPs a pair\n"
    )
    plans = {engine: plan(training, hardware, engine) for engine in BYTES_OF_PARAMETERS}
    parts = list(plans["ddp"].memory)
    print(
        f"{'GB of a device':16}"
        + "".join(f"{part:>13}" for part in (*parts, "all", ""))
        + f"{'sent':>10}{'pairs/s':>12}"
    )
    for engine, one in plans.items():
        total = sum(one.memory.values()) / 1e9
        sizes = "".join(f"{size / 1e9:13.2f}" for size in one.memory.values())
        fits = "fits" if total <= options.memory else "too much"
        print(f"{engine:16}{sizes}{total:13.2f}{fits:>13}{one.sent / 1e9:10.2f}{one.pairs_per_second:12,.0f}")
    best = plans["ddp"]
    print(f"\nA step of ddp: {best.compute_seconds:.3g} s computing, {best.communication_seconds:.3g} s sending.")


if __name__ == "__main__":
    main()
