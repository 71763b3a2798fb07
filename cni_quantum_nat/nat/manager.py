"""NAT Manager: the order of the steps of each verb, and how each step is undone.

The record is written before the kernel is told, and removed after it: whatever happens in between, a DEL or
a GC finds what there is to undo. All of it runs under the state directory's lock.
"""

from __future__ import annotations

from ..backends.base import Holders, discard, is_alive, readable_record
from ..backends.nftables.layout import IPV6_LOCALHOST_ALIAS
from ..backends.nftables.provider import NftablesBackend
from ..connections.tracker import ConnectionTracker, is_tracking
from ..kernel.routes import interface_towards
from ..kernel.stderr import warn
from ..kernel.sysctls import Sysctls
from ..model.addresses import Address
from ..model.attachments import NFTABLES, Attachment, AttachmentId
from ..model.errors import CHECK_FAILED, CLEAN_UP_INCOMPLETE, CniError, InvalidConfiguration, KernelRefused
from ..ports.allocation import allocate_ports, recall_ports, refuse_shadowing
from ..state.claims import PortClaims
from ..state.record import is_plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from ..backends.base import Backend
    from ..model.settings import Settings
    from ..state.directory import State


def _forget(forget: Callable[[ConnectionTracker], None]) -> None:
    """Forget flows; a kernel that cannot do it is no reason to keep a container from starting or from going."""
    if not is_tracking():
        return
    try:
        with ConnectionTracker() as tracker:
            forget(tracker)
    except (CniError, OSError) as error:
        warn(error if isinstance(error, CniError) else KernelRefused("track connections", error.errno or 0))


def _nothing() -> None:
    return None


def _run_both(first: Callable[[], object], second: Callable[[], object]) -> None:
    first()
    second()


