"""Decide what a call changes: from the facts, which attachment owns which host ports and addresses afterwards. No I/O, no clock.

The same rules serve ADD, DEL, CHECK, GC, healing, `reconcile` and a network's move to another backend, whatever the backend:

- A unit is a host port or a range of them, an address, or a network CIDR. It is taken, refused and released as a whole; a host port
  is in the way of every range that it is in, and so is a range that overlaps.
- A host port belongs to its owner for as long as that attachment is in force, or may be. Another attachment of the same
  container waits for it, and gets it when the owner gives it up. A shared port has several members.
- An address belongs to the attachment that was given it last. The former owner loses everything it has.
- An attachment that is no longer in force loses everything as soon as another one wants any part of it.

docs/development/decision.md lists every combination with its outcome; tests/unit/nat/test_decision.py runs them.
A pod's start waits for this module.
"""

from __future__ import annotations

from ..backends.base import MOST_MEMBERS, Installed, Plan
from ..model.attachments import ALIVE, CANNOT_TELL, NOWHERE
from ..model.errors import HostPortConflict
from ..model.units import HostPort, Overlaps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..model.attachments import Attachment, AttachmentId, PortMapping
    from ..model.units import Unit

# The standing of a record, here and now.
IN_FORCE = "in force"
UNCERTAIN = (
    "uncertain"  # its container may be alive: it loses nothing, except an address that another container was given
)
OVER = "over"  # it is from an earlier boot, or its container's network namespace is gone
ELSEWHERE = "elsewhere"  # it is from another host network namespace that uses the same state directory
UNREADABLE = "unreadable"  # the record is damaged, or has a newer format
NO_RECORD = "no record"

_MAY_HOLD = (IN_FORCE, UNCERTAIN, UNREADABLE, NO_RECORD)


class Here:
    """This boot of the kernel and this host network namespace: a record in force is from both."""

    __slots__ = ("boot_id", "netns")

    def __init__(self, boot_id: str, netns: tuple[int, int]) -> None:
        self.boot_id = boot_id
        self.netns = netns


def standing_of(attachment: Attachment, here: Here, life: str) -> str:
    """Return the standing of an attachment's record.

    life: whether the container's network namespace exists, see kernel.namespaces. An attachment of the Python API has no namespace, and stays
    in force until it is removed.
    """
    if attachment.boot_id not in ("", here.boot_id):
        return OVER
    if attachment.host_netns not in (NOWHERE, here.netns):
        return ELSEWHERE
    if not attachment.netns or life == ALIVE:
        return IN_FORCE
    return UNCERTAIN if life == CANNOT_TELL else OVER


class Holder:
    """Who owns a unit in the kernel. owner: the name in its rules. attachment: its record, None if there is none or it cannot be read."""

    __slots__ = ("attachment", "owner", "standing")

    def __init__(self, owner: str, standing: str, attachment: Attachment | None = None) -> None:
        self.owner = owner
        self.standing = standing
        self.attachment = attachment


class Facts:
    """What is known before anything changes.

    before: the attachment's own record. elsewhere: its record, if that is from another host network namespace.
    others: the other records in force of the same container, and of containers that would lose something.
    `holders`: by unit, as they are in the kernel, who owns it. A unit that overlaps with none of them is free.
    shared: the units that are shared in the kernel.
    """

    __slots__ = ("_held", "_ports", "before", "elsewhere", "holders", "others", "shared")

    def __init__(
        self,
        before: Attachment | None = None,
        others: Iterable[Attachment] = (),
        holders: dict[Unit, list[Holder]] | None = None,
        shared: Iterable[Unit] = (),
    ) -> None:
        self.before = before
        self.elsewhere: Attachment | None = None
        self.others = list(others)
        self.holders: dict[Unit, list[Holder]] = {}
        self._held = Overlaps()
        for unit, holding in (holders or {}).items():
            for holder in holding:
                self.note_holder(unit, holder)
        self.shared = set(shared)
        self._ports: dict[AttachmentId, Overlaps] = {}

    def note_holder(self, unit: Unit, holder: Holder) -> None:
        """Add an owner of a unit."""
        self._held.add(unit)
        holding = self.holders.setdefault(unit, [])
        if holder not in holding:
            holding.append(holder)

    def forget_holders(self) -> None:
        """Forget what the kernel has shown: it is looked at once more."""
        self._held = Overlaps()
        self.holders.clear()
        self.shared.clear()

    def held(self, unit: Unit) -> list[Unit]:
        """Return what is taken of a unit: as the kernel has it, so of an overlapping range all of it."""
        return self._held.of(unit)

    def holders_of(self, unit: Unit) -> list[Holder]:
        """Return who owns a unit or something of it, each once."""
        holding = (holder for held in self.held(unit) for holder in self.holders[held])
        return list({holder.owner: holder for holder in holding}.values())

    def ports_of(self, attachment: Attachment) -> Overlaps:
        """Return the host ports that one of `others` wants. Cached, because a container may have tens of thousands."""
        if attachment.id not in self._ports:
            self._ports[attachment.id] = Overlaps(attachment.host_ports)
        return self._ports[attachment.id]


