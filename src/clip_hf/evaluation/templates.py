"""Templates of prompts for zero-shot classification: two sets, and files with others.

A file has a template a line, each with one {} where the name of a class goes. Empty lines and lines that begin with #
are passed over.
"""

from pathlib import Path

from clip_hf.evaluation.class_names import read_text
from clip_hf.model.zero_shot_clip_hf import check_templates

TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("a photo of a {}.",),
    "general": (
        "a photo of a {}.",
        "a photo of one {}.",
        "a photo of several {}.",
        "a picture showing a {}.",
        "a snapshot of the {}.",
        "an image with a {} in it.",
        "a {}, seen from nearby.",
        "a {}, seen from far away.",
        "a {} in front of a plain background.",
        "a {} outdoors.",
        "a {} indoors.",
        "a {} in bad light.",
        "a blurred picture of a {}.",
        "a sharp picture of a {}.",
        "a coarse, tiny picture of a {}.",
        "a {}, cut off at the edge of the picture.",
        "a {}, half hidden.",
        "an old black and white photo of a {}.",
        "a drawing of a {}.",
        "a painting of a {}.",
        "a toy in the shape of a {}.",
        "my {}.",
        "this is a {}.",
        "{}",
    ),
}
"""Sets of templates by name."""


def load_templates(source: str) -> tuple[str, ...]:
    """Returns templates.

    Args:
        source: name of a set of `TEMPLATES`, or a file.

    Raises:
        ValueError: there is neither, or a line is no template.
    """
    if source in TEMPLATES:
        return TEMPLATES[source]
    if not Path(source).is_file():
        raise ValueError(f"templates is '{source}', but must be one of {', '.join(TEMPLATES)}, or a file of templates")
    lines = [line.strip() for line in read_text(source).split("\n")]
    try:
        return check_templates([line for line in lines if line and not line.startswith("#")])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
