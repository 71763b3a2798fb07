"""A host without a kernel: the real NatManager and the real state directory over a backend that holds its rules in memory."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from cni_quantum_nat.backends.base import Applied, Backend, Change, Installed, Plan, RulesDamaged, is_of_network
from cni_quantum_nat.cni.configuration import normalise
from cni_quantum_nat.model.addresses import Address, Endpoint, Subnet
from cni_quantum_nat.model.attachments import (
    ALIVE,
    CANNOT_TELL,
    GONE,
    NFTABLES,
    SPREAD,
    Attachment,
    AttachmentId,
    Inbound,
    Outbound,
    PortMapping,
)
from cni_quantum_nat.model.errors import AlreadyThere, CniError
from cni_quantum_nat.model.settings import Settings
from cni_quantum_nat.model.units import HostPort, Overlaps
from cni_quantum_nat.nat.live import LivePorts, PublishedPort
from cni_quantum_nat.nat.records import Records
from cni_quantum_nat.state.directory import State

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from cni_quantum_nat.model.units import PortRange, Unit

OWN_NAMESPACE = (4, 1)
ANOTHER_NAMESPACE = (4, 2)
NO_HOST = {"refuseConflicts": False, "ipForwarding": False}


class Held:
    """What the kernel has under a unit: by owner, what that one's rules say."""

    def __init__(self, rules: dict[str, str], *, is_shared: bool = False) -> None:
        self.rules = rules
        self.is_shared = is_shared


class Taken(AssertionError):
    """A unit was taken from somebody who was not released."""


class SimulatedBackend(Backend):
    """Rules in memory: what backends/base.py says of a backend, and nothing else.

    table: by unit, who has it; None where there is none. is_older: made by an older version.
    """

    def __init__(self, name: str = NFTABLES, *, arbitrates: bool = True) -> None:
        self.name = name
        self.arbitrates = arbitrates
        self.table: dict[Unit, Held] | None = None
        self.is_older = False

    def holders(self, units: Collection[Unit]) -> tuple[dict[Unit, list[str]], set[Unit]]:
        table = self.table or {}
        wanted = Overlaps(units)
        found = {unit: list(held.rules) for unit, held in table.items() if wanted.of(unit)}
        return found, {unit for unit in found if table[unit].is_shared}

    def require_intact(self, families: Collection[int]) -> None:  # noqa: ARG002 - there is one table
        if self.is_older or self.table is None:
            raise RulesDamaged("there is no table, or an older one")

    def apply(self, change: Change) -> Applied:
        if self.is_older or (self.table is None and any(installed.units for installed in change.install)):
            raise RulesDamaged("there is no table, or an older one")
        if self.table is None:
            return Applied(lambda: None, [])
        before, after = (
            self.table,
            {unit: Held(dict(held.rules), is_shared=held.is_shared) for unit, held in self.table.items()},
        )
        wanted = [(unit, installed.attachment) for installed in change.install for unit in installed.units]
        if change.is_new and not change.members:
            if any(map(Overlaps(before).of, (unit for unit, _ in wanted))):
                raise AlreadyThere("add elements", 17)
        else:
            _delete(after, change)
        losers = {*change.orphans, *(a.id.owner for a in change.remove)}
        for unit, attachment in wanted:
            _install(after, unit, attachment, losers, change.members)
        for port, members in change.members.items():
            if port in after:
                after[port].rules = {owner: after[port].rules[owner] for owner in members if owner in after[port].rules}
                if not after[port].rules:
                    del after[port]
        self.table = after
        removed = {unit for a in change.remove for unit in a.address_units if isinstance(unit, Address)}

        def undo() -> None:
            self.table = before

        return Applied(undo, [unit for unit in removed if unit not in after])

    def differences(self, installed: Installed) -> list[str]:
        if self.table is None or self.is_older:
            return ["the table is missing or older"]
        owner = installed.attachment.id.owner
        return [
            f"{unit} is not as it should be"
            for unit in installed.units
            if unit not in self.table or self.table[unit].rules.get(owner) != rules_of(installed.attachment, unit)
        ]

    def rebuild(self, plan: Plan, known: Collection[str], expected: Iterable[Installed] = ()) -> None:  # noqa: ARG002
        strangers = self.table if self.table is not None and not self.is_older else {}
        self.table = holdings(plan)
        self.is_older = False
        planned = Overlaps(self.table)
        for unit, held in strangers.items():
            rest = {owner: rules for owner, rules in held.rules.items() if owner not in known}
            if rest and not planned.of(unit) and not held.is_shared:
                self.table[unit] = Held(rest)

    def owners(self, network: str) -> set[str]:
        return {owner for owner in self.all_owners() if is_of_network(owner, network)}

    def all_owners(self) -> set[str]:
        """Return who has anything."""
        return {owner for held in (self.table or {}).values() for owner in held.rules}

    def require(self) -> None:
        return None

    def close(self) -> None:
        return None


