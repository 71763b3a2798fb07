"""Backend Provider for nftables: an attachment is elements of table `inet quantum`, added and deleted in one transaction.

The kernel is the arbiter: elements are added without a check, and looked up only if one is in the way.
A pod's start waits for this module.
"""

from __future__ import annotations

import posix
from errno import EEXIST

from ...kernel.stderr import warn
from ...model.addresses import Address
from ...model.attachments import NFTABLES
from ...model.errors import NOT_AVAILABLE, TRY_AGAIN_LATER, AlreadyThere, CniError, HasChanged, KernelRefused, NotThere
from ...model.ranges import LEAST
from ...model.units import HostPort, Overlaps
from ..base import Applied, Backend, RulesDamaged, is_of_network
from .layout import BUCKET, FILTERS, GOTO, SETS, SHARED, TABLE, is_filtered, ranges_set
from .rules import (
    Element,
    buckets_of,
    elements_of_port,
    endpoint_of,
    filter_sets_of,
    holding_of,
    lead_of,
    plan_rules,
    port_of,
    range_lead_of,
)
from .sharing import owners_of, redistribute
from .table import MISSING, NftablesTable, rules_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    Distribution = dict[HostPort, Sequence[Element | None]]

    from ...connections.counts import Flows
    from ...model.attachments import Attachment, PortMapping
    from ...model.units import Unit
    from ...state.directory import State
    from ..base import Change, Installed, Plan
    from .rules import Fields, Identity

_ATTEMPTS = 3  # the table can be flushed between two calls, but not three times in a row
# Of a range with more ports than these, all elements are listed: to look up a port takes as long as to list two elements.
_LOOKED_UP_AT_MOST = 1024
_RANGES = ranges_set("").encode()
_LEADS = frozenset(
    name for name in SETS if "endpoints" in name
)  # the sets whose elements show who has a port or a range
_LEGACY_TABLES = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")  # of iptables' legacy variant


class Difference:
    """Elements to delete and to add, in one transaction."""

    __slots__ = ("add", "delete")

    def __init__(self, delete: Iterable[Element] = (), add: Iterable[Element] = ()) -> None:
        self.delete = list(delete)
        self.add = list(add)

    def replace(self, present: Element | None, wanted: Element | None) -> None:
        """Note how to get from the present element to the wanted one."""
        if present is not None and wanted is not None and present.is_same(wanted):
            return
        if present is not None:
            self.delete.append(present)
        if wanted is not None:
            self.add.append(wanted)


