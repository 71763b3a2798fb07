"""NAT Manager: gather the facts, let nat/decision.py decide, and commit, with an undo for each step.

A record is written before the kernel changes, and removed after it, so that DEL or GC after an interrupted call finds what to undo.
Everything runs under the lock of the state directory, except deleting conntrack entries: no other call depends on that, so it comes after.
A pod's start waits for this module.
"""

from __future__ import annotations

from ..backends.base import Change, Installed, RulesDamaged
from ..backends.nftables.layout import IPV6_LOCALHOST_ALIAS
from ..backends.nftables.provider import NftablesBackend, has_other_plugins
from ..connections.tracker import ConnectionTracker, is_tracking
from ..kernel.routes import container_interface
from ..kernel.stderr import warn
from ..kernel.sysctls import Sysctls
from ..model.addresses import Address
from ..model.attachments import IPTABLES, NFTABLES, Attachment, AttachmentId
from ..model.errors import (
    CHECK_FAILED,
    CLEAN_UP_INCOMPLETE,
    NEWER_VERSION,
    NOT_AVAILABLE,
    STATE_DAMAGED,
    TRY_AGAIN_LATER,
    AlreadyThere,
    CniError,
    HostPortConflict,
    InvalidConfiguration,
    KernelRefused,
)
from ..model.units import HostPort, Overlaps
from ..ports.allocation import allocate_ports, check_host_listeners, recall_ports
from ..ports.mappings import keep_live_changes
from ..state.record import is_plain
from .decision import (
    ELSEWHERE,
    IN_FORCE,
    NO_RECORD,
    UNCERTAIN,
    UNREADABLE,
    Decision,
    Facts,
    Holder,
    decide_add,
    decide_all,
    decide_remove,
    expected_units,
)
from .records import Records, here_of, standing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Self

    from ..backends.base import Applied, Backend
    from ..model.attachments import PortMapping
    from ..model.settings import Settings
    from ..model.units import Unit
    from ..state.directory import State

_ATTEMPTS = 3  # the rules can change between two looks, but not three times in a row


class _HasHealed(Exception):
    """The rules were rebuilt, so the facts about them are out of date."""


