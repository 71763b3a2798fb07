"""The records of a state directory, by their standing here and now.

A pod's start waits for this module.
"""

from __future__ import annotations

from ..kernel.namespaces import life, own_namespace
from .decision import ELSEWHERE, IN_FORCE, OVER, UNCERTAIN, Here, standing_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..model.attachments import Attachment
    from ..model.errors import CniError
    from ..state.directory import State

    Tracked = Callable[[Iterable[Attachment], int], Iterable[Attachment]]


class Records:
    """All records.

    in_force: in force or uncertain. uncertain: those of them whose container cannot be seen from here.
    over: from an earlier boot, or of a container that is gone. leftovers: those of them from an earlier boot. elsewhere: from other
    host network namespaces. damaged: why other records cannot be read.
    owners: of all records, as rules name them. unreadable: of the records that cannot be read.
    """

    __slots__ = ("damaged", "elsewhere", "in_force", "leftovers", "over", "owners", "uncertain", "unreadable")

    def __init__(self, state: State, here: Here, tracked: Tracked | None = None) -> None:
        """Read all records. The cost grows with the number of containers: not for ADD, DEL or CHECK. tracked: shows progress."""
        self.in_force: list[Attachment] = []
        self.uncertain: list[Attachment] = []
        self.over: list[Attachment] = []
        self.leftovers: list[Attachment] = []
        self.elsewhere: list[Attachment] = []
        self.damaged: list[CniError] = []
        self.owners = {identity.owner for identity in state.identities()}
        self.unreadable = set(self.owners)
        found: Iterable[Attachment] = state.attachments(self.damaged)
        for attachment in tracked(found, len(self.owners)) if tracked else found:
            self.unreadable.discard(attachment.id.owner)
            self._add(attachment, standing(attachment, here))
            if attachment.boot_id not in ("", here.boot_id):
                self.leftovers.append(attachment)

    def _add(self, attachment: Attachment, worth: str) -> None:
        if worth in (IN_FORCE, UNCERTAIN):
            self.in_force.append(attachment)
        if worth == UNCERTAIN:
            self.uncertain.append(attachment)
        if worth == OVER:
            self.over.append(attachment)
        if worth == ELSEWHERE:
            self.elsewhere.append(attachment)

    @property
    def attachments(self) -> list[Attachment]:
        """All readable records of this boot, oldest first."""
        left = {attachment.id for attachment in self.leftovers}
        found = [a for a in (*self.in_force, *self.over, *self.elsewhere) if a.id not in left]
        return sorted(found, key=lambda attachment: (attachment.sequence, attachment.created_at))

    def of_backend(self, name: str) -> list[Attachment]:
        """Return the attachments in force that use this backend."""
        return [attachment for attachment in self.in_force if attachment.backend == name]


def here_of(state: State) -> Here:
    """Return this boot and this network namespace."""
    return Here(state.boot_id, own_namespace())


def standing(attachment: Attachment, here: Here) -> str:
    """Look at the container's network namespace, and return the record's standing."""
    seen = life(attachment.netns, attachment.netns_identity, attachment.netns_directory) if attachment.netns else ""
    return standing_of(attachment, here, seen)
