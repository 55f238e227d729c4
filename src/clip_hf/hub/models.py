"""Models to the Hub from Python: what `push_to_hub` of a model and of a trainer does."""

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from clip_hf.hub.files import collected_files
from clip_hf.hub.push import Destination, Pushed, plan_push, push
from clip_hf.model_card.facts import facts_of_options

logger = logging.get_logger(__name__)


def push_folder(folder: Path, destination: Destination, message: str, **options: Any) -> Pushed:
    """Pushes a saved model with the code that opens it, and returns where it is.

    Args:
        folder: of the model.
        destination: where to.
        message: of the commit.
        options: of `collected_files`.

    Raises:
        PushError: it did not succeed.
        ValueError: as `collected_files`.
    """
    with collected_files(folder, destination.repo_id, with_code=True, **options) as files:
        plan = plan_push(destination, files)
        for path in plan.kept:
            logger.warning(f"{path} of {destination.repo_id} was written by hand, and stays: replace_page replaces it")
        return push(plan, message)


def push_model(
    model: PreTrainedModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: bool | str | None = None,
    max_shard_size: int | str = "50GB",
    **options: Any,
) -> str:
    """Pushes the model, its code and a page, and returns the address; the processor's own `push_to_hub` adds it.

    Args:
        model: a `ClipHfModel`.
        repo_id: NAMESPACE/NAME.
        commit_message: of the commit.
        commit_description: what else is to be said of it.
        token: that may write; by default the one of this machine.
        max_shard_size: of one file of weights, in bytes or as "5GB".
        options: the others of `Destination`, such as `private` or `revision`; and facts for the page, as
            `facts_of_options` takes them, such as `license` or `tags`.

    Raises:
        PushError: it did not succeed; the message says what to do.
        ValueError: an option is none, or the repository's name.
    """
    names = {one.name for one in fields(Destination)} & options.keys()
    where = {name: value for name in names if (value := options.pop(name)) is not None}
    destination = Destination(repo_id, token=token if isinstance(token, str) else None, **where)
    facts = facts_of_options(options)
    facts["tags"] = [*(model.model_tags or []), *facts.get("tags", [])]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        message = "\n\n".join(filter(None, (commit_message or "Upload a CLIP model", commit_description)))
        return push_folder(Path(folder), destination, message, needs_processor=False, **facts).url
