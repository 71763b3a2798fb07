"""Find the attachments of a container by its ID or a prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..model.errors import InvalidConfiguration
from .directories import states_of
from .records import read_all

if TYPE_CHECKING:
    import argparse

    from .records import Recorded


def attachments_of(arguments: argparse.Namespace, container: str) -> list[Recorded]:
    """Return the attachments of a container, oldest first; `container` is its ID or a prefix.

    Raises:
        InvalidConfiguration: no container matches, several do, or `container` is empty, as an unset variable of a shell is.
    """
    if not container:
        raise InvalidConfiguration("the container's ID is empty", "Name one: `quantum-nat list` has them.")
    states = states_of(arguments)
    recorded, damaged = read_all(states)
    found = [one for one in recorded if one.attachment.id.container_id.startswith(container)]
    identities = {one.attachment.id.container_id for one in found}
    if container in identities:
        identities = {container}
    if not identities:
        option = states[0].option if arguments.is_named else ""
        unreadable = [f"{error.message}. {error.details}" for error in damaged]
        raise InvalidConfiguration(
            f"no container ID begins with {container!r}",
            "\n".join((f"List all containers with `quantum-nat {option}list`.", *unreadable)),
        )
    if len(identities) > 1:
        raise InvalidConfiguration(
            f"{container!r} is ambiguous: {', '.join(sorted(identities))}", "Give a longer prefix."
        )
    return [one for one in found if one.attachment.id.container_id in identities]
