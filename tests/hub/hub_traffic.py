"""What the test Hub was asked, and the faults that tests switch on for some of it."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

SETTLE_SECONDS = 30.0


@dataclass
class Exchange:
    """One request as it was served: sizes are those of the bodies that really went over the wire."""

    method: str
    path: str
    authorized: bool
    byte_range: str | None
    status: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True)
class Refusal:
    """Answers with an error status, and with `Retry-After` and `RateLimit` where they are given."""

    status: int
    retry_after_seconds: int | None = None
    rate_limit: str | None = None


@dataclass(frozen=True)
class Disconnection:
    """Closes the connection once this many bytes of the body have gone up, or down, the wire."""

    after_bytes: int
    during: Literal["upload", "download"]


@dataclass(frozen=True)
class Delay:
    """Answers as usual, but only after a while."""

    seconds: float


@dataclass
class Fault:
    """A misbehaviour, the requests that meet it, and how many of them will (`None`: all of them)."""

    kind: Refusal | Disconnection | Delay
    method: str | None
    path: str
    times: int | None
    hits: int = 0

    def strikes(self, exchange: Exchange) -> bool:
        return (
            (self.times is None or self.hits < self.times)
            and self.method in (None, exchange.method)
            and re.search(self.path, exchange.path) is not None
        )


class Traffic:
    """Everything that has been asked, in order of arrival, and the faults now switched on."""

    def __init__(self) -> None:
        self._exchanges: list[Exchange] = []
        self._faults: list[Fault] = []
        self._in_flight = 0
        self._changed = threading.Condition()

    @contextmanager
    def record(self, exchange: Exchange) -> Iterator[Fault | None]:
        """Keeps the exchange while it is served, and hands over the fault that strikes it, if any."""
        with self._changed:
            self._exchanges.append(exchange)
            self._in_flight += 1
            fault = next((one for one in self._faults if one.strikes(exchange)), None)
            if fault is not None:
                fault.hits += 1
        try:
            yield fault
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    @contextmanager
    def switch_on(self, fault: Fault) -> Iterator[Fault]:
        """Lets the fault strike for as long as the context lasts."""
        with self._changed:
            self._faults.append(fault)
        try:
            yield fault
        finally:
            with self._changed:
                self._faults.remove(fault)

    def exchanges(self) -> list[Exchange]:
        """All exchanges so far, once those under way are over: a client may be quicker than its server thread."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._in_flight == 0, SETTLE_SECONDS):
                raise TimeoutError(f"{self._in_flight} requests are still being served after {SETTLE_SECONDS} s")
            return list(self._exchanges)


def matching(exchanges: list[Exchange], method: str, path: str = "") -> list[Exchange]:
    """The exchanges with this method whose path the regular expression finds."""
    return [exchange for exchange in exchanges if exchange.method == method and re.search(path, exchange.path)]
