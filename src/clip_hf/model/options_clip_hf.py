"""Options given by name: one that does not exist is refused, and the nearest that does is named."""

import difflib
from collections.abc import Collection, Iterable


def reject_unknown_options(options: Iterable[str], known: Collection[str], owner: str) -> None:
    """Checks the names of options; transformers' own, which begin with an underscore, pass.

    Args:
        options: their names.
        known: names that exist.
        owner: what has these options, such as "tokenizer".

    Raises:
        TypeError: one does not exist; the message names it.
    """
    for name in options:
        if name not in known and not name.startswith("_"):
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(sorted(known))}"
            raise TypeError(f"{name} is no option of the {owner}; {hint}")
