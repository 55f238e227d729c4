"""Samples that cannot be read: counted, named, listed, and too many of them end the run."""

import json
import os
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

NUM_RECENT = 1000
_NUM_LOGGED_ONE_BY_ONE = 5


class TooManyBrokenSamplesError(RuntimeError):
    """More samples of a source are broken than are allowed to be, or all of them; the message sums them up."""


class BrokenSamples:
    """Counts of one process.

    Args:
        source_names: of all sources.
        max_fraction: share of the last 1,000 samples of a source that may be broken.
        list_file: every broken sample is added to it, as a JSON object a line; None for no list.

    Raises:
        ValueError: the share is not between 0 and 1.
    """

    def __init__(
        self,
        source_names: Sequence[str],
        max_fraction: float = 0.1,
        list_file: str | os.PathLike[str] | None = None,
    ) -> None:
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"max_broken_fraction is {max_fraction}, but must be between 0 and 1")
        self.source_names, self.max_fraction, self.list_file = list(source_names), max_fraction, list_file
        self.num_read = [0] * len(source_names)
        self.num_broken = [0] * len(source_names)
        self._recent: list[deque[int]] = [deque() for _ in source_names]  # numbers of the last 1,000 that were broken
        self._reasons: list[Counter[str]] = [Counter() for _ in source_names]

    def begin(self) -> None:
        """Takes out of the list what is not counted: that of another run, or of steps that are taken again."""
        if self.list_file is not None and Path(self.list_file).exists():
            with open(self.list_file, encoding="utf-8") as file:
                lines = file.readlines()
            Path(self.list_file).write_text("".join(lines[: sum(self.num_broken)]), encoding="utf-8")

    def count_whole(self, source: int) -> None:
        """Notes that a sample could be read."""
        self.num_read[source] += 1

    def count_broken(self, source: int, sample_id: str, reason: str) -> None:
        """Notes, logs and lists a broken sample.

        Args:
            source: its number among the sources.
            sample_id: names it.
            reason: why it is broken.

        Raises:
            TooManyBrokenSamplesError: it is one too many.
        """
        self.num_read[source] += 1
        self.num_broken[source] += 1
        number, name = self.num_broken[source], self.source_names[source]
        if self.list_file is not None:
            Path(self.list_file).parent.mkdir(parents=True, exist_ok=True)
            # Names of files may hold bytes that are no UTF-8; JSON has escapes for them.
            with open(self.list_file, "a", encoding="utf-8", errors="backslashreplace") as file:
                entry = {"source": name, "sample_id": sample_id, "reason": reason}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        if number <= _NUM_LOGGED_ONE_BY_ONE or number.bit_count() == 1:  # then the 8th, 16th, 32nd, ...
            message = f"{name}: sample {sample_id} is broken and passed over, {number:,} so far: {reason}"
            logger.warning(message.encode(errors="backslashreplace").decode())
        self._reasons[source][reason.replace(sample_id, "...")[:120]] += 1
        recent = self._recent[source]
        recent.append(self.num_read[source])
        while recent[0] <= self.num_read[source] - NUM_RECENT:
            recent.popleft()
        if len(recent) > self.max_fraction * NUM_RECENT:
            raise TooManyBrokenSamplesError(
                f"{self.source_names[source]}: {len(recent)} of the last {NUM_RECENT:,} samples are broken, more than "
                f"max_broken_fraction={self.max_fraction} allows. {self.summary()}"
            )

    def summary(self) -> str:
        """Returns how many samples of each source are broken, and why."""
        counts = []
        for name, read, broken, reasons in zip(
            self.source_names, self.num_read, self.num_broken, self._reasons, strict=True
        ):
            why = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(5))
            counts.append(f"{name}: {broken:,} of {read:,} samples are broken" + (f" ({why})" if why else ""))
        where = f". All are listed in {self.list_file}" if self.list_file and any(self.num_broken) else ""
        return ". ".join(counts) + where

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts, as numbers that JSON can hold."""
        recent = [list(numbers) for numbers in self._recent]
        return {"num_read": list(self.num_read), "num_broken": list(self.num_broken), "recent": recent}

    def load_state_dicts(self, states: Sequence[dict[str, Any]]) -> None:
        """Takes over the counts of former processes; of what was broken lately, those of the first of them."""
        for source in range(len(self.source_names)):
            self.num_read[source] = sum(state["num_read"][source] for state in states)
            self.num_broken[source] = sum(state["num_broken"][source] for state in states)
            since = self.num_read[source] - states[0]["num_read"][source] if states else 0
            recent = states[0]["recent"][source] if states else []
            self._recent[source] = deque(number + since for number in recent)
