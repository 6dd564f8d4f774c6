"""How far a long loop has come, told through the `pdnet` logger; who listens decides how it looks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger("pdnet.progress")


@dataclass
class Progress:
    """State of one loop; carried by log records as `record.progress`.

    Attributes:
        label: what is being done.
        total: number of items.
        done: items finished.
        note: a short word on the last item (a loss, a file name); the loop's body may set it.
    """

    label: str
    total: int
    done: int = 0
    note: str = ""


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, telling the progress logger after each."""
    for item, _ in track_with_note(items, label, total):
        yield item


def track_with_note(items: Iterable[T], label: str, total: int | None = None) -> Iterator[tuple[T, Progress]]:
    """As `track`, giving the loop's body the state to write a note into."""
    if total is None:
        items = list(items)
        total = len(items)
    state = Progress(label, total)
    for item in items:
        yield item, state
        state.done += 1
        logger.info("%s %d/%d %s", label, state.done, total, state.note, extra={"progress": state})


def tracker(label: str) -> Callable[[int, int], None]:
    """A callback `(done, total)` for code that counts by itself."""

    def tell(done: int, total: int) -> None:
        logger.info("%s %d/%d", label, done, total, extra={"progress": Progress(label, total, done)})

    return tell
