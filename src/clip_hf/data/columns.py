"""Which columns of a table hold images, texts and ids."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

IMAGE_COLUMNS = (
    *("image", "img", "jpg", "file_name", "filepath", "file_path", "image_path", "path", "filename"),
    *("url", "image_url"),
)
TEXT_COLUMNS = ("captions", "caption", "text", "sentences", "sentence", "title", "txt")
ID_COLUMNS = ("id", "image_id", "key", "file_name")
"""Names under which data sets usually keep them, in small or capital letters; the first that is there is taken."""


class Columns(NamedTuple):
    """Names of a table's columns, None for the usual ones.

    Args:
        image: paths, bytes or images.
        text: a caption, or a list of them.
        id: of the image: captions whose ids agree belong to one image.
    """

    image: str | None = None
    text: str | None = None
    id: str | None = None


USUAL_COLUMNS = Columns()


def choose_column(name: str, available: Sequence[str], wanted: str | None, usual: Sequence[str], what: str) -> str:
    """Returns the column wanted, or the first usual one that is there.

    Args:
        name: of the table.
        available: its columns.
        wanted: by the user, None for a usual one.
        usual: names.
        what: it holds, in one word.

    Raises:
        ValueError: there is none.
    """
    found = _first_there((wanted,) if wanted else usual, available)
    if found is None:
        missing = f"no column '{wanted}'" if wanted else f"no column of {what}s ({', '.join(usual)})"
        raise ValueError(f"{name} has {missing}; there are {', '.join(available)}: name one of them")
    return found


def choose_columns(name: str, available: Sequence[str], wanted: Columns, row: Mapping[str, Any]) -> Columns:
    """Returns the columns of images and captions, and the one whose values name images, None if there is none.

    An image is named by `image_id`; else by its path; else by `id` or, in a tar file, `key`.

    Args:
        name: of the table.
        available: its columns.
        wanted: by the user.
        row: one row of it.

    Raises:
        ValueError: images or captions are missing.
    """
    image = choose_column(name, available, wanted.image, IMAGE_COLUMNS, "image")
    text = choose_column(name, available, wanted.text, TEXT_COLUMNS, "text")
    if wanted.id is not None:
        return Columns(image, text, choose_column(name, available, wanted.id, (), "id"))
    usual = ("image_id", *([image] if isinstance(row.get(image), str) else []), "id", "key")
    return Columns(image, text, _first_there(usual, available))


def _first_there(names: Sequence[str], available: Sequence[str]) -> str | None:
    """The column of the first name that there is, written as in the table."""
    there = {column.lower(): column for column in available} | {column: column for column in available}
    return next((there[name] for name in names if name in there), None)
