"""Show progress on a terminal; print nothing if the output is not a terminal."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

Item = TypeVar("Item")


def tracked(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Yield the items, and show a progress bar up to `total`."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.progress import track  # only for commands that may take long

    yield from track(items, what, total, console=_console(), transient=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show a spinner while the block runs."""
    console = _console()
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)
