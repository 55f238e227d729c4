"""Real captions, from a file of the test data or of the user."""

import json
import os
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
