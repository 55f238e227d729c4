"""Converts a CLIP checkpoint between this package, transformers, OpenCLIP and OpenAI, and checks the result.

Examples:
    python scripts/convert_checkpoint.py ViT-B-32.pt outputs/clip --to clip_hf --tokenizer bpe_simple_vocab_16e6.txt.gz
    python scripts/convert_checkpoint.py path/to/open_clip outputs/transformers --to transformers --dtype float16
"""

import argparse
import signal
import sys
from pathlib import Path

import torch

from clip_hf.conversion.checking import Files, compare, require_same_tokens
from clip_hf.conversion.layouts import LAYOUTS
from clip_hf.conversion.reading import read_checkpoint, round_weights
from clip_hf.conversion.writing import MAX_SHARD_SIZE, new_target, tokenizer_notes, write_checkpoint
from clip_hf.model_card.origins import record_conversion

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_arguments(args: list[str] | None) -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("source", help="folder, repository on the Hub, or one of OpenAI's .pt files")
    parser.add_argument("target", type=Path, help="folder to be made; for openai a .pt file")
    parser.add_argument("--to", required=True, choices=LAYOUTS, help="whose files to write")
    parser.add_argument("--dtype", choices=DTYPES, help="round the weights to this type (default: as they are)")
    parser.add_argument(
        "--tokenizer",
        help="folder, repository, or OpenAI's bpe_simple_vocab_16e6.txt.gz (default: the source's, if it has one)",
    )
    parser.add_argument("--max_shard_size", help=f"largest file of weights (default: {MAX_SHARD_SIZE})")
    parser.add_argument(
        "--trust_pickle", action="store_true", help="read pickles that need more than tensors: they may run any code"
    )
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> None:
    """Reads, rounds, writes, compares, and only then gives the target its name."""
    arguments = parse_arguments(args)
    dtype = DTYPES.get(arguments.dtype)
    try:
        with new_target(arguments.target) as path:
            checkpoint = read_checkpoint(arguments.source, arguments.tokenizer, arguments.trust_pickle)
            if dtype is not None:
                round_weights(checkpoint, dtype)
            write_checkpoint(checkpoint, path, arguments.to, arguments.max_shard_size)
            num_values = sum(tensor.numel() for tensor in checkpoint.weights.values())
            checkpoint.weights.clear()  # the comparison opens two models, one after the other
            source = Files(arguments.source, checkpoint.layout, arguments.trust_pickle)
            target = Files(str(path), arguments.to)
            require_same_tokens(checkpoint.tokenizer, target)
            comparison = compare(source, target, checkpoint.config, dtype)
            dtype_name = str(checkpoint.config.dtype).removeprefix("torch.")
            if arguments.to == "clip_hf":
                record_conversion(path, arguments.source, checkpoint.layout, dtype_name, str(comparison))
    except (ValueError, OSError) as error:
        sys.exit(f"not converted: {error}")
    print(f"source     {arguments.source} ({checkpoint.layout})")
    print(f"target     {arguments.target} ({arguments.to}), {num_values:,} values, {dtype_name}")
    print(f"features   {comparison}")
    for index, note in enumerate(tokenizer_notes(checkpoint.tokenizer, arguments.to)):
        print(f"{'' if index else 'tokenizer':11}{note}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which leaves nothing half-written
    main()