class Decision:
    """What to do.

    installed: the units that each attachment has afterwards; for successors, the units that they gain.
    released: attachments that lose everything: rules, record, conntrack entries.
    orphans: owners without a readable record that lose all their rules.
    members: by shared port, the owners that share it afterwards, present members first.
    waiting: what its record should say an attachment waits for, where it says something else.
    """

    __slots__ = ("installed", "members", "orphans", "released", "waiting")

    def __init__(self) -> None:
        self.installed: list[Installed] = []
        self.released: dict[AttachmentId, Attachment] = {}
        self.orphans: set[str] = set()
        self.members: dict[HostPort, list[str]] = {}
        self.waiting: dict[AttachmentId, tuple[str, ...]] = {}

    @property
    def is_plain(self) -> bool:
        """Whether the decision concerns only the attachment itself."""
        return not (self.released or self.orphans or self.members or len(self.installed) > 1)


def decide_add(wanted: Attachment, facts: Facts) -> Decision:
    """Decide what an attachment gets, and from whom. HostPortConflict if a host port belongs to another container."""
    decision = Decision()
    if facts.before is None and any(h.owner == wanted.id.owner for held in facts.holders.values() for h in held):
        decision.orphans.add(wanted.id.owner)  # its record is lost: only the kernel knows what else it had
    units: list[Unit] = list(wanted.address_units)
    waiting: list[HostPort] = []
    for unit in wanted.address_units:
        for holder in _others(facts, unit, wanted.id):
            _release(decision, holder)
    for port, mapping in wanted.host_ports.items():
        holders = _staying(facts, decision, port, wanted.id)
        # Its next generation waits on for what it does not have, whoever has that by now.
        waits_on = bool(holders) and port.name in wanted.waits_for
        if waits_on or any(_is_of_sibling(holder, wanted.id) for holder in holders):
            waiting.append(port)
        else:
            _take_port(decision, facts, port, mapping, wanted, holders)
            units.append(port)
    decision.installed.append(Installed(wanted, units))
    _note_waiting(decision, facts, wanted, waiting)
    losers = _losers(facts, decision)
    _leave_shared(decision, facts, losers)
    _give_to_successors(decision, facts, losers, taken=set(units))
    return decision


def decide_remove(removed: list[Attachment], facts: Facts) -> Decision:
    """Decide who gets the units of the removed attachments."""
    decision = Decision()
    decision.released = {attachment.id: attachment for attachment in removed}
    _leave_shared(decision, facts, removed)
    _give_to_successors(decision, facts, removed, taken=set())
    return decision


def expected_units(attachment: Attachment, facts: Facts) -> list[Unit]:
    """Return what an attachment should have: everything except the host ports that another attachment of its container has."""
    ports = [p for p in attachment.host_ports if not any(_is_of_sibling(h, attachment.id) for h in facts.holders_of(p))]
    return [*attachment.address_units, *ports]


