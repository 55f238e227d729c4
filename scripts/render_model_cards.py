"""Renders model cards: the page beside each JSON file of facts, or the README.md of a saved model's folder.

python scripts/render_model_cards.py                                         # every model_cards/*.json
python scripts/render_model_cards.py outputs/shapes                          # the README.md of a trained model
python scripts/render_model_cards.py outputs/shapes --to model_cards/shapes  # its facts, page and curves over there
"""

import argparse
import shutil
from pathlib import Path

from clip_hf.model_card.facts import ModelCardFacts
from clip_hf.model_card.json_files import read_json
from clip_hf.model_card.page import page_of_folder, page_of_json

CARDS = Path(__file__).parents[1] / "model_cards"


def render(path: Path) -> Path:
    """Writes the page of a JSON file or of a model's folder, and returns where."""
    if path.is_dir():
        page, text = path / "README.md", page_of_folder(path, str(path))
    else:
        page, text = path.with_suffix(".md"), page_of_json(path)
    page.write_text(text, encoding="utf-8")
    return page


# Facts that a folder has of itself; of a card that is there already, the others stay.
OF_THE_FOLDER = (
    *("name", "model_id", "config", "training", "num_pairs_seen", "curves", "evaluations"),
    *("base_model", "datasets", "conversion"),
)


def collect(folder: Path, path: Path) -> Path:
    """Writes the facts of a model's folder, and its curves, into files of one name, and returns that of the facts."""
    card = path.with_name(f"{path.name}.json")
    known = read_json(card) if card.is_file() else {}
    kept = {name: fact for name, fact in known.items() if name not in OF_THE_FOLDER}
    facts = ModelCardFacts.from_folder(folder, f"path/to/{path.name}", **kept)
    card.parent.mkdir(parents=True, exist_ok=True)
    if facts.curves is not None:
        facts.curves = f"{path.name}.png"
        shutil.copy(folder / "curves.png", path.with_name(facts.curves))
    facts.to_json(card)
    return card


def main() -> None:
    """Renders what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="JSON files and folders; by default model_cards/*.json")
    parser.add_argument("--to", type=Path, help="name of the card, without ending, of the one folder given")
    args = parser.parse_args()
    if args.to is not None and (len(args.paths) != 1 or not args.paths[0].is_dir()):
        parser.error("--to needs one folder of a saved model")
    if missing := [str(path) for path in args.paths if not path.exists()]:
        parser.error(f"there is no {', '.join(missing)}: name JSON files of facts, or folders of saved models")
    for path in [collect(args.paths[0], args.to)] if args.to else args.paths or sorted(CARDS.glob("*.json")):
        print(render(path))


if __name__ == "__main__":
    main()
