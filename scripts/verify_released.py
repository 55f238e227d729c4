"""Downloads the released CLIP checkpoints, converts them, and compares the features with the originals'.

Needs internet and prints a table for the README. OpenCLIP is compared with where it is installed.

Example:
    python scripts/verify_released.py ViT-B/32 RN50
"""

import argparse
import sys
from pathlib import Path

from clip_hf.conversion.released import RELEASED, verify_released


def main(args: list[str] | None = None) -> None:
    """Verifies one checkpoint after the other; a failure is reported, and the others are still tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which ones (default: all): {', '.join(RELEASED)}")
    parser.add_argument(
        "--download_dir", type=Path, default=Path.home() / ".cache" / "clip", help="where OpenAI's files are kept"
    )
    arguments = parser.parse_args(args)
    unknown = sorted(set(arguments.names) - RELEASED.keys())
    if unknown:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(RELEASED)}")

    failures = []
    print("| model | parameters | file | features of the converted model | the file itself |\n|---|---|---|---|---|")
    for name in arguments.names or RELEASED:
        try:
            found = verify_released(RELEASED[name], arguments.download_dir)
        except Exception as error:  # of originals and downloads, anything
            failures.append(f"{name}: {type(error).__name__}: {error}")
            continue
        for place, comparison in found.comparisons.items():
            differences = found.differences.get(place, [])
            failures += [f"{name}: {place} differs: {difference}" for difference in differences]
            verdict = f"differs: {'; '.join(differences)}" if differences else "as OpenAI's"
            place = Path(place).name if place.endswith(".pt") else place
            print(f"| {name} | {found.num_parameters:,} | {place} | {comparison} | {verdict} |", flush=True)
    if failures:
        sys.exit("\n".join(["failed:", *failures]))


if __name__ == "__main__":
    main()