def decide_all(attachments: Iterable[Attachment]) -> Plan:
    """Decide what all attachments have, for healing and `reconcile`. Pass attachments that are in force or uncertain."""
    ordered = sorted(attachments, key=_age)
    plan = Plan()
    standing = {attachment.id: attachment for attachment in ordered}
    holders: dict[Unit, list[Attachment]] = {}
    waiting: list[tuple[HostPort, Attachment]] = []
    ports = {attachment.id: attachment.host_ports for attachment in ordered}
    seen = Overlaps()
    for attachment, unit in _claims(ordered, ports):
        found = dict.fromkeys(holder for held in seen.of(unit) for holder in holders.get(held, ()))
        seen.add(unit)
        holding = [holder for holder in found if holder.id in standing]
        if holding and isinstance(unit, HostPort):
            if any(attachment.id.is_sibling_of(holder.id) for holder in holding):
                waiting.append((unit, attachment))
                continue
            if may_share(unit, attachment, holding):
                holders[unit] = [*holding, attachment]
                continue
            if unit.name in attachment.waits_for:
                continue  # its sibling shared the port with others, who share it in another way
        for former in holding:
            plan.superseded.append(standing.pop(former.id))
        holders[unit] = [attachment]
    held: dict[AttachmentId, list[Unit]] = {identity: [] for identity in standing}
    for unit, holding in _settle(standing, holders, waiting).items():
        for holder in holding:
            held[holder.id].append(unit)
        if isinstance(unit, HostPort) and ports[holding[0].id][unit].sharing:
            plan.shared[unit] = holding
    plan.installed = [Installed(standing[identity], units) for identity, units in held.items()]
    return plan


def _claims(
    ordered: list[Attachment], ports: dict[AttachmentId, dict[HostPort, PortMapping]]
) -> list[tuple[Attachment, Unit]]:
    """Return what each attachment wants; last the ports that it waits for, or the older of two siblings would always have a port."""
    claims: list[tuple[Attachment, Unit]] = []
    waiting: list[tuple[Attachment, Unit]] = []
    for attachment in ordered:
        claims += [(attachment, unit) for unit in attachment.address_units]
        for port in ports[attachment.id]:
            (waiting if port.name in attachment.waits_for else claims).append((attachment, port))
    return claims + waiting


def _settle(
    standing: dict[AttachmentId, Attachment],
    holders: dict[Unit, list[Attachment]],
    waiting: list[tuple[HostPort, Attachment]],
) -> dict[Unit, list[Attachment]]:
    """Return the owners of each unit, without those who lost everything; who waited longest for a free port or range gets it."""
    left = {unit: [holder for holder in holding if holder.id in standing] for unit, holding in holders.items()}
    settled = {unit: holding for unit, holding in left.items() if holding}
    taken = Overlaps(settled if waiting else ())
    for port, attachment in waiting:
        if attachment.id in standing and not taken.of(port):
            settled[port] = [attachment]
            taken.add(port)
    return settled


def may_share(port: HostPort, newcomer: Attachment, members: Iterable[Attachment]) -> bool:
    """Whether the newcomer may share the host port with these members: all of them share it in the same way."""
    mapping = newcomer.host_ports[port]
    return bool(mapping.sharing) and all(
        port in member.host_ports
        and member.host_ports[port].sharing == mapping.sharing
        and member.inbound.conditions == newcomer.inbound.conditions
        and member.inbound.filters_of(member.host_ports[port]) == newcomer.inbound.filters_of(mapping)
        and member.backend == newcomer.backend
        for member in members
    )


def _age(attachment: Attachment) -> tuple[int, float]:
    """Order by sequence number. Records of older versions have none, so they come first, by time."""
    return attachment.sequence, attachment.created_at


def _others(facts: Facts, unit: Unit, identity: AttachmentId) -> list[Holder]:
    return [holder for holder in facts.holders_of(unit) if holder.owner != identity.owner]


def _staying(facts: Facts, decision: Decision, port: HostPort, identity: AttachmentId) -> list[Holder]:
    """Return who else has a host port, once those who lose their address are gone and their successors have taken over."""
    staying = []
    for holder in _others(facts, port, identity):
        if holder.owner in decision.orphans:
            continue
        if holder.attachment is None or holder.attachment.id not in decision.released:
            staying.append(holder)
        else:
            successors = _successors(facts, decision, port, holder.attachment.id)
            staying += [Holder(successor.id.owner, IN_FORCE, successor) for successor, _ in successors]
    return [holder for holder in staying if holder.owner != identity.owner]


