"""Where a model comes from: the repository that it was made of, and how it was converted."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from clip_hf.model_card.facts import CARD_FILE, RESULTS_FILE
from clip_hf.model_card.json_files import read_json

logger = logging.get_logger(__name__)


def base_model_of(source: str) -> str | None:
    """Returns the repository on the Hub that a checkpoint is, or was made from; None where that is not known.

    To be called when the checkpoint is opened: a folder that is gone has the name of a repository. Broken files are
    warned of.

    Args:
        source: what was opened: a repository, a folder, whose card or results may know more, or a file; or nothing.
    """
    if not source:
        return None
    if Path(source).exists():
        files = [Path(source) / name for name in (CARD_FILE, RESULTS_FILE)]
        try:
            known = [read_json(file).get("base_model") for file in files if file.is_file()]
        except (OSError, ValueError) as error:
            logger.warning(f"What {source} was made from is not known: {error}")
            return None
        return next((name for name in known if isinstance(name, str)), None)
    try:
        validate_repo_id(source)
    except HFValidationError:
        return None
    return source if "/" in source else None


def record_conversion(folder: Path, source: str, layout: str, dtype: str, features: str) -> None:
    """Writes card.json into the folder of a converted model, for its page; of a local source no more than its name.

    Args:
        folder: of the model.
        source: what was converted: a repository, a folder or a file.
        layout: whose files those are.
        dtype: of the converted weights.
        features: how far those of the model are from those of the original.
    """
    name = Path(source).resolve().name if Path(source).exists() else source
    facts: dict[str, Any] = {"conversion": {"source": f"{name} ({layout})", "dtype": dtype, "features": features}}
    if (base_model := base_model_of(source)) is not None:
        facts["base_model"] = base_model
    (folder / CARD_FILE).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
