"""A mistake of the user ends a command with one clear line; a mistake of the program keeps its traceback."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@contextmanager
def told_in_a_line(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the program where an error is the user's: this package raised it on purpose, or it is of a given kind.

    Args:
        kinds: errors that are the user's whoever raises them, such as OSError while files are opened.

    Raises:
        SystemExit: there was such an error; its message is all that is shown, and the exit code is 1.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, kinds) or _is_raised_by_us(error):
            sys.exit(f"{Path(sys.argv[0]).name}: {error}")
        raise


def _is_raised_by_us(error: Exception) -> bool:
    # Not every error that begins here: a bug of ours begins in a line that raises nothing on purpose.
    place = traceback.extract_tb(error.__traceback__)[-1]
    return Path(place.filename).is_relative_to(PACKAGE) and (place.line or "").startswith("raise ")