class NftablesBackend(Backend):
    """Table `inet quantum` of this process's network namespace."""

    __slots__ = ("_may_have_ranges", "_state", "_table")

    name = NFTABLES
    arbitrates = True

    def __init__(self, state: State) -> None:
        self._state = state
        self._table = NftablesTable(state.realm)
        self._may_have_ranges = True

    def holders(self, units: Collection[Unit]) -> tuple[dict[Unit, list[str]], set[Unit]]:
        """Look up the elements that show who owns a unit, and the buckets of shared ports."""
        holders: dict[Unit, list[str]] = {}
        shared: set[Unit] = set()
        for unit, lead in self._find_holding(units).items():
            holders[unit] = [lead.owner]
            if lead.owner == SHARED and isinstance(unit, HostPort):
                shared.add(unit)
                holders[unit] = owners_of(self._table.find(buckets_of(unit)))
        return holders, shared

    def require_intact(self, families: Collection[int] = (4, 6)) -> None:  # noqa: ARG002 - one table has both
        """Check the table as a whole."""
        problems = self.damage()
        if problems:
            raise RulesDamaged("; ".join(problems))

    def _find_holding(self, units: Iterable[Unit]) -> dict[Unit, Element]:
        """Return what is taken of the units, and the elements that show it: of an overlapping range of ports, all of it."""
        asked: list[tuple[Unit, Element]] = []
        leads: list[tuple[Unit, Element]] = []
        for unit in units:
            if isinstance(unit, HostPort) and unit.size > _LOOKED_UP_AT_MOST:
                leads += [(unit, element) for name in _sets_of_leads(unit) for element in self._table.listed(name)]
            else:
                asked += [(unit, lead) for lead in self._leads(unit)]
        found = self._table.find([lead for _, lead in asked])
        leads += [(unit, lead) for (unit, _), lead in zip(asked, found) if lead is not None]
        holding: dict[Unit, Element] = {}
        for unit, lead in leads:
            held = holding_of(unit, lead) if isinstance(unit, HostPort) else unit
            if held is not None:
                holding[held] = lead
        return holding

    def _leads(self, unit: Unit) -> list[Element]:
        """Return the elements to look up for a unit: of a range, those of each port, and those of ranges that may overlap."""
        if not isinstance(unit, HostPort):
            return [lead_of(unit)]
        ports = [HostPort(unit.family, unit.protocol, n, unit.address) for n in range(unit.port, unit.last + 1)]
        # A range has so many ports at least: either one of these is in it, or it does not overlap.
        in_ranges = [*ports[::LEAST], ports[-1]] if self._may_have_ranges else []
        return [*map(lead_of, ports), *map(range_lead_of, in_ranges)]

    def apply(self, change: Change) -> Applied:
        """Change the elements."""
        elements = [e for installed in change.install for e in plan_rules(installed.attachment, installed.units)]
        if elements:
            self.require_intact()
        addresses: list[Address] = []
        difference = Difference(add=elements)
        for _ in range(_ATTEMPTS):
            try:
                if change.is_new and not change.members:
                    self._table.commit(add=elements, exclusive=True, generation=self._refuse_overlaps(change))
                else:
                    difference, addresses = self._find_difference(change, elements)
                    if self._table.is_older:
                        raise RulesDamaged("table inet quantum was made by an older version")
                    self.make(difference)
            except HasChanged:
                continue
            except NotThere:
                if elements:
                    self.require_intact()
                    self._add_parts(difference.add)
                continue
            return Applied(self._undo_of(difference), addresses)
        raise CniError(
            TRY_AGAIN_LATER,
            "table inet quantum changes faster than it can be worked on",
            "Find out what changes it: nft monitor.",
        )

    def _refuse_overlaps(self, change: Change) -> bytes:
        """Raise AlreadyThere where the kernel would not: it does not compare single ports with ranges, nor what a range contains.

        Return the generation of the ruleset that this holds for, empty if there is nothing to compare.
        """
        ports = [unit for installed in change.install for unit in installed.units if isinstance(unit, HostPort)]
        if not self._may_have_ranges:
            ports = [port for port in ports if port.size > 1]
        if not ports:
            return b""
        generation = self._table.generation()
        if self._find_holding(ports):
            raise AlreadyThere("add a port that overlaps with another one", EEXIST)
        return generation

    def differences(self, installed: Installed) -> list[str]:
        """Compare the table as a whole, and the elements."""
        problems = self.damage()
        if problems == [MISSING]:
            return problems
        elements = plan_rules(installed.attachment, installed.units)
        for element, found in zip(elements, self._table.find(elements)):
            problems += _difference(element, found)
        for port in shared_ports_of(installed):
            if installed.attachment.id.owner not in owners_of(self._table.find(buckets_of(port))):
                problems.append(f"no bucket of shared port {port} leads to it")
        return problems

    def damage(self) -> list[str]:
        """Describe what is wrong with the table as a whole: missing, older, or changed rules."""
        problem, found = self._table.state_of(self._state.boot_id)
        if problem:
            return [problem]
        self._may_have_ranges = _RANGES in found
        expected = self._state.read_fingerprint()
        if found == expected:
            return []
        if self._table.made_as == _digest(found):  # another state directory has made it so
            self._state.write_fingerprint(found)
            return []
        if not expected:
            return ["nothing is known here of how table inet quantum was made"]
        before, after = rules_in(expected), rules_in(found)
        altered = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
        return [f"chain {name} was altered" if name else "the table or a base chain was altered" for name in altered]

    def rebuild(self, plan: Plan, known: Collection[str], expected: Iterable[Installed] = ()) -> None:
        """Rebuild the table without a gap for packets."""
        from ...connections.counts import note_lost  # only where the table is lost

        lost = self._count_flows()
        is_there = self._table.exists()
        held: Distribution = {port: self._table.find(buckets_of(port)) for port in plan.shared} if is_there else {}
        elements = [*elements_of(plan), *_all_buckets(plan, held, known)]
        coming = [
            element for one in expected for element in (*plan_rules(one.attachment, one.units), *_first_buckets(one))
        ]
        try:
            if is_there:
                from .programs import replace  # libnftables

                elements += self._strangers(elements, known)
                replace(self._commented(elements), self._state.boot_id, coming)
            else:
                self._build(elements, coming)
        except CniError as error:
            self._rebuild_in_part(plan, _all_buckets(plan, held, known), error)
        self._note_made()
        note_lost(self._state, NFTABLES, lost)

    def owners(self, network: str) -> set[str]:
        """List all elements."""
        return {e.owner for e in self._table.owned_elements() if is_of_network(e.owner, network)}

    def require(self) -> None:
        """Unless the table exists, check that the kernel accepts it under another name."""
        if self._table.exists():
            self._table.check_layout()
        else:
            from .programs import rehearse  # libnftables, where the table is not there

            rehearse()

    def make(self, difference: Difference) -> None:
        """Change the elements in one transaction. The counts of deleted elements are kept."""
        self._table.commit(delete=difference.delete, add=difference.add)
        if any(element.flows for element in difference.delete):
            from ...connections.counts import add_gone  # 0.3 ms, only where there were connections
            from .counts import counted

            add_gone(self._state, NFTABLES, counted(difference.delete))

    def establish(self, difference: Difference) -> None:
        """Create the parts that the elements need, then change the elements. RulesDamaged if the table is gone."""
        try:
            self.make(difference)
        except NotThere:
            self.require_intact()
            self._add_parts(difference.add)
            self.make(difference)

    def close(self) -> None:
        """Close the socket."""
        self._table.close()

    def _note_made(self) -> None:
        """Keep the fingerprint of the table, so that a later call notices changes."""
        _, fingerprint = self._table.state_of(self._state.boot_id)
        self._may_have_ranges = _RANGES in fingerprint
        self._table.sign(self._state.boot_id, _digest(fingerprint))
        self._state.write_fingerprint(fingerprint)

    def _add_parts(self, elements: list[Element]) -> None:
        from .batch import NotCompiled, extension  # only for the first attachment that needs a part
        from .text import parts_of, present_parts

        present = present_parts(self._table.set_names(), has_timeout="established" in self._table.chains())
        try:
            policies = [element.policy for element in elements if element.policy is not None]
            messages = extension(present, present | parts_of(elements), policies, self._table.timeouts())
            self._table.transact(messages, f"add parts to table inet {TABLE}")
        except (NotCompiled, KernelRefused):
            from .programs import add_parts  # libnftables, as in _build()

            add_parts(present, elements)
        self._note_made()

    def _undo_of(self, difference: Difference) -> Callable[[], None]:
        return lambda: self._table.commit(delete=difference.add, add=difference.delete)

    def _find_difference(self, change: Change, elements: list[Element]) -> tuple[Difference, list[Address]]:
        """Look up everything that the change concerns. Return the difference, and the addresses that had connections."""
        wanted = {element.identity: element for element in elements}
        removed = [element for attachment in change.remove for element in plan_rules(attachment)]
        ports = [u for installed in change.install for u in installed.units if isinstance(u, HostPort)]
        of_ports = [element for port in ports for element in elements_of_port(port)]
        asked = {element.identity: element for element in (*of_ports, *removed, *elements)}
        found = {e.identity: e for e in self._table.find(list(asked.values())) if e is not None}
        for element in self._filters_of(ports, found.values()):
            of_ports.append(element)
            asked[element.identity] = found[element.identity] = element
        losers = {*change.orphans, *(attachment.id.owner for attachment in change.remove)}
        losers.update(installed.attachment.id.owner for installed in change.install)
        taken = {element.identity for element in of_ports}
        difference = Difference()
        for identity in asked:
            present = found.get(identity)
            if identity in wanted:
                difference.replace(present, wanted[identity])
            elif present is not None and (present.owner in losers or identity in taken):
                difference.replace(present, None)
        self._share(change, ports, found, difference)
        if change.orphans:
            self._remove_orphans(change, difference, wanted)
        return difference, _addresses_in_use(change.remove, found, losers)

    def _share(
        self, change: Change, ports: list[HostPort], found: dict[Identity, Element], difference: Difference
    ) -> None:
        """Add the changes of shared ports: their buckets, or all their elements if the last member leaves."""
        endpoints: dict[HostPort, dict[str, Fields]] = {}
        for installed in change.install:
            for port, mapping in shared_ports_of(installed).items():
                owner = installed.attachment.id.owner
                endpoints.setdefault(port, {})[owner] = endpoint_of(installed.attachment, port, mapping)
        ended = [p for p in ports if p not in change.members and _owner(found.get(lead_of(p).identity)) == SHARED]
        for port in (*change.members, *ended):
            buckets = self._table.find(buckets_of(port))
            members = change.members.get(port, [])
            for present, bucket in zip(buckets, redistribute(port, buckets, members, endpoints.get(port, {}))):
                difference.replace(present, bucket)
            if not members and port not in ports:
                shared = [e for e in self._present_elements_of(port) if e.owner == SHARED]
                gone = {element.identity for element in difference.delete}
                difference.delete += [element for element in shared if element.identity not in gone]

    def _remove_orphans(self, change: Change, difference: Difference, wanted: Collection[Identity]) -> None:
        """List all elements, and delete those of orphans. Their buckets go to the other members of the port."""
        known = {*wanted, *(element.identity for element in difference.delete)}
        ports: dict[HostPort, None] = {}
        for element in self._table.owned_elements():
            if element.owner not in change.orphans or element.identity in known:
                continue
            if BUCKET in SETS[element.set_name].key:
                ports[port_of(element)] = None
            else:
                difference.delete.append(element)
        for port in ports:
            if port not in change.members:
                buckets = self._table.find(buckets_of(port))
                members = [owner for owner in owners_of(buckets) if owner not in change.orphans]
                for present, bucket in zip(buckets, redistribute(port, buckets, members, {})):
                    difference.replace(present, bucket)
                if not members:
                    difference.delete += [e for e in self._present_elements_of(port) if e.owner == SHARED]

    def _present_elements_of(self, port: HostPort) -> list[Element]:
        """Look up all elements of a host port, except buckets."""
        present = [element for element in self._table.find(elements_of_port(port)) if element is not None]
        return [*present, *self._filters_of([port], present)]

    def _filters_of(self, ports: Iterable[HostPort], present: Collection[Element]) -> list[Element]:
        """List the elements of the filters of those ports whose policies, among the present elements, have filters."""
        filtered = {port_of(element) for element in present if _leads_to_filters(element)}
        concerned = (
            [port for port in (port_of(lead_of(port)) for port in ports) if port in filtered] if filtered else []
        )
        names = dict.fromkeys(name for port in concerned for name in filter_sets_of(port))
        return [element for name in names for element in self._table.listed(name) if port_of(element) in concerned]

    def _commented(self, elements: list[Element]) -> list[Element]:
        """Return copies with the owners as in the table's comments."""
        return [Element(e.set_name, e.key, e.data, self._table.comment_of(e), e.policy) for e in elements]

    def _strangers(self, planned: list[Element], known: Collection[str]) -> list[Element]:
        """Return the elements of owners without a record here, where they are in nobody's way.

        Not those of a port or a range that overlaps with a planned one, nor those that lead to a chain, whose conditions are on a record
        that is not here; nor what such a port has beside that.
        """
        problem, _ = self._table.state_of(self._state.boot_id)
        if problem:
            return []
        identities = {element.identity for element in planned}
        listed = [e for e in self._table.owned_elements() if e.owner not in known and e.identity not in identities]
        listed = [element for element in listed if SETS[element.set_name].part not in FILTERS.values()]
        taken = Overlaps(port_of(element) for element in planned if element.set_name in _LEADS)
        left = {e.key for e in listed if e.set_name in _LEADS and taken.of(port_of(e))}
        left |= {element.key for element in listed if SETS[element.set_name].data == (GOTO,)}
        return [e for e in listed if e.key not in left and e.key[:-1] not in left and e.owner != SHARED]

    def _build(self, elements: list[Element], coming: list[Element]) -> None:
        """Make the table where there is none: with what was compiled, or else by libnftables, which also says why the kernel refuses."""
        from .batch import NotCompiled, table  # only where the table is made
        from .text import default_parts, parts_of

        commented = self._commented(elements)
        try:
            policies = [element.policy for element in commented if element.policy is not None]
            messages = table(default_parts() | parts_of((*elements, *coming)), policies, commented, self._state.boot_id)
            self._table.transact(messages, f"make table inet {TABLE}")
        except (NotCompiled, KernelRefused):
            from .programs import build  # libnftables

            build(commented, self._state.boot_id, coming)

    def _rebuild_in_part(self, plan: Plan, buckets: list[Element], cause: CniError) -> None:
        """Build the table although the kernel refuses something: leave out the attachments that need it."""
        from .programs import build

        build([], self._state.boot_id)
        warn(cause)
        for installed in plan.installed:
            elements = plan_rules(installed.attachment, installed.units)
            try:
                self._add_parts(elements)
                self._table.commit(add=elements)
            except CniError as error:
                warn(CniError(error.code, f"{installed.attachment.id} is left out: {error.message}", error.details))
        self._table.commit(add=buckets)

    def _count_flows(self) -> Flows:
        """Count connections before the table is lost. If that fails, healing goes on."""
        from .counts import live_flows  # only where the table is lost

        try:
            return live_flows(self._table)
        except CniError as error:
            warn(error)
            return {}


