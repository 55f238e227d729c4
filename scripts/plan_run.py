"""Says what a recipe takes of each device: memory, communication and time of a step, engine by engine.

    python scripts/plan_run.py scripts/recipes/vit_l_14.yaml --gpus 64 --memory 80 --tflops 400 --bandwidth 50

Memory is that of parameters, gradients, the optimizer's averages, the engine's buffers, activations,
batch and loss; the libraries take a gigabyte or two more. Time assumes that a share of the peak is reached,
`--efficiency`, and that no communication is hidden. Options that this command does not know are those of
scripts/train.py.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from clip_hf.data.data_args import DataArguments
from clip_hf.training import ClipTrainingArguments
from clip_hf.training.combinations import check_options
from clip_hf.training.mistakes import told_in_a_line
from clip_hf.training.model_args import ModelArguments
from clip_hf.training.planning import DIVIDED, Hardware, Plan, Training, plan
from clip_hf.training.recipe import parse_recipe, read_recipe
from clip_hf.training.zero_shot import ZeroShotArguments


def read_training(
    recipe: str, num_devices: int, text_length: int, architecture: str | None = None, more: Sequence[str] = ()
) -> Training:
    """Returns what a recipe trains, with more options of scripts/train.py."""
    classes = (ModelArguments, DataArguments, ZeroShotArguments, ClipTrainingArguments)
    data = () if "train_data" in read_recipe(recipe) else ("--train_data", "any")
    no_engine = ("--deepspeed", "", "--fsdp", "false")  # which would want its launcher
    model_args, _, _, args = parse_recipe(classes, None, [recipe, "--use_cpu", *data, *more, *no_engine])
    if architecture is not None:
        model_args.model, model_args.architecture = None, architecture
    try:
        check_options(args, model_args.build_config())
        return Training.from_options(model_args, args, num_devices, text_length)
    except OSError as error:
        problem = f"{recipe} trains {model_args.model} further, which is not there: say of which --architecture it is"
        raise ValueError(problem if model_args.model else str(error)) from error


def main(args: list[str] | None = None) -> None:
    """Plans and prints."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file of scripts/recipes, or another")
    parser.add_argument("--architecture", help="of the model, where the recipe has none")
    parser.add_argument("--gpus", type=int, default=1, help="devices")
    parser.add_argument("--memory", type=float, default=80, help="of a device, in GB (10^9 bytes)")
    parser.add_argument("--tflops", type=float, default=400, help="peak of a device, in 10^12 operations per second")
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of the peak that is reached")
    parser.add_argument("--bandwidth", type=float, default=25, help="of a device to the others, in GB per second")
    parser.add_argument("--chunk_size", type=int, help="instead of the recipe's grad_cache_chunk_size")
    parser.add_argument("--text_length", type=int, default=16, help="mean number of tokens of a caption")
    options, more = parser.parse_known_args(args)
    if options.chunk_size is not None:
        more += ["--grad_cache_chunk_size", str(options.chunk_size)]
    with told_in_a_line(ValueError, OSError):
        hardware = Hardware(options.gpus, options.tflops * 1e12, options.efficiency, options.bandwidth * 1e9)
        training = read_training(options.recipe, options.gpus, options.text_length, options.architecture, more)
        plans = {engine: plan(training, hardware, engine) for engine in DIVIDED}
    report(training, plans, options.gpus, options.memory)


def report(training: Training, plans: dict[str, Plan], num_devices: int, gigabytes: float) -> None:
    """Prints what is trained, and a line for each engine."""
    chunk = " and ".join(f"{size:,}" for size in dict.fromkeys(training.chunk_sizes(num_devices)))
    print(
        f"{training.num_parameters / 1e6:,.0f} million parameters, {training.num_trained / 1e6:,.1f} million of them "
        f"trained; {training.global_batch_size:,} pairs on {num_devices:,} devices, {chunk} at a time; "
        f"{training.flops_of_pair / 1e9:,.1f} GFLOPs a pair\n"
    )
    names = "".join(f"{name:>12}" for name in (*plans["ddp"].memory, "all", ""))
    print(f"{'GB of a device':14}{names}{'sent':>10}{'pairs/s':>12}")
    for engine, one in plans.items():
        total = sum(one.memory.values()) / 1e9
        sizes = "".join(f"{size / 1e9:12.2f}" for size in one.memory.values())
        fits = "fits" if total <= gigabytes else "too much"
        print(f"{engine:14}{sizes}{total:12.2f}{fits:>12}{one.sent / 1e9:10.2f}{one.pairs_per_second:12,.0f}")
    ddp = plans["ddp"]
    print(f"\nA step of ddp: {ddp.compute_seconds:.3g} s computing, {ddp.communication_seconds:.3g} s sending.")


if __name__ == "__main__":
    main()