def _successors(
    facts: Facts, decision: Decision, port: HostPort, loser: AttachmentId
) -> Iterator[tuple[Attachment, HostPort]]:
    """Yield what attachments of the same container get of a host port or range that becomes free, the oldest first.

    That is what they wait for, if nobody who stays has any of it, or shares it with them.
    """
    waiting = [a for a in facts.others if a.id.is_sibling_of(loser) and a.id not in decision.released]
    taken = Overlaps()
    for attachment in sorted(waiting, key=_age):
        for wanted in facts.ports_of(attachment).of(port):
            assert isinstance(wanted, HostPort)  # noqa: S101 - for the type checker: only ports overlap with a port
            if not taken.of(wanted) and _may_follow(facts, decision, wanted, attachment):
                taken.add(wanted)
                yield attachment, wanted


def _may_follow(facts: Facts, decision: Decision, port: HostPort, successor: Attachment) -> bool:
    """Whether the successor may have the port beside those who stay: of a range, another one may have a part."""
    losers = {attachment.id.owner for attachment in _losers(facts, decision)}
    staying = [holder for holder in facts.holders_of(port) if holder.owner not in losers]
    if port not in facts.shared:
        return not staying
    known = [holder.attachment for holder in staying if holder.attachment is not None and holder.standing in _MAY_HOLD]
    return not known or may_share(port, successor, known)


def _losers(facts: Facts, decision: Decision) -> list[Attachment]:
    """Return the records of those who lose what they have: the attachment's own, which it gets anew, comes first."""
    return [*([facts.before] if facts.before is not None else []), *decision.released.values()]


def _is_of_sibling(holder: Holder, identity: AttachmentId) -> bool:
    """Whether the owner is a sibling that may still be in force."""
    if holder.attachment is None or holder.standing not in (IN_FORCE, UNCERTAIN):
        return False
    return holder.attachment.id.is_sibling_of(identity)


def _take_port(  # noqa: PLR0913, PLR0917 - the facts of one port
    decision: Decision,
    facts: Facts,
    port: HostPort,
    mapping: PortMapping,
    wanted: Attachment,
    holders: list[Holder],
) -> None:
    """Take a host port from owners that are no longer in force. HostPortConflict if an owner may be in force."""
    staying = [holder for holder in holders if holder.standing in _MAY_HOLD]
    if staying:
        known = [holder.attachment for holder in staying if holder.attachment is not None]
        is_shared = port in facts.shared
        if not (is_shared and mapping.sharing and may_share(port, wanted, known)):
            taken = _taken_by(staying[0], port, facts)
            raise _conflict(taken, staying[0], mapping, is_shared=taken in facts.shared)
    for holder in holders:
        if holder not in staying:
            _release(decision, holder)
    if mapping.sharing:
        decision.members[port] = [*(holder.owner for holder in staying), wanted.id.owner]
        if len(decision.members[port]) > MOST_MEMBERS:
            raise HostPortConflict(
                f"host port {port} is shared by {MOST_MEMBERS} containers already",
                "Publish another port, or remove one of them.",
            )


def _release(decision: Decision, holder: Holder) -> None:
    if holder.attachment is None or holder.standing == ELSEWHERE:
        decision.orphans.add(holder.owner)
    else:
        decision.released[holder.attachment.id] = holder.attachment


def _note_waiting(decision: Decision, facts: Facts, wanted: Attachment, waiting: list[HostPort]) -> None:
    """Note who waits for a port, so that healing decides likewise: of two siblings, the older does not always have it."""
    waits_for = tuple(port.name for port in waiting)
    if waits_for != wanted.waits_for:
        decision.waiting[wanted.id] = waits_for
    ports = [unit for unit in decision.installed[0].units if isinstance(unit, HostPort)]
    for other in facts.others:
        if other.id.is_sibling_of(wanted.id) and other.id not in decision.released:
            wanted_too = [unit for port in ports for unit in facts.ports_of(other).of(port)]
            names = dict.fromkeys(unit.name for unit in wanted_too if isinstance(unit, HostPort))
            passed_over = tuple(name for name in names if name not in other.waits_for)
            if passed_over:
                decision.waiting[other.id] = (*other.waits_for, *passed_over)