def holdings(plan: Plan) -> dict[Unit, Held]:
    """Return what the kernel has where all is as planned."""
    table: dict[Unit, Held] = {}
    for installed in plan.installed:
        for unit in installed.units:
            table.setdefault(unit, Held({}, is_shared=unit in plan.shared)).rules[installed.attachment.id.owner] = (
                rules_of(installed.attachment, unit)
            )
    return table


def _delete(table: dict[Unit, Held], change: Change) -> None:
    """Delete what the attachments that are removed had wanted, and all that orphans have."""
    wanted = {(unit, a.id.owner) for a in change.remove for unit in (*a.address_units, *a.host_ports)}
    for unit, held in list(table.items()):
        if held.is_shared and unit in change.members:
            continue
        for owner in list(held.rules):
            if owner in change.orphans or (unit, owner) in wanted:
                del held.rules[owner]
        if not held.rules:
            del table[unit]


def _install(
    table: dict[Unit, Held],
    unit: Unit,
    attachment: Attachment,
    losers: set[str],
    members: dict[HostPort, list[str]],
) -> None:
    """Put in what an attachment has of a unit; nobody may lose it who was not told."""
    owner = attachment.id.owner
    is_shared = isinstance(unit, HostPort) and bool(attachment.host_ports[unit].sharing)
    others = {o: rules for o, rules in table[unit].rules.items() if o != owner} if unit in table else {}
    if is_shared and isinstance(unit, HostPort):
        staying = {o: rules for o, rules in others.items() if o in members.get(unit, ())}
    else:
        staying = {}
    silently = set(others) - set(staying) - losers
    if silently:
        raise Taken(f"{unit} is taken from {', '.join(sorted(silently))}, who keeps the rest")
    table[unit] = Held({**staying, owner: rules_of(attachment, unit)}, is_shared=is_shared)


def rules_of(attachment: Attachment, unit: Unit) -> str:
    """Say what an attachment's rules for a unit would do."""
    if isinstance(unit, HostPort):
        mapping = attachment.host_ports[unit]
        return f"-> {attachment.published_endpoint(unit.family)} {mapping.container_port} {mapping.sharing}"
    if isinstance(unit, Subnet):
        return f"network {attachment.outbound.masquerade}"
    ports = sorted((m.protocol, m.host_port) for m in attachment.port_mappings if m.serves(unit.family))
    return f"masquerade {attachment.outbound.masquerade} by {ports}"


class Rejection(Exception):
    """A call failed with this CNI code."""


