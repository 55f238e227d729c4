"""Measures how soon a training goes on at any place of a stream: its shards opened, and the first batch from there.

Of ours alone, on the machine at hand. Shards are noise, and links to one; `sizes.json` says how many samples each has,
which opening would else count.

    python scripts/benchmarks/stream_resuming.py --samples 1000000
"""

import json
import tempfile
import time
from pathlib import Path

from measuring.memory import held_megabytes
from measuring.noise import write_noise_shards
from measuring.options import make_parser
from measuring.reports import write
from tqdm import tqdm

from clip_hf import ClipHfImageProcessor, ClipHfProcessor, ClipHfTokenizer
from clip_hf.data.sources import open_source
from clip_hf.data.training_pairs import TrainingPairs

BATCH_SIZE, SHARD_SIZE = 64, 10_000
SHARES = (0.0, 0.3, 0.6, 0.9)


def seconds_to_first_batch(shards: str, processor: ClipHfProcessor, share: float) -> dict[str, float]:
    """Returns the seconds to open a stream, and from then on to the first batch behind a share of its samples."""
    start = time.perf_counter()
    pairs = TrainingPairs([open_source(shards, streaming=True)], processor)
    loader = pairs.loader(BATCH_SIZE)
    opened = time.perf_counter()
    turn = int(share * len(pairs)) // BATCH_SIZE * BATCH_SIZE
    loader.load_state_dict([loader.state_dict() | {"turn": turn, "num_since": turn}])
    next(iter(loader))
    return {"open": opened - start, "first_batch": time.perf_counter() - opened, "megabytes": held_megabytes()}


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--samples", type=int, default=1_000_000, help=f"of the stream, {SHARD_SIZE:,} in a shard")
    args = parser.parse_args()
    tokenizer = ClipHfTokenizer.train(["noise"], vocab_size=600, context_length=16)
    processor = ClipHfProcessor(ClipHfImageProcessor(size=32, crop_size=32), tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_noise_shards(Path(folder), max(1, args.samples // SHARD_SIZE), SHARD_SIZE)
        sizes = {file.name: SHARD_SIZE for file in sorted(Path(folder).glob("*.tar"))}
        (Path(folder) / "sizes.json").write_text(json.dumps(sizes), encoding="utf-8")
        places = {f"{share:.0%}": seconds_to_first_batch(shards, processor, share) for share in tqdm(SHARES)}
    for place, found in places.items():
        print(f"{place:>4}: opened in {found['open']:.1f} s, the first batch {found['first_batch']:.2f} s later")
    write(args.output, "Going on in a stream", "seconds, and megabytes held by the process", args, places=places)


if __name__ == "__main__":
    main()
