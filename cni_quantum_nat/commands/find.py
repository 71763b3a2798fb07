"""The attachments of the container that a person names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..model.errors import CniError, InvalidConfiguration
from ..state.directory import State

if TYPE_CHECKING:
    from ..model.attachments import Attachment


def attachments_of(state_directory: str, container: str) -> list[Attachment]:
    """Return the attachments of a container, named by its ID or the beginning of it, oldest first.

    Raises: InvalidConfiguration when no container is meant, or several are.
    """
    damaged: list[CniError] = []
    found = [a for a in State(state_directory).attachments(damaged) if a.id.container_id.startswith(container)]
    identities = {attachment.id.container_id for attachment in found}
    if container in identities:
        identities = {container}
    if not identities:
        raise InvalidConfiguration(
            f"no container on record has an ID that begins with {container!r}",
            f"quantum-nat list shows all that {state_directory} has.",
        )
    if len(identities) > 1:
        raise InvalidConfiguration(f"{container!r} may be {', '.join(sorted(identities))}", "Say more of the ID.")
    return sorted((a for a in found if a.id.container_id in identities), key=lambda a: a.created_at)