def _digest(fingerprint: bytes) -> str:
    from _blake2 import blake2b  # only where the table was just made, or is not as this state directory knows it

    return blake2b(fingerprint, digest_size=16).hexdigest()


def elements_of(plan: Plan) -> list[Element]:
    """Return the elements of all attachments, each key once, without the buckets of shared ports."""
    return list({e.identity: e for i in plan.installed for e in plan_rules(i.attachment, i.units)}.values())


def _all_buckets(plan: Plan, held: Distribution, known: Collection[str]) -> list[Element]:
    """Return the buckets of all shared ports, see `planned_buckets`. Owners that are not in `known` keep theirs."""
    planned = []
    for port, members in plan.shared.items():
        present = held.get(port, ())
        staying = [owner for owner in owners_of(present) if owner not in known]
        planned += [bucket for bucket in planned_buckets(port, members, present, staying) if bucket]
    return planned


def planned_buckets(
    port: HostPort, members: list[Attachment], held: Sequence[Element | None], staying: list[str]
) -> list[Element | None]:
    """Return the buckets of a shared port, so that clients stay with their containers: for healing and `reconcile`.

    held: the present buckets. Where there are none, the result is as if the members had come one by one.
    staying: owners without a readable record that keep what they have.
    """
    endpoints = {member.id.owner: endpoint_of(member, port, member.host_ports[port]) for member in members}
    owners = list(dict.fromkeys([*endpoints, *staying]))
    if any(held):
        return redistribute(port, held, owners, endpoints)
    buckets: list[Element | None] = []
    for count in range(1, len(owners) + 1):
        buckets = redistribute(port, buckets, owners[:count], endpoints)
    return buckets


