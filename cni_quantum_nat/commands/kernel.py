"""Read from the kernel what is installed for attachments, with either backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..backends.nftables.layout import SHARED, counts_refused
from ..model.attachments import IPTABLES, NFTABLES
from ..model.errors import CHECK_FAILED, IO_FAILURE, CniError
from ..nat.decision import IN_FORCE, UNCERTAIN, decide_all
from ..nat.records import here_of, standing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..backends.base import Installed
    from ..backends.nftables.rules import Element
    from ..model.attachments import Attachment
    from ..state.directory import State


class KernelRules(NamedTuple):
    """What is installed for one attachment.

    elements: of table inet quantum. rules: as iptables-save prints them. differences: from the record. flows: the number of
    connections so far. refused: the number of packets that allowFrom refused; None without it.
    """

    elements: list[Element]
    rules: list[str]
    differences: list[str]
    flows: int
    refused: int | None = None


def flows_by_owner(attachments: Iterable[Attachment], state: State) -> tuple[dict[str, int], list[CniError]]:
    """Return the number of connections so far by owner, and why others have none: their rules are missing or unreadable."""
    by_backend: dict[str, list[str]] = {}
    for attachment in attachments:
        if attachment.needs_rules:
            by_backend.setdefault(attachment.backend, []).append(attachment.id.owner)
    flows: dict[str, int] = {}
    troubles: list[CniError] = []
    for backend, owners in by_backend.items():
        try:
            counted = _count_elements(state) if backend == NFTABLES else _count_rules(state)
        except CniError as error:
            troubles.append(error)
            continue
        if counted is None:
            troubles.append(_missing(backend, state))
        else:
            flows |= {owner: counted.get(owner, 0) for owner in owners}
    return flows, troubles


def _missing(backend: str, state: State) -> CniError:
    what = (
        "table inet quantum is missing" if backend == NFTABLES else "the chains of quantum-nat are missing in iptables"
    )
    return CniError(
        CHECK_FAILED,
        f"{what}: no published port and no outbound NAT of these containers works",
        f"Repair it with `quantum-nat {state.option}reconcile`.",
    )


def _count_elements(state: State) -> dict[str, int] | None:
    """Count by owner; None if there is no table."""
    from ..backends.nftables.table import NftablesTable

    table = NftablesTable(state.realm)
    counted: dict[str, int] = {}
    try:
        if not table.exists():
            return None
        for set_name, owner, flows in table.counted_flows():
            if not counts_refused(set_name):
                counted[owner] = counted.get(owner, 0) + flows
    except OSError as error:
        raise CniError(IO_FAILURE, f"cannot read table inet quantum: {error.strerror}", "Run it as root.") from error
    finally:
        table.close()
    return counted


def _count_rules(state: State) -> dict[str, int] | None:
    """Count by owner; None if there are no rules."""
    from ..backends.iptables import counts as iptables_counts
    from ..backends.iptables.programs import PREFIXES

    counted: dict[str, int] = {}
    for family in PREFIXES:
        for owner, flows in iptables_counts.flows_by_owner(state, family).items():
            counted[owner] = counted.get(owner, 0) + flows
    return counted or None


def kernel_rules(attachment: Attachment, state: State) -> KernelRules:
    """Return what is installed for one attachment; raise CniError if it cannot be read."""
    return _by_iptables(attachment, state) if attachment.backend == IPTABLES else _by_nftables(attachment, state)


def _expected(attachment: Attachment, state: State) -> Installed:
    """Return what should be installed for the attachment: a host port may belong to its container's other network."""
    here = here_of(state)
    siblings = [other for other in state.siblings(attachment.id) if standing(other, here) in (IN_FORCE, UNCERTAIN)]
    installed = {one.attachment.id: one for one in decide_all([attachment, *siblings]).installed}
    return installed[attachment.id]


def _by_nftables(attachment: Attachment, state: State) -> KernelRules:
    from ..backends.nftables.provider import NftablesBackend
    from ..backends.nftables.rules import buckets_of, plan_rules
    from ..backends.nftables.table import NftablesTable

    backend, table = NftablesBackend(state), NftablesTable(state.realm)
    try:
        differences = backend.differences(_expected(attachment, state))
        shared = [port for port, mapping in attachment.host_ports.items() if mapping.sharing]
        buckets = [bucket for port in shared for bucket in buckets_of(port)]
        elements = [found for found in table.find([*plan_rules(attachment), *buckets]) if found is not None]
    finally:
        backend.close()
        table.close()
    own = [element for element in elements if element.owner == attachment.id.owner]
    common = [element for element in elements if element.owner == SHARED]
    refused = [element.flows for element in elements if element.is_counted and counts_refused(element.set_name)]
    flows = sum(e.flows for e in own if e.is_counted and not counts_refused(e.set_name))
    return KernelRules([*own, *common], [], differences, flows, sum(refused) if refused else None)


def _by_iptables(attachment: Attachment, state: State) -> KernelRules:
    from ..backends.iptables import counts as iptables_counts
    from ..backends.iptables.programs import PREFIXES, list_rules
    from ..backends.iptables.provider import IptablesBackend, names_of

    backend, names, owner = IptablesBackend(state), names_of(state), attachment.id.owner
    try:
        differences = backend.differences(_expected(attachment, state))
    finally:
        backend.close()
    rules = [
        f"{prefix} -t {table} {line}"
        for family, prefix in PREFIXES.items()
        for table, line in list_rules(family, names).rules
        if names.owner_of(line) == owner
    ]
    return KernelRules(
        [], rules, differences, sum(iptables_counts.flows_by_owner(state, family).get(owner, 0) for family in PREFIXES)
    )
