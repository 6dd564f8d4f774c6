"""How far a long loop has come, told through the `pdnet` logger; who listens decides how it looks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger("pdnet.progress")


@dataclass
class Progress:
    """State of one loop; carried by log records as `record.progress`.

    Attributes:
        label: what is being done.
        total: number of items; None while it is not known.
        done: items finished.
        note: a short word on the last item (a loss, a file name); the loop's body may set it.
    """

    label: str
    total: int | None
    done: int = 0
    note: str = ""


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, telling the progress logger after each."""
    for item, _ in track_with_note(items, label, total):
        yield item


def track_with_note(items: Iterable[T], label: str, total: int | None = None) -> Iterator[tuple[T, Progress]]:
    """As `track`, giving the loop's body the state to write a note into.

    Args:
        items: a collection, or what yields them one by one.
        label: what is being done.
        total: their number where only the caller knows it. Where nobody does, or it was wrong, it is told at the end.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    state = Progress(label, total)

    def tell() -> None:
        of = "" if state.total is None else f"/{state.total}"
        logger.info("%s %d%s %s", label, state.done, of, state.note, extra={"progress": state})

    for item in items:
        yield item, state
        state.done += 1
        tell()
    if state.done != state.total:
        state.total = state.done
        tell()


def tracker(label: str) -> Callable[[int, int], None]:
    """A callback `(done, total)` for code that counts by itself."""

    def tell(done: int, total: int) -> None:
        logger.info("%s %d/%d", label, done, total, extra={"progress": Progress(label, total, done)})

    return tell
