"""Real captions, and names of classes, from a file of the test data or of the user."""

import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

CAPTIONS_HELP = "JSON lines with a list `captions` or a `text` each (default: Flickr8k in CLIP_HF_TEST_DATA)"


def default_captions() -> Path:
    """Returns where the test data has Flickr8k's captions."""
    return Path(os.environ.get("CLIP_HF_TEST_DATA", "."), "flickr8k", "train", "metadata.jsonl")


def read_captions(file: Path, number: int) -> list[str]:
    """Returns the first captions of a file.

    Raises:
        SystemExit: it is not there, or has fewer.
    """
    if not file.is_file():
        raise SystemExit(f"there are no captions at {file}: name a file with --captions")
    with file.open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        captions = [text for row in rows for text in row.get("captions") or [row["text"]]]
    if len(captions) < number:
        raise SystemExit(f"{file} has {len(captions)} captions, fewer than the {number} asked for")
    return captions[:number]


def class_names(captions: list[str], number: int) -> list[str]:
    """Returns the most frequent pairs of long words that follow each other in captions, such as "white horse".

    Raises:
        SystemExit: the captions have fewer.
    """
    counts: Counter[str] = Counter()
    for words in (caption.lower().split() for caption in captions):
        pairs = pairwise(words)
        counts.update(f"{one} {two}" for one, two in pairs if min(len(one), len(two)) > 3 and (one + two).isalpha())
    if len(counts) < number:
        raise SystemExit(f"the captions give {len(counts)} class names, fewer than the {number} asked for")
    return [name for name, _ in counts.most_common(number)]
