"""What a process has held. Linux and macOS."""

import resource
import sys


def peak_megabytes() -> float:
    """Returns the most memory that this process has held, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
