"""All records of a state directory, read once, with progress for whoever waits."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..model.errors import InvalidConfiguration
from ..nat.records import Records, here_of
from .progress import tracked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..state.directory import State


def read_records(state: State) -> Records:
    """Read them; CniError(7) when there is no such directory."""
    require_directory(state)
    return Records(state, here_of(state), lambda found, count: tracked(found, "Reading the records", count))


def require_directory(state: State) -> None:
    """Refuse a directory that is none: a mistyped name would look like a host without containers."""
    state.check()
    if not state.exists() and state.option:
        raise InvalidConfiguration(
            f"there are no records in {state.directory}",
            "Name the networks' stateDir: quantum-nat --state-dir DIRECTORY. Without the option it is the usual one.",
        )


@contextmanager
def locked(state: State) -> Iterator[None]:
    """Keep everybody else, ADD and DEL too, from changing anything meanwhile."""
    state.lock()
    try:
        yield
    finally:
        state.unlock()
