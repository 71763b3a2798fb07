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


def read_records(state: State, *, progress: bool = False) -> Records:
    """Read all records. CniError(7) if there is no such directory. progress: show progress."""
    require_directory(state)
    shown = (lambda found, count: tracked(found, "Reading the records", count)) if progress else None
    return Records(state, here_of(state), shown)


def require_directory(state: State, *, usual_too: bool = False) -> None:
    """Refuse a directory that does not exist: a mistyped name would look like a host without containers.

    usual_too: also refuse the usual one, which does not exist before the first container.
    """
    state.check()
    if not state.exists() and (state.option or usual_too):
        raise InvalidConfiguration(
            f"there is no state directory {state.directory}",
            "If the networks have another stateDir, name it: quantum-nat --state-dir DIRECTORY. "
            "If nothing was ever added, there is nothing to do.",
        )


@contextmanager
def locked(state: State) -> Iterator[None]:
    """Keep all other calls, ADD and DEL included, from changing anything meanwhile."""
    state.lock()
    try:
        yield
    finally:
        state.unlock()
