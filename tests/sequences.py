"""Sequences of calls and events on a host, and what must hold after each of them: without a kernel or with one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cni_quantum_nat.model.attachments import SPREAD
from cni_quantum_nat.model.errors import CHECK_FAILED, HOST_PORT_CONFLICT, INVALID_CONFIGURATION
from cni_quantum_nat.nat.decision import decide_all

from .simulation import Host, attachment, holdings

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_quantum_nat.model.attachments import Attachment
    from cni_quantum_nat.model.units import Unit

# What each container wants: web and its second network the same port, the other container the port too, the third web's address.
WANTED: dict[str, Callable[[], Attachment]] = {
    "web": lambda: attachment("web", "10.0.0.2/24", 8080),
    "web, second network": lambda: attachment("web", "10.1.0.2/24", 8080, network="second"),
    "rival": lambda: attachment("rival", "10.0.0.3/24", 8080, 8081),
    "next": lambda: attachment("next", "10.0.0.2/24", 8082),
    "shared": lambda: attachment("shared", "10.0.0.4/24", 8081, sharing=SPREAD),
}
CHANGED = {
    "another port": lambda: attachment("web", "10.0.0.2/24", 9000),
    "one more port": lambda: attachment("web", "10.0.0.2/24", 8080, 9000),
}
DIE = ("web", "rival")
BESIDE_LIVE = (
    "ADD web",
    "ADD web with another port",
    "ADD web, second network",
    "ADD rival",
    "DEL web",
    "CHECK web",
    "flush",
    "web dies",
)


class Violation(AssertionError):
    """An invariant does not hold."""


class Sequence:
    """A host with events by name. after: called after each event, with what the kernel should have."""

    def __init__(self, host: Host, *, live: bool = False) -> None:
        """live: with changes of running containers, and fewer of the other events."""
        self.host = host
        self.events: dict[str, Callable[[], None]] = {}
        for name, wanted in WANTED.items():
            self.events[f"ADD {name}"] = partial(self._make, wanted)
        for ports, wanted in CHANGED.items():
            self.events[f"ADD web with {ports}"] = partial(self._make, wanted)
        for name in ("web", "rival", "web, second network"):
            self.events[f"DEL {name}"] = lambda name=name: self._delete(WANTED[name]())  # type: ignore[misc]
        self.events["CHECK web"] = lambda: self._check(WANTED["web"]())
        self.events["GC with a list of web"] = lambda: self._collect({("web", "eth0")})
        self.events["GC without a list"] = lambda: self._collect(None)
        self.events["flush"] = self._flush
        for name in DIE:
            self.events[f"{name} dies"] = lambda name=name: host.dies(name)  # type: ignore[misc]
        self.events["another mount namespace"] = self._change_mount_namespace
        self.events["upgrade"] = self._upgrade
        if live:
            self.events = {name: self.events[name] for name in BESIDE_LIVE}
            self.events["publish web 8081"] = lambda: self._publish(WANTED["web"]())
            self.events["unpublish web 8080"] = lambda: self._unpublish("web", 8080)
            self.events["unpublish web 8081"] = lambda: self._unpublish("web", 8081)

    def happen(self, event: str) -> None:
        """Let an event happen, and see that all invariants hold."""
        self.events[event]()
        self.check_invariants()

    def _make(self, make: Callable[[], Attachment]) -> None:
        self._add(make())

    def _add(self, wanted: Attachment) -> None:
        before = self._in_kernel()
        code = self.host.add(wanted)
        if code == HOST_PORT_CONFLICT:
            # It may have healed first, and then there is more than before.
            self._expect(before is None or self._in_kernel() == before, "a refused ADD changes nothing")
        else:
            self._expect(code == 0, f"ADD fails with {code}")

    def _delete(self, wanted: Attachment) -> None:
        self._expect(self.host.remove(wanted.id, wanted) == 0, "DEL succeeds")
        self._expect(not self.host.state.has_record(wanted.id), "DEL leaves no record")
        self._expect(wanted.id.owner not in self.host.backend.all_owners(), "DEL leaves no rules")

    def _publish(self, wanted: Attachment) -> None:
        before = self._in_kernel()
        code = self.host.publish(wanted.id, 8081)
        self._expect(code in (0, HOST_PORT_CONFLICT, INVALID_CONFIGURATION), f"publish fails with {code}")
        self._expect(code == 0 or before is None or self._in_kernel() == before, "a refused publish changes nothing")
        if code == 0:
            self._expect(self.host.publish(wanted.id, 8081) == 0, "publishing again succeeds")

    def _unpublish(self, container_id: str, port: int) -> None:
        before = self._in_kernel()
        code = self.host.unpublish(container_id, port)
        self._expect(code in (0, INVALID_CONFIGURATION), f"unpublish fails with {code}")
        self._expect(code == 0 or self._in_kernel() == before, "a refused unpublish changes nothing")
        if code == 0:
            names = {
                str(m.host_port)
                for r in self.host.records().in_force
                if r.id.container_id == container_id
                for m in r.port_mappings
            }
            self._expect(str(port) not in names, "unpublish leaves the port to no attachment of the container")

    def _check(self, wanted: Attachment) -> None:
        code = self.host.check(wanted)
        self._expect(code in (0, CHECK_FAILED), f"CHECK fails with {code}")

    def _collect(self, valid: set[tuple[str, str]] | None) -> None:
        self._expect(self.host.collect_garbage("net", valid) == 0, "GC succeeds")
        if valid is None:
            for record in self.host.records().over:
                self._expect(record.id.network != "net", f"GC leaves {record.id}, which is over")

    def _flush(self) -> None:
        self.host.flush()

    def _change_mount_namespace(self) -> None:
        self.host.sees_namespaces = not self.host.sees_namespaces

    def _upgrade(self) -> None:
        """Let the records and the table be those that 1.0.0 would have made."""
        for file in Path(self.host.directory, "attachments").glob("*/*.json"):
            file.write_text(json.dumps(as_of_1_0_0(json.loads(file.read_text()))))
        self.host.age()

    def check_invariants(self) -> None:
        """See that kernel and records agree, as far as calls promise that."""
        records = self.host.records()
        kernel = self._in_kernel()
        if kernel is None:
            return
        self._expect(not records.damaged, "no record is damaged")
        strangers = self.host.backend.all_owners() - records.owners
        self._expect(not strangers, f"{strangers} have rules without a record")
        for unit, owners in kernel.items():
            self._expect(len(owners) == 1 or self.host.backend.holders([unit])[1], f"{unit} has {owners}")
        if records.uncertain:
            return  # they may have lost what they ask for when it could be told that they were over
        plan = decide_all(records.in_force)
        self._expect(not plan.superseded, "two attachments in force want the same")
        gone = {record.id.owner for record in (*records.over, *records.leftovers)}
        # What somebody has who is gone is taken by the next call that wants it.
        left = {unit for unit, owners in kernel.items() if owners <= gone}
        expected = {unit: set(held.rules) for unit, held in holdings(plan).items() if unit not in left}
        found = {unit: owners - gone for unit, owners in kernel.items() if unit not in left}
        self._expect(found == expected, f"{show(found)} is in force, and should be {show(expected)}")

    def _in_kernel(self) -> dict[Unit, set[str]] | None:
        if self.host.backend.table is None or self.host.backend.is_older:
            return None
        return {unit: set(held.rules) for unit, held in self.host.backend.table.items()}

    @staticmethod
    def _expect(holds: object, what: str) -> None:
        if not holds:
            raise Violation(what)


def show(holding: dict[Unit, set[str]]) -> str:
    return ", ".join(f"{unit}: {'+'.join(sorted(owners))}" for unit, owners in sorted(holding.items(), key=str))


def as_of_1_0_0(record: dict[str, object]) -> dict[str, object]:
    """Return the record as 1.0.0 would have written it."""
    younger = ("netnsDirectory", "hostNetns", "sequence", "hadEarlier", "waitsFor")
    outbound = {k: v for k, v in record["outbound"].items() if k != "noMasquerade"}  # type: ignore[attr-defined]
    return {**{k: v for k, v in record.items() if k not in younger}, "format": 2, "outbound": outbound}