class NatManager:
    """Installs, checks and removes attachments, while it holds the lock of the state directory: use it in `with`."""

    __slots__ = ("_backends", "_claims", "_host", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self._backends: dict[str, Backend] = {}
        self._claims = PortClaims(state)
        self._host = Sysctls()

    def __enter__(self) -> Self:
        self.state.lock()
        return self

    def __exit__(self, *_: object) -> None:
        # The lock first: closing the sockets may take its time, and nobody else need wait for it.
        self.state.unlock()
        for backend in self._backends.values():
            backend.close()

    def require_backend(self, name: str) -> None:
        """Check that rules can be made here; CniError(50) when not."""
        self._backend(name).require()

    def add(self, attachment: Attachment, settings: Settings) -> None:
        """Install an attachment, in place of what it had before; on failure all is as it was."""
        if not attachment.needs_rules:
            self.remove(attachment.id)
            return
        self._find_host_interfaces(attachment)
        before = readable_record(self.state, attachment.id)
        self._find_host_ports(attachment, before, settings)
        self._claims.add(attachment.port_mappings)
        undo: list[Callable[[], None]] = [lambda: self._claims.remove(attachment.port_mappings)]
        try:
            undo.append(lambda: self._restore_record(attachment.id, before))
            attachment.replaces = _formers(before, attachment)
            self.state.write(attachment)
            undo.append(self._host.restore)
            if settings.ip_forwarding:
                self._enable_forwarding(attachment)
            undo.append(self._install(attachment, before.generations if before else []))
            self._enable_route_localnet(attachment)
            self._enable_ipv6_localhost(attachment)
            udp = [mapping for mapping in attachment.port_mappings if mapping.protocol == "udp"]
            if udp:
                _forget(lambda tracker: tracker.forget_stale_udp(udp, attachment.published_families))
            self._forget_formers(attachment)
        except BaseException as error:
            _run_all(undo, error)
            raise
        if before is not None:
            self._claims.remove(before.port_mappings)

    def remove(self, attachment_id: AttachmentId, fallback: Callable[[], Attachment | None] = _nothing) -> None:
        """Remove what the attachment owns, and nothing else; nothing happens when it owns nothing.

        `fallback` says what the call itself knows of an attachment whose record is lost.
        """
        record = attachment = readable_record(self.state, attachment_id)
        if attachment is None and (attachment := fallback()) is not None:
            self._find_host_interfaces(attachment)
        if attachment is not None:
            addresses: set[Address] = set()
            for generation in attachment.generations:
                addresses.update(self._backend(generation.backend).remove(generation))
            if addresses:
                _forget(lambda tracker: tracker.forget_container(list(addresses)))
        self.state.remove(attachment_id)
        if record is not None:
            self._claims.remove(record.port_mappings)

    def check(self, attachment: Attachment) -> None:
        """Compare the call, the record and the kernel; CniError(103) lists all that differs."""
        self._find_host_interfaces(attachment)
        record = self.state.read(attachment.id)
        if record is not None:
            recall_ports(attachment, [record])
        problems = _differences_in_record(record, attachment)
        if attachment.needs_rules:
            problems += self._backend(attachment.backend).differences(attachment)
        if problems:
            raise CniError(
                CHECK_FAILED,
                f"{attachment.id} is not as it was set up: {'; '.join(problems)}",
                "quantum-nat reconcile puts it right; so does ADD of the attachment, or after a lost table of any.",
            )

    def move_network(self, network: str, settings: Settings) -> None:
        """Move a network's attachments to the backend that its configuration names now; their traffic goes on."""
        for attachment in list(self.state.attachments([])):
            if attachment.id.network != network or attachment.backend == settings.backend:
                continue
            moved = Attachment.from_record(attachment.as_record())
            settings.apply_to(moved)
            moved.replaces = attachment.generations
            try:
                self.state.write(moved)
                self._install(moved, attachment.generations)
            except BaseException:
                self.state.write(attachment)
                raise
            self._forget_formers(moved)

    def collect_garbage(self, network: str, valid: set[tuple[str, str]] | None, backend_name: str) -> None:
        """Remove the attachments of a network that are not in `valid`; without it, those whose namespace is gone.

        backend_name: what the network's configuration names. Goes on after a failure, and raises CniError(106) with all of them at the end.
        """
        damaged: list[CniError] = []
        leftovers: list[Attachment] = []
        failures = []
        for attachment in list(self.state.attachments(damaged, leftovers)):
            if attachment.id.network != network or _is_valid(attachment, valid):
                continue
            try:
                self.remove(attachment.id)
            except CniError as error:
                failures.append(f"{attachment.id}: {error.message}")
        if valid is not None:
            known = {AttachmentId(network, container_id, interface).owner for container_id, interface in valid}
            for backend in {NFTABLES, backend_name}:
                self._backend(backend).remove_orphans(network, known)
        discard(self.state, [attachment for attachment in leftovers if attachment.id.network == network])
        failures += [error.message for error in damaged]
        if failures:
            raise CniError(CLEAN_UP_INCOMPLETE, f"GC of network {network} failed in part: {'; '.join(failures)}")

    def _backend(self, name: str) -> Backend:
        if name not in self._backends:
            self._backends[name] = NftablesBackend(self.state) if name == NFTABLES else self._iptables()
        return self._backends[name]

    def _iptables(self) -> Backend:
        from ..backends.iptables.provider import (
            IptablesBackend,  # it starts programs, which takes longer than to load it
        )

        return IptablesBackend(self.state)

    def _forget_formers(self, attachment: Attachment) -> None:
        """Say on record that the kernel has no rules any more of what the attachment was before."""
        if attachment.replaces:
            attachment.replaces = []
            self.state.write(attachment)

    def _install(self, attachment: Attachment, formers: list[Attachment]) -> Callable[[], None]:
        """Install, and only then remove what another backend had made; return how to undo it."""
        elsewhere = [former for former in formers if former.backend != attachment.backend]
        backend = self._backend(attachment.backend)
        undo = backend.install(attachment, [former for former in formers if former not in elsewhere])
        if not elsewhere:
            return undo
        try:
            for former in elsewhere:
                self._backend(former.backend).remove(former)
        except BaseException:
            undo()
            raise
        last = elsewhere[0]
        return lambda: _run_both(undo, lambda: self._backend(last.backend).install(last, []))

    def _find_host_interfaces(self, attachment: Attachment) -> None:
        """Find the interfaces to the container's published addresses, and to all when it is isolated; nothing else needs them."""
        for endpoint in attachment.endpoints:
            family = endpoint.address.family
            is_published = endpoint is attachment.published_endpoint(family) and family in attachment.published_families
            if is_published or attachment.inbound.isolate:
                endpoint.host_interface = interface_towards(endpoint.address)
                if not is_plain(endpoint.host_interface):
                    raise InvalidConfiguration(
                        f"interface {endpoint.host_interface!r}, which leads to {endpoint.address}, has a name that no rule can have"
                    )

    def _enable_forwarding(self, attachment: Attachment) -> None:
        for family in (4, 6):
            addresses = [e.address for e in attachment.endpoints if e.address.family == family]
            if addresses and not self._host.forwards(family):
                self._host.enable_forwarding(family, addresses)

    def _enable_route_localnet(self, attachment: Attachment) -> None:
        """Let 127.0.0.1 reach the container; chain `guard` is in place by now."""
        endpoint = attachment.published_endpoint(4)
        reachable = any(mapping.is_reached_from_loopback for mapping in attachment.port_mappings)
        if endpoint is not None and attachment.inbound.snat and reachable:
            self._host.enable_route_localnet(endpoint.host_interface)

    def _enable_ipv6_localhost(self, attachment: Attachment) -> None:
        """Let ::1 reach the container; chain `guard` is in place by now."""
        reachable = any(mapping.is_reached_from_ipv6_loopback for mapping in attachment.port_mappings)
        if attachment.inbound.ipv6_localhost and reachable and 6 in attachment.published_families:
            self._host.enable_ipv6_localhost(Address.parse(IPV6_LOCALHOST_ALIAS))

    def _find_host_ports(self, attachment: Attachment, before: Attachment | None, settings: Settings) -> None:
        """Allocate what is to be allocated, and see that the host itself needs none of the ports."""
        if not attachment.published_families:
            return
        if any(mapping.host_port == 0 for mapping in attachment.port_mappings):
            recall_ports(attachment, [*([before] if before else []), *self.state.siblings(attachment.id)])
            backend = self._backend(attachment.backend)
            allocate_ports(
                attachment,
                settings,
                self._claims,
                is_free=lambda mapping: backend.is_free(mapping, attachment.published_families),
                count_again=self._claims.count_again,
            )
        if settings.refuse_conflicts:
            refuse_shadowing(attachment, lambda: Holders(self.state).refuse_held(attachment))

    def _restore_record(self, attachment_id: AttachmentId, before: Attachment | None) -> None:
        if before is None:
            self.state.remove(attachment_id)
        else:
            self.state.write(before)


def _formers(before: Attachment | None, attachment: Attachment) -> list[Attachment]:
    """Return what the record must remember beside the attachment itself: what else it was, until the kernel has none of it."""
    if before is None:
        return []
    return [former for former in before.generations if former.wishes != attachment.wishes]


def _differences_in_record(record: Attachment | None, attachment: Attachment) -> list[str]:
    if record is None:
        return ["its record is lost"] if attachment.needs_rules else []
    if record.wishes == attachment.wishes:
        return []
    return ["its record says something else than prevResult and runtimeConfig"]


def _is_valid(attachment: Attachment, valid: set[tuple[str, str]] | None) -> bool:
    if valid is None:
        return is_alive(attachment)
    return (attachment.id.container_id, attachment.id.interface) in valid


def _run_all(undo: list[Callable[[], None]], cause: BaseException) -> None:
    """Undo, last step first, and go on past a failure, which is added to what the runtime is told."""
    for step in reversed(undo):
        try:
            step()
        except CniError as error:
            cause.add_note(f"Undoing it failed too: {error.message}.")
