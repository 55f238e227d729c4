"""The options that the benchmarks share."""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from pathlib import Path

from measuring.captions import CAPTIONS_HELP, default_captions
from measuring.reports import RESULTS


def make_parser(script: str, description: str, repeats: int | None = None) -> ArgumentParser:
    """Returns the parser of a script, with `--output` and, where there are turns, `--repeats`.

    Args:
        script: its file, after which the results are named.
        description: its docstring, of which the first line counts.
        repeats: default number of turns; None for a script without them.
    """
    parser = ArgumentParser(description=description.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    output = RESULTS / f"{Path(script).stem}.json"
    parser.add_argument("--output", type=Path, default=output, help="JSON file to write")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="turns of each way, after one to warm up")
    return parser


def add_captions(parser: ArgumentParser) -> None:
    """Adds `--captions`."""
    parser.add_argument("--captions", type=Path, default=default_captions(), help=CAPTIONS_HELP)


def add_device(parser: ArgumentParser) -> None:
    """Adds `--device` and `--dtype`."""
    parser.add_argument("--device", default="cpu", help="where the models compute; cuda writes to results/gpu")
    dtypes = ["float32", "bfloat16"]
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of weights; in training, of autocast")
