"""Times captions to token ids on one core: ours, OpenCLIP's tokenizer and transformers' for CLIP.

The floor is what bounds ours: the tokenizers library (Rust) alone, without the return to Python lists.

    python scripts/benchmarks/tokenization.py --num_captions 10000
"""

import os
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from pathlib import Path

import torch
from measuring.captions import CAPTIONS_HELP, default_captions, read_captions
from measuring.reports import RESULTS, save
from measuring.rounds import compare, take_turns

BOUND = "Most of the time the tokenizers library splits and merges words: the floor."


def main() -> None:
    """Measures, prints and saves."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--captions", type=Path, default=default_captions(), help=CAPTIONS_HELP)
    parser.add_argument("--num_captions", type=int, default=10_000, help="captions")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument("--output", type=Path, default=RESULTS / "tokenization.json", help="JSON file to write")
    args = parser.parse_args()
    captions = read_captions(args.captions, args.num_captions)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    from measuring.models import build_tokenizers

    tokenizers = build_tokenizers()
    padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    lowered = [caption.lower() for caption in captions]
    ways = {
        "clip_hf": lambda: tokenizers.clip_hf(captions, **padded)["input_ids"],
        "clip_hf, lists as long as they are": lambda: tokenizers.clip_hf(captions)["input_ids"],
        "open_clip": lambda: tokenizers.open_clip(captions),
        "transformers": lambda: tokenizers.transformers(captions, **padded)["input_ids"],
    }
    theirs, end = ways["open_clip"](), tokenizers.clip_hf.eos_token_id
    # OpenCLIP's pad with 0, ours with the end token.
    if not torch.equal(ways["clip_hf"](), theirs.masked_fill((theirs == end).cumsum(dim=1) > 0, end)):
        sys.exit("the ids are not OpenCLIP's")
    backend = tokenizers.clip_hf.backend_tokenizer
    backend.no_padding()
    ways["floor"] = lambda: backend.encode_batch_fast(lowered)
    case = compare(
        f"{len(captions):,} captions, one core",
        take_turns(ways, args.repeats, "Tokenization"),
        len(captions),
        target=1.5,
        floor="the tokenizers library's encode_batch_fast alone",
    )
    why = {"why": BOUND} if case["times_faster"] < case["target"] else {}
    save(args.output, "Tokenization", "captions", args, [case | why])


if __name__ == "__main__":
    main()
