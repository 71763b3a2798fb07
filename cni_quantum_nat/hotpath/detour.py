"""The only door from the hot path to the slow one. Each function says why it is taken rarely."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..slowpath.processes import Process
    from .backend import Backend
    from .rules import Element
    from .state import State
    from .table import Policy


def validate_configuration(configuration: dict[str, Any]) -> dict[str, Any]:
    """Validate a configuration that was not seen before, and return its normalised form; CniError(2) or (7)."""
    from ..slowpath.config import normalise

    return normalise(configuration)


def find_json_error(text: str) -> ValueError:
    """Return what is wrong with a text that is not JSON."""
    from ..slowpath.jsonerrors import find_error

    return find_error(text)


def build_table(elements: list[Element]) -> None:
    """Build the table, with these elements in it, in one transaction."""
    from ..slowpath.libnftables import build

    build(elements)


def replace_table(elements: list[Element]) -> None:
    """Build the table in place of one that is damaged, or of another version."""
    from ..slowpath.libnftables import replace

    replace(elements)


def add_policies(policies: list[Policy]) -> None:
    """Make the chains of policies that are not ordinary."""
    from ..slowpath.libnftables import add_policies as make

    make(policies)


def rehearse_table() -> None:
    """Check, without a change, that the kernel takes the table; CniError(50) when not."""
    from ..slowpath.libnftables import rehearse

    rehearse()


def iptables_backend(state: State) -> Backend:
    """Return the Backend Provider that starts iptables-restore."""
    from ..slowpath.iptables import IptablesBackend

    return IptablesBackend(state)


def holders_of_lock(descriptor: int) -> list[Process]:
    """Return the processes that have an open file locked."""
    from ..slowpath.processes import holders_of_lock as look_up

    return look_up(descriptor)


def holders_of(inode: int) -> list[Process]:
    """Return the processes that have a socket open."""
    from ..slowpath.processes import holders_of as look_up

    return look_up(inode)