class Host:
    """A host on which nothing happens but calls. is_tracking: whether it has conntrack entries.

    lives: by path, what becomes of a container's network namespace. starts: by path, how often the container was started again: each
    time it has a new namespace. sees_namespaces: whether any can be seen from here.
    """

    is_tracking = False

    def __init__(self, directory: str, *, backend: SimulatedBackend | None = None) -> None:
        self.directory = directory
        self.backend = backend or SimulatedBackend()
        self.lives: dict[str, str] = {}
        self.starts: dict[str, int] = {}
        self.sees_namespaces = True
        self.clock = 0.0
        self.warnings: list[str] = []

    @property
    def state(self) -> State:
        return State(self.directory)

    @contextmanager
    def here(self) -> Iterator[None]:
        """Let the code look at this host instead of the real one."""
        with ExitStack() as stack:
            for target, replacement in (
                ("cni_quantum_nat.nat.records.life", self._life),
                ("cni_quantum_nat.nat.records.own_namespace", lambda: OWN_NAMESPACE),
                ("cni_quantum_nat.nat.manager.container_interface", lambda _: "cni0"),
                ("cni_quantum_nat.nat.manager.is_tracking", lambda: self.is_tracking),
                ("cni_quantum_nat.nat.manager.warn", lambda error: self.warnings.append(str(error))),
                ("cni_quantum_nat.nat.manager.Sysctls.enable_route_localnet", lambda *_: None),
            ):
                stack.enter_context(patch(target, replacement))
            yield

    def _life(self, path: str, identity: tuple[int, int], _directory: object) -> str:
        if not self.sees_namespaces:
            return CANNOT_TELL
        return self.lives.get(path, ALIVE) if identity == self.namespace_at(path) else GONE

    def namespace_at(self, path: str) -> tuple[int, int]:
        """Return the identity of what a path names."""
        return 4, 5 + self.starts.get(path, 0)

    def flush(self) -> None:
        """Let somebody flush the ruleset."""
        self.backend.table = None
        self.backend.is_older = False

    def age(self) -> None:
        """Let the table be one of an older version."""
        if self.backend.table is not None:
            self.backend.is_older = True

    def dies(self, container_id: str) -> None:
        """Let a container die, without a DEL."""
        self.lives[netns_of(container_id)] = GONE

    @contextmanager
    def manager(self) -> Iterator[LivePorts]:
        manager = LivePorts(self.state)
        manager._backends[self.backend.name] = self.backend
        with manager:
            yield manager

    def call(self, action: Callable[[LivePorts], object]) -> int:
        """Make a call, and return its CNI code, 0 for success."""
        try:
            with self.manager() as manager:
                action(manager)
        except CniError as error:
            return error.code
        return 0

    def add(self, attachment: Attachment) -> int:
        self.clock += 1
        attachment.created_at = self.clock
        if self.lives.get(attachment.netns) == GONE:
            del self.lives[attachment.netns]
            self.starts[attachment.netns] = self.starts.get(attachment.netns, 0) + 1
        attachment.netns_identity = self.namespace_at(attachment.netns)
        return self.call(lambda manager: manager.add(attachment, settings()))

    def remove(self, identity: AttachmentId, fallback: Attachment | None = None) -> int:
        return self.call(lambda manager: manager.remove(identity, lambda: fallback))

    def publish(self, identity: AttachmentId, port: int, container_port: int = 80) -> int:
        mapping = PortMapping(None, port, "tcp", container_port)
        return self.call(lambda manager: manager.publish(identity, [mapping], settings()))

    def unpublish(self, container_id: str, port: int) -> int:
        return self.call(lambda manager: manager.unpublish(container_id, PublishedPort("tcp", port, port)))

    def check(self, attachment: Attachment) -> int:
        return self.call(lambda manager: manager.check(attachment))

    def collect_garbage(self, network: str, valid: set[tuple[str, str]] | None) -> int:
        return self.call(lambda manager: manager.collect_garbage(network, valid, self.backend.name))

    def heal(self) -> int:
        return self.call(lambda manager: manager.heal(self.backend))

    def records(self) -> Records:
        with self.manager() as manager:
            return manager.records()

    def install(self, attachment: Attachment, units: Iterable[Unit] | None = None) -> None:
        """Let the kernel have what an attachment wants, or these units, whatever is on record."""
        self.backend.table = self.backend.table or {}
        for unit in [*attachment.address_units, *attachment.host_ports] if units is None else units:
            is_shared = isinstance(unit, HostPort) and bool(attachment.host_ports[unit].sharing)
            held = self.backend.table.setdefault(unit, Held({}, is_shared=is_shared))
            held.rules[attachment.id.owner] = rules_of(attachment, unit)

    def write(self, attachment: Attachment, *, boot_id: str = "") -> None:
        """Put a record in its place, of this boot or another."""
        state = self.state
        if boot_id:
            state._boot_id = boot_id
        state.lock()
        state.write(attachment)
        state.unlock()


def settings(**changed: Any) -> Settings:
    """Return a network's settings, without what would concern the real host."""
    return Settings({**normalise({}), **NO_HOST, **changed})


def netns_of(container_id: str) -> str:
    return f"/run/netns/{container_id}"


def attachment(
    container_id: str,
    address: str,
    *ports: int | PortRange,
    network: str = "net",
    sharing: str = "",
    sequence: int = 0,
) -> Attachment:
    """Return what a container wants: outbound NAT, and these ports and ranges; with `sharing`, the ports are shared."""
    assert sharing in ("", SPREAD)
    parsed = Endpoint.parse(address)
    return Attachment(
        AttachmentId(network, container_id, "eth0"),
        backend=NFTABLES,
        netns=netns_of(container_id),
        netns_identity=(4, 5),
        host_netns=OWN_NAMESPACE,
        endpoints=[Endpoint(parsed.address, parsed.prefix_length, "cni0")],
        port_mappings=[_mapping(port, sharing) for port in ports],
        outbound=Outbound((4,)),
        inbound=Inbound(),
        established_timeout_s=3600,
        created_at=float(sequence),
        sequence=sequence,
    )


def _mapping(port: int | PortRange, sharing: str) -> PortMapping:
    if isinstance(port, int):
        return PortMapping(None, port, "tcp", 80, sharing=sharing)
    return PortMapping(None, port.first, "tcp", port.first, size=port.last - port.first + 1)
