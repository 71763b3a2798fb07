"""Every situation that a call may meet, and how it is set up and measured; table.py has the outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cni_quantum_nat.model.addresses import Address
from cni_quantum_nat.model.attachments import CANNOT_TELL, SPREAD
from cni_quantum_nat.model.errors import CHECK_FAILED, HOST_PORT_CONFLICT
from cni_quantum_nat.model.units import HostPort, PortRange
from tests.simulation import ANOTHER_NAMESPACE, Host, attachment, netns_of

if TYPE_CHECKING:
    from cni_quantum_nat.model.attachments import Attachment
    from cni_quantum_nat.model.units import Unit

PORT, ADDRESS = "host port", "address"
# A host port that others have a range around, and a range of which others have a host port: as for the same host port.
WITHIN, AROUND = "host port within a range", "range around a host port"
STATES = {
    PORT: (
        "free",
        "ours",
        "sibling's",
        "other's, alive",
        "other's, dead",
        "other's, cannot tell",
        "orphan's",
        "shared, same way",
        "shared, another way",
        "unreadable",
    ),
    ADDRESS: (
        "free",
        "ours",
        "sibling's",
        "other's, alive",
        "other's, dead",
        "other's, cannot tell",
        "orphan's",
        "unreadable",
    ),
}
STATES_OF_OVERLAPS = {
    WITHIN: tuple(state for state in STATES[PORT] if not state.startswith("shared")),  # a range is not shared
    AROUND: tuple(state for state in STATES[PORT] if state != "shared, same way"),
}
RECORDS = ("present", "lost", "damaged", "of another boot", "of another host namespace")
CALLS = ("ADD", "ADD again", "ADD, other ports", "DEL", "CHECK", "GC, list", "GC, no list", "heal")
_RANGE = PortRange(8072, 8091)
UNIT: dict[str, Unit] = {
    PORT: HostPort(4, "tcp", 8080),
    ADDRESS: Address.parse("10.0.0.2"),
    WITHIN: HostPort(4, "tcp", 8080),
    AROUND: HostPort(4, "tcp", _RANGE.first, size=20),
}
_ERRORS = {HOST_PORT_CONFLICT: "refused", CHECK_FAILED: "differs"}


class Situation:
    """The attachment that a call is about ("ours"), and who has the unit, before the call."""

    def __init__(self, directory: Path, unit: str, state: str, record: str) -> None:
        self.host = Host(str(directory / "state"))
        self.unit = UNIT[unit]
        self.kind, self.state, self.record = unit, state, record
        self.asked: int | PortRange = _RANGE if unit == AROUND else 8080
        self.ours = self._wanted(self.asked)
        other_address = "10.0.0.2/24" if unit == ADDRESS else "10.0.0.3/24"
        theirs: dict[str, tuple[int | PortRange, ...]] = {ADDRESS: (9001,), WITHIN: (_RANGE,)}
        ports = theirs.get(unit, (8080,))
        sharing = SPREAD if state.startswith("shared") else ""
        # Of another network, as GC is about one: a sibling that GC's list knew nothing of would be garbage.
        sibling_address = "10.0.0.2/24" if unit == ADDRESS else "10.1.0.2/24"
        self.sibling = attachment("ours", sibling_address, *ports, network="net2", sequence=1)
        self.other = attachment("other", other_address, *ports, sharing=sharing, sequence=2)
        self.orphan = attachment("orphan", other_address, *ports)
        self.host.backend.table = {}
        with self.host.here():
            self._set_up()

    def _wanted(self, *ports: int | PortRange) -> Attachment:
        return attachment(
            "ours", "10.0.0.2/24", *ports, sharing=SPREAD if self.state == "shared, same way" else "", sequence=3
        )

    def _set_up(self) -> None:
        if self.record == "present":
            self.host.install(self.ours, [unit for unit in self._all(self.ours) if unit != self.unit])
        if self.state == "ours":
            self.host.install(self.ours)
        elif self.state == "sibling's":
            self._give(self.sibling)
        elif self.state == "orphan's":
            self.host.install(self.orphan)
        elif self.state != "free":
            self._give(self.other)
        if self.state == "other's, dead":
            self.host.dies("other")
        elif self.state == "other's, cannot tell":
            self.host.lives[netns_of("other")] = CANNOT_TELL
        elif self.state == "unreadable":
            self._damage(self.other)
        self._write_own()

    def _all(self, wanted: Attachment) -> list[Unit]:
        return [*wanted.address_units, *wanted.host_ports]

    def _give(self, holder: Attachment) -> None:
        self.host.write(holder)
        self.host.install(holder)

    def _write_own(self) -> None:
        if self.record == "lost":
            return
        if self.record == "of another host namespace":
            self.ours.host_netns = ANOTHER_NAMESPACE
        self.host.write(self.ours, boot_id="another" if self.record == "of another boot" else "")
        self.ours = self._wanted(self.asked)
        if self.record == "damaged":
            self._damage(self.ours)

    def _damage(self, owner: Attachment) -> None:
        Path(self.host.state.path(owner.id)).write_text("{")

    def outcome_of(self, call: str) -> str:
        """Make the call; say how it ends, who has the unit then, and whose record is no longer there."""
        before = self._recorded()
        with self.host.here():
            code = self._make(call)
        said = [self._holders()]
        if code:
            said.append(_ERRORS.get(code, f"error {code}"))
        said += [f"{name} forgotten" for name in sorted(before - self._recorded())]
        return ", ".join(said)

    def _make(self, call: str) -> int:
        host, ours = self.host, self.ours
        valid = {("ours", "eth0")}
        if self.state not in ("other's, dead", "orphan's"):
            valid.add(("other", "eth0"))
        if call == "ADD again":
            host.add(self._wanted(self.asked))
        return {
            "ADD": lambda: host.add(ours),
            "ADD again": lambda: host.add(ours),
            "ADD, other ports": lambda: host.add(self._wanted(9000)),
            "DEL": lambda: host.remove(ours.id, ours),
            "CHECK": lambda: host.check(ours),
            "GC, list": lambda: host.collect_garbage("net", valid),
            "GC, no list": lambda: host.collect_garbage("net", None),
            "heal": host.heal,
        }[call]()

    def _holders(self) -> str:
        owners, _ = self.host.backend.holders([self.unit])
        names = {a.id.owner: name for name, a in self._named().items()}
        return "+".join(sorted({names[owner] for held in owners.values() for owner in held})) or "free"

    def _named(self) -> dict[str, Attachment]:
        return {"ours": self.ours, "sibling": self.sibling, "other": self.other, "orphan": self.orphan}

    def _recorded(self) -> set[str]:
        return {name for name, a in self._named().items() if self.host.state.has_record(a.id)}