def _leave_shared(decision: Decision, facts: Facts, losers: list[Attachment]) -> None:
    """Remove the losers from the shared ports that they share no longer; the other members stay."""
    gone = {loser.id.owner for loser in losers}
    for loser in losers:
        for port in loser.host_ports:
            if port in facts.shared:
                staying = [h.owner for h in facts.holders[port] if h.owner not in gone and h.standing != OVER]
                decision.members.setdefault(port, staying)


def _give_to_successors(decision: Decision, facts: Facts, losers: list[Attachment], taken: set[Unit]) -> None:
    """Give released host ports to attachments of the same container that wait for them, the oldest first."""
    if not facts.others:
        return
    gains: dict[AttachmentId, tuple[Attachment, list[Unit]]] = {}
    now_taken = Overlaps(taken)
    for loser in losers:
        for port in loser.host_ports:
            if port in taken or not _has(facts, port, loser):
                continue
            # Only a part of a range may be taken: who waits for the rest gets that.
            for successor, gained in _successors(facts, decision, port, loser.id):
                if now_taken.of(gained):
                    continue
                now_taken.add(gained)
                gains.setdefault(successor.id, (successor, []))[1].append(gained)
                waits_for = decision.waiting.get(successor.id, successor.waits_for)
                if gained.name in waits_for:
                    decision.waiting[successor.id] = tuple(name for name in waits_for if name != gained.name)
                if gained in decision.members:
                    decision.members[gained].append(successor.id.owner)
    decision.installed += [Installed(attachment, units, in_addition=True) for attachment, units in gains.values()]


def _has(facts: Facts, port: HostPort, attachment: Attachment) -> bool:
    """Whether the attachment has the port in the kernel, or nobody has: it cannot pass on a port of another owner."""
    holders = facts.holders_of(port)
    return not holders or any(holder.owner == attachment.id.owner for holder in holders)


def _taken_by(holder: Holder, port: HostPort, facts: Facts) -> HostPort:
    """Return what an owner has of a host port or range; all of it for a successor, which has nothing yet."""
    for held in facts.held(port):
        common = port.common_with(held) if isinstance(held, HostPort) else None
        if common is not None and any(other.owner == holder.owner for other in facts.holders[held]):
            return common
    return port


def _conflict(port: HostPort, holder: Holder, mapping: PortMapping, *, is_shared: bool) -> HostPortConflict:
    if is_shared:
        how = " in another way" if mapping.sharing else ""
        return HostPortConflict(
            f"host port {port} is shared by other containers{how}",
            "Publish another port, or give all networks the same sharedPorts, sharedAffinity, conditions, allowFrom and publishOn.",
        )
    if holder.attachment is not None:
        return HostPortConflict(
            f"host port {port} is already in use by {holder.attachment.id}",
            "Publish another port, or remove that container first."
            if holder.standing == IN_FORCE
            else f"Whether that container still runs cannot be told from here: {holder.attachment.netns} is in another mount "
            "namespace. Publish another port, or remove that container with its runtime.",
        )
    if holder.standing == UNREADABLE:
        return HostPortConflict(
            f"host port {port} is already in use by {holder.owner}, whose record cannot be read",
            "Publish another port, or remove that container first; quantum-nat doctor says what is wrong with the record.",
        )
    if ":" in holder.owner:
        return HostPortConflict(
            f"host port {port} is already in use by {holder.owner.partition(':')[0]}, which another state directory has on record",
            "Publish another port, or remove that container first. All networks of a host should have the same stateDir.",
        )
    return HostPortConflict(
        f"host port {port} is already in use by {holder.owner or 'a rule of unknown owner'}, which has no record here",
        "If nothing uses it any more: quantum-nat reconcile. Another state directory may have its record: quantum-nat doctor.",
    )
