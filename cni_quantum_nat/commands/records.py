"""All records of a state directory, read once, under its lock."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from .progress import tracked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..model.attachments import Attachment
    from ..model.errors import CniError
    from ..state.directory import State


class Records:
    """What is on record.

    attachments: those whose record can be read. damaged: why the others cannot.
    leftovers: those of earlier boots, which count for nothing.
    owners: of all other records, also of those that cannot be read: what the kernel has in their name has a reason.
    unreadable: the owners of those others.
    """

    def __init__(self, state: State) -> None:
        self.damaged: list[CniError] = []
        self.leftovers: list[Attachment] = []
        identities = list(state.identities())
        found = tracked(state.attachments(self.damaged, self.leftovers), "Reading the records", len(identities))
        self.attachments: list[Attachment] = list(found)
        leftovers = {attachment.id for attachment in self.leftovers}
        self.owners = {identity.owner for identity in identities if identity not in leftovers}
        self.unreadable = self.owners - {attachment.id.owner for attachment in self.attachments}

    def of_backend(self, name: str) -> list[Attachment]:
        """Return the attachments whose rules this backend makes."""
        return [attachment for attachment in self.attachments if attachment.backend == name]


@contextmanager
def locked(state: State) -> Iterator[None]:
    """Keep everybody else, ADD and DEL too, from changing anything meanwhile."""
    state.lock()
    try:
        yield
    finally:
        state.unlock()