def _first_buckets(installed: Installed) -> list[Element]:
    """Return a bucket of each shared port, which shows the parts that it needs."""
    return [buckets_of(port)[0] for port in shared_ports_of(installed)]


def shared_ports_of(installed: Installed) -> dict[HostPort, PortMapping]:
    """Return the shared ports among what is installed."""
    if not any(mapping.sharing for mapping in installed.attachment.port_mappings):
        return {}
    units = set(installed.units)
    mappings = installed.attachment.host_ports
    return {port: mapping for port, mapping in mappings.items() if mapping.sharing and port in units}


def _sets_of_leads(port: HostPort) -> tuple[str, str]:
    """Return the names of the sets with the ports and the ranges that may overlap with a range."""
    single = HostPort(port.family, port.protocol, port.port, port.address)
    return lead_of(single).set_name, range_lead_of(single).set_name


def _leads_to_filters(element: Element) -> bool:
    return SETS[element.set_name].data == (GOTO,) and is_filtered(str(element.data[0]))


def _owner(element: Element | None) -> str | None:
    return element.owner if element else None


def _addresses_in_use(
    removed: list[Attachment], found: dict[Identity, Element], losers: Collection[str]
) -> list[Address]:
    """Return the addresses of removed attachments that had connections, without those that belong to another attachment by now."""
    addresses: dict[Address, None] = {}
    for attachment in removed:
        used = {4, 6} if attachment.had_earlier or any(m.sharing for m in attachment.port_mappings) else set()
        for element in plan_rules(attachment):
            held = found.get(element.identity)
            if element.is_counted and (held is None or held.flows):
                used.add(element.family)
        for unit in attachment.address_units:
            holder = _owner(found.get(lead_of(unit).identity))
            if isinstance(unit, Address) and unit.family in used and (holder is None or holder in losers):
                addresses[unit] = None
    return list(addresses)


def _difference(element: Element, found: Element | None) -> list[str]:
    if found is None:
        return [f"element {element} is missing"]
    if found.owner == element.owner:
        return [] if found.data == element.data else [f"element {element} was changed to {found}"]
    return [f"element {element} belongs to {found.owner or 'nobody'}"]


def has_other_plugins() -> bool:
    """Whether portmap or ipMasq may have rules on this host, whatever made them."""
    table = NftablesTable()
    try:
        return table.has_other_plugins() or any(map(_names_nat, _LEGACY_TABLES))
    except CniError as error:
        if error.code != NOT_AVAILABLE:
            raise
        return any(map(_names_nat, _LEGACY_TABLES))  # a kernel without nf_tables
    finally:
        table.close()


def _names_nat(path: str) -> bool:
    """Whether a file of table names, of which the kernel may have none, has nat."""
    try:
        file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return b"nat\n" in posix.read(file, 1024)
    finally:
        posix.close(file)
