"""All records of a state directory, read once, with progress for whoever waits."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ..nat.records import Records, here_of
from .directories import missing
from .progress import tracked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..model.attachments import Attachment
    from ..model.errors import CniError
    from ..state.directory import State


class Recorded(NamedTuple):
    """An attachment, and the state directory that has its record."""

    state: State
    attachment: Attachment


def read_all(states: list[State]) -> tuple[list[Recorded], list[CniError]]:
    """Return the attachments of all state directories, oldest first, and why others cannot be read."""
    found: list[Recorded] = []
    damaged: list[CniError] = []
    for state in states:
        records = Records(state, here_of(state))
        found += (Recorded(state, attachment) for attachment in records.attachments)
        damaged += records.damaged
    if len(states) > 1:  # their sequence numbers are not comparable
        found.sort(key=lambda one: one.attachment.created_at)
    return found, damaged


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
        raise missing(state)


@contextmanager
def locked(state: State) -> Iterator[None]:
    """Keep all other calls, ADD and DEL included, from changing anything meanwhile."""
    state.lock()
    try:
        yield
    finally:
        state.unlock()
