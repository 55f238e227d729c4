"""Times captions to token ids on one core: ours, OpenCLIP's tokenizer and transformers' for CLIP.

The floor is what bounds ours: the tokenizers library (Rust) alone, without the return to Python lists.

    python scripts/benchmarks/tokenization.py --num_captions 10000
"""

import os

import torch
from measuring.captions import read_captions
from measuring.options import add_captions, make_parser
from measuring.reports import save
from measuring.rounds import compare, largest_difference, take_turns

BOUND = "the tokenizers library, which splits and merges words: the floor"


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__, repeats=9)
    add_captions(parser)
    parser.add_argument("--num_captions", type=int, default=10_000, help="captions")
    args = parser.parse_args()
    captions = read_captions(args.captions, args.num_captions)
    from measuring.models import build_tokenizers

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
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
    largest_difference({"ours": ways["clip_hf"](), "theirs": theirs.masked_fill((theirs == end).cumsum(1) > 0, end)})
    backend = tokenizers.clip_hf.backend_tokenizer
    backend.no_padding()
    ways["floor"] = lambda: backend.encode_batch_fast(lowered)
    case = compare(
        f"{len(captions):,} captions, one core",
        take_turns(ways, args.repeats, "Tokenization"),
        len(captions),
        aims={"open_clip": 1.5, "transformers": None},
        bound=BOUND,
        floor="the tokenizers library's encode_batch_fast alone",
    )
    save("Tokenization", "captions", args, [case])


if __name__ == "__main__":
    main()
