"""What the kernel has in the name of attachments, of either backend; None where it cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..model.attachments import IPTABLES, NFTABLES
from ..model.errors import CniError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..backends.nftables.rules import Element
    from ..model.attachments import Attachment
    from ..state.directory import State


class Held(NamedTuple):
    """The rules of one attachment.

    elements: of table inet quantum; rules: as iptables-save prints them. differences: what is missing, or other than
    it should be. flows: how many connections were counted.
    """

    elements: list[Element]
    rules: list[str]
    differences: list[str]
    flows: int


def flows_by_owner(attachments: Iterable[Attachment]) -> dict[str, int]:
    """Return by owner how many connections the kernel has counted; whose backend cannot be read is left out."""
    by_backend: dict[str, list[str]] = {}
    for attachment in attachments:
        by_backend.setdefault(attachment.backend, []).append(attachment.id.owner)
    flows: dict[str, int] = {}
    for backend, owners in by_backend.items():
        counted = _count_elements() if backend == NFTABLES else _count_rules()
        if counted is not None:
            flows |= {owner: counted.get(owner, 0) for owner in owners}
    return flows


def _count_elements() -> dict[str, int] | None:
    from ..backends.nftables.table import NftablesTable

    table = NftablesTable()
    counted: dict[str, int] = {}
    try:
        if not table.exists():
            return None
        for _, owner, _, flows in table.counted_flows():
            counted[owner] = counted.get(owner, 0) + flows
    except (CniError, OSError):
        return None  # not root, mostly: the records are still worth showing
    finally:
        table.close()
    return counted


def _count_rules() -> dict[str, int] | None:
    from ..backends.iptables import counts as iptables_counts
    from ..backends.iptables.programs import PREFIXES

    counted: dict[str, int] = {}
    try:
        for family in PREFIXES:
            for owner, flows in iptables_counts.flows_by_owner(family).items():
                counted[owner] = counted.get(owner, 0) + flows
    except (CniError, OSError):
        return None
    return counted


def held_by(attachment: Attachment, state: State) -> Held:
    """Look up the rules of one attachment; CniError where they cannot be read."""
    return (
        _held_by_iptables(attachment, state) if attachment.backend == IPTABLES else _held_by_nftables(attachment, state)
    )


def _held_by_nftables(attachment: Attachment, state: State) -> Held:
    from ..backends.nftables.layout import SLOTS
    from ..backends.nftables.provider import NftablesBackend
    from ..backends.nftables.rules import plan_rules, plan_shares
    from ..backends.nftables.table import NftablesTable

    backend, table = NftablesBackend(state), NftablesTable()
    try:
        differences = backend.differences(attachment)
        elements = [found for found in table.find(plan_rules(attachment)) if found is not None]
        for share in plan_shares(attachment):
            slots = table.find([share.slot(number) for number in range(SLOTS)])
            elements += [slot for slot in slots if slot is not None and slot.owner == attachment.id.owner]
    finally:
        backend.close()
        table.close()
    own = [element for element in elements if element.owner == attachment.id.owner]
    return Held(elements, [], differences, sum(element.flows for element in own if element.is_counted))


def _held_by_iptables(attachment: Attachment, state: State) -> Held:
    from ..backends.iptables import counts as iptables_counts
    from ..backends.iptables.programs import PREFIXES, list_rules
    from ..backends.iptables.provider import IptablesBackend
    from ..backends.iptables.text import owner_of

    backend, owner = IptablesBackend(state), attachment.id.owner
    try:
        differences = backend.differences(attachment)
    finally:
        backend.close()
    rules = [
        f"{prefix} -t {table} {line}"
        for family, prefix in PREFIXES.items()
        for table, line in list_rules(family).rules
        if owner_of(line) == owner
    ]
    return Held(
        [], rules, differences, sum(iptables_counts.flows_by_owner(family).get(owner, 0) for family in PREFIXES)
    )