class NatManager:
    """Installs, checks and removes attachments under the lock of the state directory. Use it in `with`."""

    __slots__ = ("_afterwards", "_backends", "_gone", "_here", "_sysctls", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self._backends: dict[str, Backend] = {}
        self._sysctls = Sysctls()
        self._afterwards: list[Callable[[ConnectionTracker], object]] = []
        self._gone: dict[Address, None] = {}  # addresses that connections may be left of

    def __enter__(self) -> Self:
        self.state.lock()
        self._here = here_of(self.state)
        return self

    def __exit__(self, *_: object) -> None:
        # Release the lock first: the rest can take a while, and no other call needs to wait for it.
        self.state.unlock()
        # After a failure too: each entry belongs to a step that was not undone, and whoever calls again does not find it.
        if self._afterwards or self._gone:
            self._delete_entries()
        for backend in self._backends.values():
            backend.close()

    def require_backend(self, name: str) -> None:
        """Check that the backend can make rules here. CniError(50) if it cannot."""
        self._backend(name).require()

    def add(self, attachment: Attachment, settings: Settings) -> None:
        """Install an attachment in place of what it had before. If that fails, everything is as it was."""
        facts = self._gather(attachment.id)
        is_reload = self._keep_live_changes(attachment, facts, settings)
        if not attachment.needs_rules and not attachment.withdrawn:
            self.remove(attachment.id)
            return
        self._find_host_interfaces(attachment)
        attachment.host_netns = self._here.netns
        attachment.had_earlier = facts.before is not None
        numbers = self.state.numbers()
        try:
            self._choose_host_ports(attachment, facts, settings, numbers.last_ports)
            before = facts.before
            if before is not None and before.wishes == attachment.wishes:
                # It keeps its place among its siblings, and so the host ports that they wait for.
                attachment.sequence, attachment.created_at = before.sequence, before.created_at
            else:
                attachment.sequence = numbers.next_sequence()
        finally:
            numbers.close()
        undo: list[Callable[[], None]] = []
        try:
            decision = self._commit(attachment, facts, undo, ip_forwarding=settings.ip_forwarding)
        except BaseException as error:
            run_all(undo, error)
            raise
        if is_reload:
            self.state.forget_set_aside(attachment.id)
        self._conclude(attachment, decision, attachment.port_mappings)

    def _conclude(self, attachment: Attachment, decision: Decision, published: Iterable[PortMapping]) -> None:
        """Remove what others lost by a change that cannot fail any more, and old UDP entries to what was published."""
        for former in decision.released.values():
            self.state.remove(former.id)
        self._note_released(attachment, decision)
        udp = [mapping for mapping in published if mapping.protocol == "udp"]
        if udp:
            self._afterwards.append(lambda tracker: tracker.delete_stale_udp(udp, attachment.published_families))

    def remove(self, attachment_id: AttachmentId, fallback: Callable[[], Attachment | None] | None = None) -> None:
        """Remove what the attachment owns, and nothing else. If it owns nothing, do nothing.

        `fallback` returns what the call itself knows about an attachment that has no record.
        """
        facts = self._gather(attachment_id)
        if facts.before is None:
            self._remove_leftovers(attachment_id)
        known = facts.before or (fallback() if fallback else None)
        if known is not None and (facts.before is not None or known.needs_rules):
            self._remove(known, facts)
        if facts.elsewhere is None:
            if (
                facts.before is not None
                and facts.before.has_live_changes
                and standing(facts.before, self._here) == IN_FORCE
            ):
                self.state.set_aside(facts.before)
            self.state.remove(attachment_id)

    def check(self, attachment: Attachment, *, follows_default_route: bool = False) -> None:
        """Compare the call, the record and the kernel. CniError(103) lists all differences.

        follows_default_route: use the external interfaces on record, which are those of the default route at ADD.
        """
        facts = self._gather(attachment.id)
        if facts.before is not None and self._is_same_life(attachment, facts.before):
            keep_live_changes(attachment, facts.before)
        self._find_host_interfaces(attachment)
        if facts.before is not None:
            recall_ports(attachment, [facts.before])
            if follows_default_route:
                attachment.outbound.external_interfaces = facts.before.outbound.external_interfaces
        problems = _differences_in_record(facts.before, attachment)
        if attachment.needs_rules:
            if facts.others:
                self._find_holders(attachment, facts, attachment.host_ports)
            backend = self._backend(attachment.backend)
            problems += backend.differences(Installed(attachment, expected_units(attachment, facts)))
        if problems:
            raise CniError(
                CHECK_FAILED,
                f"{attachment.id} is not as it was set up: {'; '.join(problems)}",
                f"Repair it: quantum-nat {self.state.option}reconcile",
            )

    def move_network(self, network: str, settings: Settings) -> None:
        """Move a network's attachments to the backend that its configuration names now, without interrupting traffic."""
        for attachment in self.records().in_force:
            if attachment.id.network != network or attachment.backend == settings.backend:
                continue
            moved = Attachment.from_record(attachment.as_record())
            settings.apply_to(moved)
            facts = self._gather(attachment.id)
            moved.had_earlier = True
            undo: list[Callable[[], None]] = []
            try:
                decision = self._install(moved, facts, undo)
            except BaseException as error:
                run_all(undo, error)
                raise
            self._note_released(moved, decision)

    def collect_garbage(self, network: str, valid: set[tuple[str, str]] | None, backend_name: str) -> None:
        """Remove the attachments of a network that are not in `valid`; without `valid`, those whose network namespace is gone.

        backend_name: the backend in the network's configuration. A failure does not stop it: CniError(106) lists all failures at the end.
        """
        records = self.records()
        failures = []
        for attachment in (*records.in_force, *records.over):
            if attachment.id.network == network and self._is_garbage(attachment, records, valid):
                try:
                    # A record of another boot counts as lost. Its rules exist if somebody restored the ruleset.
                    self.remove(attachment.id, lambda attachment=attachment: attachment)  # type: ignore[misc]
                except CniError as error:
                    failures.append(f"{attachment.id}: {error.message}")
        known = {AttachmentId(network, *names).owner for names in valid or ()}
        self._remove_damaged(network, known if valid is not None else None)
        if valid is not None:
            known |= {identity.owner for identity in self.state.identities()}
            for name in {NFTABLES, backend_name}:
                orphans = self._backend(name).owners(network) - known
                if orphans:
                    self._apply(name, Change(orphans=orphans))
        self.state.forget_networks()
        if failures:
            raise CniError(CLEAN_UP_INCOMPLETE, f"GC of network {network} failed in part: {'; '.join(failures)}")

    def _is_garbage(self, attachment: Attachment, records: Records, valid: set[tuple[str, str]] | None) -> bool:
        if attachment in records.over:
            return True
        if valid is not None:
            return (attachment.id.container_id, attachment.id.interface) not in valid
        if attachment in records.uncertain:
            warn(left_alone(attachment))
        return False

    def _remove_damaged(self, network: str, known: Collection[str] | None) -> None:
        """Remove unreadable records of a network whose owners are not in `known`; without `known`, none."""
        for identity in [identity for identity in self.state.identities() if identity.network == network]:
            try:
                self.state.read(identity)
            except CniError as error:
                if known is None or identity.owner in known or error.code == NEWER_VERSION:
                    warn(error)
                else:
                    self.state.remove(identity)

    def records(self) -> Records:
        """Read all records. Grows with the number of containers: not for ADD, DEL or CHECK."""
        return Records(self.state, self._here)

    def heal(
        self,
        backend: Backend,
        expected: Iterable[Installed] = (),
        without: AttachmentId | None = None,
        instead: Attachment | None = None,
    ) -> None:
        """Rebuild a backend's rules from all records in force; `instead` replaces the one that is being changed."""
        records = self.records()
        for error in records.damaged:
            warn(error)
        attachments = [attachment for attachment in records.in_force if attachment.id != without]
        plan = decide_all([*attachments, *([instead] if instead is not None else [])])
        backend.rebuild(plan.of_backend(backend.name), records.owners - records.unreadable, expected)
        self.state.note_rebuild()
        for attachment in (*plan.superseded, *records.leftovers):
            self.state.remove(attachment.id)
        self._afterwards.append(lambda tracker: tracker.delete_untranslated(records.in_force))

    def _commit(
        self, attachment: Attachment, facts: Facts, undo: list[Callable[[], None]], *, ip_forwarding: bool
    ) -> Decision:
        """Do what an ADD does, and note how to undo each step."""
        undo.append(self._sysctls.restore)
        if ip_forwarding:
            self._enable_forwarding(attachment)
        decision = self._install(attachment, facts, undo)
        self._enable_route_localnet(attachment)
        self._enable_ipv6_localhost(attachment)
        return decision

    def _install(self, attachment: Attachment, facts: Facts, undo: list[Callable[[], None]]) -> Decision:
        """Write the record, then make the rules. Look up owners only if something is in the way."""
        generations = facts.before.generations if facts.before is not None else []
        is_shared = any(mapping.sharing for mapping in attachment.port_mappings)
        is_new = self._backend(attachment.backend).arbitrates and not generations and not is_shared
        former_ports = facts.before.host_ports if facts.before is not None else ()
        units = dict.fromkeys((*attachment.address_units, *attachment.host_ports, *former_ports))
        if not is_new or self._other_backends(attachment):
            self._find_holders(attachment, facts, units)
        undo.append(lambda: self._restore_record(attachment.id, facts.before or facts.elsewhere))
        attachment.replaces = [former for former in generations if former.wishes != attachment.wishes]
        self.state.write(attachment)
        for _ in range(_ATTEMPTS):
            decision = decide_add(attachment, facts)
            self._note_waiting(decision, [attachment, *facts.others])
            try:
                self._apply_all(attachment, decision, generations, undo, is_new=is_new and decision.is_plain)
            except (AlreadyThere, _HasHealed):
                is_new = False
                self._find_holders(attachment, facts, units)
                continue
            break
        else:
            raise KernelRefused("add elements that were free a moment ago", 0, "Find out what adds them: nft monitor.")
        if attachment.replaces:
            attachment.replaces = []
            self.state.write(attachment)
        return decision

    def _note_waiting(self, decision: Decision, attachments: list[Attachment]) -> None:
        for attachment in attachments if decision.waiting else ():
            if attachment.id in decision.waiting:
                attachment.waits_for = decision.waiting[attachment.id]
                self.state.write(attachment)

    def _apply_all(
        self,
        attachment: Attachment,
        decision: Decision,
        generations: list[Attachment],
        undo: list[Callable[[], None]],
        *,
        is_new: bool,
    ) -> None:
        """Apply a decision in each backend that it concerns, the attachment's own first, so that its traffic continues."""
        losers = [generation for former in decision.released.values() for generation in former.generations]
        removed = [*generations, *losers]
        concerned = [
            attachment.backend,
            *(a.backend for a in removed),
            *(i.attachment.backend for i in decision.installed),
        ]
        if decision.orphans:
            concerned += self._backends_in_use()
        self._load(concerned)
        for name in dict.fromkeys(concerned):
            change = Change(
                install=[installed for installed in decision.installed if installed.attachment.backend == name],
                remove=[a for a in removed if a.backend == name],
                orphans=decision.orphans,
                members=decision.members if name == NFTABLES else {},
                is_new=is_new,
            )
            instead = generations[0] if generations and generations[0].backend == name else None
            undo.append(self._apply(name, change, attachment.id, instead, decides_again=not is_new).undo)

    def _note_released(self, attachment: Attachment, decision: Decision) -> None:
        """Have the conntrack entries deleted of the addresses that others had."""
        addresses = [unit for former in decision.released.values() for unit in former.address_units]
        if decision.orphans:
            addresses += attachment.address_units
        self._gone.update((address, None) for address in addresses if isinstance(address, Address))

    def _remove_leftovers(self, attachment_id: AttachmentId) -> None:
        """Remove what portmap and ipMasq left for a container that they served; only warn if that fails, as it is not ours."""
        try:
            if has_other_plugins():
                from ..backends.leftovers import remove_leftovers  # only while a node migrates

                remove_leftovers(attachment_id)
        except CniError as error:
            warn(error)

    def _remove(self, known: Attachment, facts: Facts) -> None:
        """Remove an attachment that has, or may have, rules."""
        generations = known.generations
        if any(mapping.sharing for mapping in known.port_mappings) or facts.others:
            self._find_holders(known, facts, known.host_ports)
        decision = decide_remove([known], facts)
        # Without the record, the call may not know everything: a port may have been allocated.
        orphans = set() if facts.before is not None else {known.id.owner}
        concerned = [*(g.backend for g in generations), *(i.attachment.backend for i in decision.installed)]
        self._load(concerned)
        for name in dict.fromkeys(concerned):
            change = Change(
                install=[installed for installed in decision.installed if installed.attachment.backend == name],
                remove=[generation for generation in generations if generation.backend == name],
                orphans=orphans,
                members=decision.members,
            )
            try:
                self._gone.update(dict.fromkeys(self._apply(name, change, known.id).addresses))
            except CniError as error:
                if error.code != NOT_AVAILABLE or decision.installed:
                    raise
                warn(error)  # the backend's program is gone: its rules can be neither read nor removed
        self._note_waiting(decision, facts.others)
        if facts.before is not None and self.state.rebuilt_at() > known.created_at:
            self._gone.update((unit, None) for unit in known.address_units if isinstance(unit, Address))

    def _apply(
        self,
        name: str,
        change: Change,
        without: AttachmentId | None = None,
        instead: Attachment | None = None,
        *,
        decides_again: bool = False,
    ) -> Applied:
        """Make a change; heal first if the rules as a whole are damaged.

        Raises: _HasHealed after healing if `decides_again`: the change was decided while the kernel showed no owners.
        """
        backend = self._backend(name)
        try:
            return backend.apply(change)
        except RulesDamaged:
            self.heal(backend, change.install, without, instead)
            if decides_again:
                raise _HasHealed from None
        try:
            return backend.apply(change)
        except RulesDamaged as error:
            raise CniError(
                TRY_AGAIN_LATER,
                f"the rules of {name} were rebuilt, and are damaged again: {error}",
                "Find out what changes them: nft monitor.",
            ) from error

    def _load(self, names: Iterable[str]) -> None:
        """Load what makes these backends' rules, before any is changed: a release's plugin hands the call on for some of it."""
        for name in names:
            self._backend(name)

    def _backend(self, name: str) -> Backend:
        if name not in self._backends:
            self._backends[name] = NftablesBackend(self.state) if name == NFTABLES else self._iptables()
        return self._backends[name]

    def _iptables(self) -> Backend:
        from ..backends.iptables.provider import (
            IptablesBackend,
        )  # starting its programs takes longer than this import

        return IptablesBackend(self.state)

    def _backends_in_use(self) -> list[str]:
        return [NFTABLES, IPTABLES] if self.state.has_iptables() else [NFTABLES]

    def _other_backends(self, attachment: Attachment) -> list[str]:
        return [name for name in self._backends_in_use() if name != attachment.backend]

    def _gather(self, attachment_id: AttachmentId) -> Facts:
        """Read the records of the container: the attachment's own, and the others in force."""
        facts = Facts(self._own_record(attachment_id))
        if facts.before is not None and standing(facts.before, self._here) == ELSEWHERE:
            facts.before, facts.elsewhere = None, facts.before
        for record in self.state.siblings(attachment_id):
            if standing(record, self._here) in (IN_FORCE, UNCERTAIN):
                facts.others.append(record)
        return facts

    def _own_record(self, attachment_id: AttachmentId) -> Attachment | None:
        """Read the attachment's own record, if it is from this boot. A damaged one counts as lost: ADD replaces it, DEL removes it."""
        try:
            record = self.state.read(attachment_id)
        except CniError as error:
            if error.code != STATE_DAMAGED:
                raise
            warn(error)
            return None
        if record is None or record.boot_id not in ("", self._here.boot_id):
            return None
        return record

    def _find_holders(self, attachment: Attachment, facts: Facts, units: Iterable[Unit]) -> None:
        """Ask every backend in use who owns the units, and read the owners' records."""
        facts.forget_holders()
        known: dict[str, Holder] = {}
        asked = list(units)
        self._look_up(attachment, facts, asked, known)
        # An attachment that loses something may share ports with others.
        losers = [
            holder.attachment for holder in known.values() if holder.attachment and holder.owner != attachment.id.owner
        ]
        shared = {
            p for loser in losers for p, mapping in loser.host_ports.items() if mapping.sharing
        } - facts.holders.keys()
        if shared:
            self._look_up(attachment, facts, list(shared), known)
        self._add_their_siblings(attachment.id, facts, known.values())
        self._look_up_other_ranges(attachment, facts, asked, known)

    def _look_up_other_ranges(
        self, attachment: Attachment, facts: Facts, asked: list[Unit], known: dict[str, Holder]
    ) -> None:
        """Ask about ports that may be passed on and were not asked for: of ranges of the same container that are not the same."""
        if facts.others:
            known_about = Overlaps((*asked, *facts.holders))
            wanted = {port for record in facts.others for port in record.host_ports if known_about.of(port)}
            self._look_up(attachment, facts, list(wanted.difference(asked)), known)

    def _look_up(self, attachment: Attachment, facts: Facts, units: list[Unit], known: dict[str, Holder]) -> None:
        for name in dict.fromkeys((attachment.backend, *self._backends_in_use())):
            try:
                owners, shared = self._backend(name).holders(units)
            except CniError as error:
                if name == attachment.backend or error.code != NOT_AVAILABLE:
                    raise
                warn(error)
                continue
            facts.shared |= shared
            for unit, names in owners.items():
                for owner in names:
                    if owner not in known:
                        known[owner] = self._holder(owner)
                    facts.note_holder(unit, known[owner])

    def _add_their_siblings(self, attachment_id: AttachmentId, facts: Facts, holders: Iterable[Holder]) -> None:
        """Read the other records of containers that may lose something: one of them may be waiting for it."""
        containers = {h.attachment.id.container_id for h in holders if h.attachment is not None}
        for container_id in containers - {attachment_id.container_id}:
            for record in self.state.siblings(AttachmentId("", container_id, "")):
                if standing(record, self._here) in (IN_FORCE, UNCERTAIN):
                    facts.others.append(record)

    def _holder(self, owner: str) -> Holder:
        """Find the record of the owner that a rule names. An abbreviated name needs a search."""
        identity = self._identity_of(owner)
        if identity is None:
            return Holder(owner, NO_RECORD)
        try:
            record = self.state.read(identity)
        except CniError as error:
            if error.code not in (STATE_DAMAGED, NEWER_VERSION):
                raise
            return Holder(owner, UNREADABLE)
        return Holder(owner, NO_RECORD) if record is None else Holder(owner, standing(record, self._here), record)

    def _identity_of(self, owner: str) -> AttachmentId | None:
        if "~" in owner:
            return next((identity for identity in self.state.identities() if identity.owner == owner), None)
        return AttachmentId.of_owner(owner)

    def _keep_live_changes(self, attachment: Attachment, facts: Facts, settings: Settings) -> bool:
        """Keep what an operator published and withdrew on the running container. Return whether this is a reload.

        To reload a network, a runtime calls DEL and then ADD, in the same network namespace: nothing else shows that the container
        went on. What others have meanwhile is dropped with a warning, because the runtime did not ask for it.
        """
        former = facts.before
        try:
            if former is None and attachment.netns:
                former = self.state.read_set_aside(attachment.id)
        except CniError as error:
            warn(error)
        if former is None or not self._is_same_life(attachment, former):
            return False
        keep_live_changes(attachment, former)
        settings.apply_to(attachment)
        for mapping in [mapping for mapping in attachment.port_mappings if mapping.live]:
            alone = Attachment.from_record(attachment.as_record())
            alone.port_mappings = [mapping]
            try:
                self._require_free(alone, facts, settings)
            except HostPortConflict as error:
                warn(error)
                attachment.port_mappings.remove(mapping)
        return facts.before is None

    def _is_same_life(self, attachment: Attachment, former: Attachment) -> bool:
        """Whether a record has live changes, and its container has run on: in the same network namespace, which exists."""
        if not former.has_live_changes or former.netns_identity != attachment.netns_identity:
            return False
        return standing(former, self._here) == IN_FORCE

    def _require_free(self, attachment: Attachment, facts: Facts, settings: Settings) -> None:
        """Raise HostPortConflict if another container has a host port of the attachment, or the host listens on it."""
        if settings.refuse_conflicts:
            check_host_listeners(attachment, lambda: self._refuse_held(attachment, facts))
        self._refuse_held(attachment, facts)

    def _find_host_interfaces(self, attachment: Attachment) -> None:
        """Find the host's interfaces to the container's published addresses, or to all its addresses if it is isolated."""
        for endpoint in attachment.endpoints:
            family = endpoint.address.family
            is_published = endpoint is attachment.published_endpoint(family) and family in attachment.published_families
            if is_published or attachment.inbound.isolate:
                endpoint.host_interface = container_interface(endpoint.address)
                _check_name(endpoint.host_interface, attachment)

    def _enable_forwarding(self, attachment: Attachment) -> None:
        for family in (4, 6):
            addresses = [e.address for e in attachment.endpoints if e.address.family == family]
            if addresses and not self._sysctls.forwards(family):
                self._sysctls.enable_forwarding(family, addresses)

    def _enable_route_localnet(self, attachment: Attachment) -> None:
        """Let 127.0.0.1 reach the container. Chain `guard` is in place by now."""
        endpoint = attachment.published_endpoint(4)
        reachable = any(mapping.is_reached_from_loopback for mapping in attachment.port_mappings)
        if endpoint is not None and endpoint.host_interface and attachment.inbound.snat and reachable:
            self._sysctls.enable_route_localnet(endpoint.host_interface)

    def _enable_ipv6_localhost(self, attachment: Attachment) -> None:
        """Let ::1 reach the container. Chain `guard` is in place by now."""
        reachable = any(mapping.is_reached_from_ipv6_loopback for mapping in attachment.port_mappings)
        if attachment.inbound.ipv6_localhost and reachable and 6 in attachment.published_families:
            self._sysctls.enable_ipv6_localhost(Address.parse(IPV6_LOCALHOST_ALIAS))

    def _choose_host_ports(
        self, attachment: Attachment, facts: Facts, settings: Settings, last_ports: dict[str, int]
    ) -> None:
        """Allocate ports for mappings that name none, and check host listeners."""
        if not attachment.published_families:
            return
        if any(mapping.host_port == 0 for mapping in attachment.port_mappings):
            recall_ports(attachment, [*([facts.before] if facts.before else []), *facts.others])
            self._heal_before_allocation(attachment)
            allocate_ports(attachment, settings, last_ports, lambda ports: self._held_among(attachment, ports))
        if settings.refuse_conflicts:
            check_host_listeners(attachment, lambda: self._refuse_held(attachment, facts))

    def _heal_before_allocation(self, attachment: Attachment) -> None:
        """Heal if the rules are damaged: after a flush, the kernel would call ports free that are on record."""
        backend = self._backend(attachment.backend)
        try:
            backend.require_intact(attachment.published_families)
        except RulesDamaged:
            if any(self.state.identities()):
                self.heal(backend)

    def _held_among(self, attachment: Attachment, ports: list[HostPort]) -> Collection[HostPort]:
        """Return which of these host ports are in use."""
        names = (attachment.backend, *self._other_backends(attachment))
        held = Overlaps(unit for name in names for unit in self._backend(name).holders(ports)[0])
        return [port for port in ports if held.of(port)]

    def _refuse_held(self, attachment: Attachment, facts: Facts) -> None:
        """Refuse host ports of other containers: naming the container is more useful than naming the process that reserves its port."""
        self._find_holders(attachment, facts, attachment.host_ports)
        decide_add(attachment, facts)

    def _restore_record(self, attachment_id: AttachmentId, before: Attachment | None) -> None:
        if before is None:
            self.state.remove(attachment_id)
        else:
            self.state.write(before)

    def _delete_entries(self) -> None:
        """Delete conntrack entries. If the kernel cannot, warn: a container starts and stops all the same."""
        try:
            if not is_tracking():
                return
            with ConnectionTracker() as tracker:
                if self._gone:
                    tracker.delete_of_addresses(list(self._gone))
                for delete in self._afterwards:
                    delete(tracker)
        except (CniError, OSError) as error:
            warn(error if isinstance(error, CniError) else KernelRefused("track connections", error.errno or 0))


def _check_name(interface: str, attachment: Attachment) -> None:
    """Refuse the name of a host interface that cannot be used in a rule."""
    if not is_plain(interface):
        raise InvalidConfiguration(
            f"{attachment.id} is behind host interface {interface!r}, a name that cannot be used in a rule",
            "Rename the interface: ip link set dev OLD name NEW.",
        )
    is_matched = attachment.inbound.isolate or any(mapping.on_loopback_only for mapping in attachment.port_mappings)
    if attachment.backend == IPTABLES and interface.endswith("+") and is_matched:
        raise InvalidConfiguration(
            f"{attachment.id} is behind host interface {interface!r}, and iptables takes the + for a wildcard",
            'Rename the interface: ip link set dev OLD name NEW; or set "backend": "nftables".',
        )


def _differences_in_record(record: Attachment | None, attachment: Attachment) -> list[str]:
    if record is None:
        return ["its record is lost"] if attachment.needs_rules else []
    if record.wishes == attachment.wishes:
        return []
    return ["its record differs from prevResult and runtimeConfig"]


def left_alone(attachment: Attachment) -> CniError:
    """Return a warning: the attachment stays, because nothing shows that its container is gone."""
    return CniError(
        CLEAN_UP_INCOMPLETE,
        f"{attachment.id} is left alone: cannot tell from this mount namespace whether {attachment.netns} exists",
        "Run quantum-nat gc on the host, outside any container.",
    )


def run_all(undo: list[Callable[[], None]], cause: BaseException) -> None:
    """Undo, last step first. A failure does not stop it, and is added to the error."""
    for step in reversed(undo):
        try:
            step()
        except CniError as error:
            cause.add_note(f"Undoing it failed too: {error.message}.")
