"""Pushes a model to the Hub: weights, processor, results and a page, and the code that opens it without clip_hf.

python scripts/push_to_hub.py outputs/shapes me/my-clip --dry_run
python scripts/push_to_hub.py outputs/shapes me/my-clip --with_code --private

The token is the one of `hf auth login`, or HF_TOKEN. Facts that no program knows (license, data sets, examples) are
taken from card.json in the model's folder; a README.md that somebody wrote there goes as it is.
"""

import argparse
import sys
from pathlib import Path

from clip_hf.hub.failures import PushError
from clip_hf.hub.files import FORMATS, collected_files
from clip_hf.hub.push import Destination, plan_push, push


def parse_args() -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, help="folder of a saved model and its processor")
    parser.add_argument("repo_id", help="NAMESPACE/NAME on the Hub; made if it is new")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to, made if it is new; by default the main branch")
    parser.add_argument("--tag", help="name of the state that the push leaves, such as v1")
    parser.add_argument("--create_pr", action="store_true", help="propose the change to the repository's owner")
    parser.add_argument("--with_code", action="store_true", help="let it open with trust_remote_code, without clip_hf")
    parser.add_argument(
        "--formats", default="clip_hf", help=f"formats of the weights, with commas between: {', '.join(FORMATS)}"
    )
    parser.add_argument(
        "--replace_page", action="store_true", help="put the made page in the place of one that was edited on the Hub"
    )
    parser.add_argument("--dry_run", action="store_true", help="only print what would go")
    return parser.parse_args()


def main() -> None:
    """Prints what goes, sends it, and prints where it is."""
    args = parse_args()
    formats = tuple(name.strip() for name in args.formats.split(",") if name.strip())
    options = {name: getattr(args, name) for name in ("revision", "private", "tag", "create_pr", "replace_page")}
    try:
        destination = Destination(args.repo_id, **options)
        with collected_files(args.model_dir, args.repo_id, args.with_code, formats) as files:
            plan = plan_push(destination, files)
            print(plan, flush=True)
            if args.dry_run:
                return
            pushed = push(plan)
    except (PushError, ValueError) as error:
        sys.exit(f"{error}")
    print(f"\n{pushed.url}\n\n{pushed.usage(args.with_code)}")


if __name__ == "__main__":
    main()
