"""Find the attachments of a container by its ID or a prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..model.errors import InvalidConfiguration
from ..state.directory import State
from .records import read_records

if TYPE_CHECKING:
    from ..model.attachments import Attachment


def attachments_of(state_directory: str, container: str) -> list[Attachment]:
    """Return the attachments of a container, oldest first; `container` is its ID or a prefix.

    Raises:
        InvalidConfiguration: no container matches, or several do.
    """
    records = read_records(State(state_directory)).attachments
    found = [attachment for attachment in records if attachment.id.container_id.startswith(container)]
    identities = {attachment.id.container_id for attachment in found}
    if container in identities:
        identities = {container}
    if not identities:
        raise InvalidConfiguration(
            f"no container ID begins with {container!r}",
            f"List all containers with `quantum-nat --state-dir {state_directory} list`.",
        )
    if len(identities) > 1:
        raise InvalidConfiguration(
            f"{container!r} is ambiguous: {', '.join(sorted(identities))}", "Give a longer prefix."
        )
    return [attachment for attachment in found if attachment.id.container_id in identities]
