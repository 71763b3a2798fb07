"""Shows on a terminal that long work goes on; says nothing to whatever else reads along."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

Item = TypeVar("Item")


def tracked(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Yield the items, with a bar that says how many of `total` are done."""
    from rich.progress import track  # only commands that may take long need it

    yield from track(items, what, total, console=_console(), transient=True, disable=not _console().is_terminal)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that something goes on whose length nobody knows."""
    console = _console()
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)
