"""Every call in every situation has the outcome that table.py says; and deciding one by one ends as deciding all at once."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cni_quantum_nat.model.addresses import Address
from cni_quantum_nat.model.attachments import ALIVE, CANNOT_TELL, GONE, SPREAD, Attachment, PortMapping
from cni_quantum_nat.model.errors import HostPortConflict
from cni_quantum_nat.model.units import HostPort, Overlaps, PortRange
from cni_quantum_nat.nat.decision import (
    ELSEWHERE,
    IN_FORCE,
    OVER,
    UNCERTAIN,
    Decision,
    Facts,
    Here,
    Holder,
    decide_add,
    decide_all,
    decide_remove,
    standing_of,
)
from cni_quantum_nat.nat.live import PublishedPort, copy_of, withdraw
from cni_quantum_nat.ports.mappings import keep_live_changes
from tests.simulation import ANOTHER_NAMESPACE, OWN_NAMESPACE, attachment

from .decision_page import PAGE, outcome, page
from .situations import CALLS, PORT, RECORDS, STATES, STATES_OF_OVERLAPS, Situation
from .table import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cni_quantum_nat.model.attachments import AttachmentId
    from cni_quantum_nat.model.units import Unit

SITUATIONS = [(kind, state, record) for kind, states in STATES.items() for state in states for record in RECORDS]


@pytest.mark.parametrize(("kind", "state", "record"), SITUATIONS)
def test_every_call_has_the_outcome_in_the_table(kind: str, state: str, record: str, tmp_path: Path) -> None:
    expected = {call: outcome(TABLE[kind][state][call], record) for call in CALLS}
    found = {call: Situation(tmp_path / call, kind, state, record).outcome_of(call) for call in CALLS}
    assert found == expected


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize(
    ("kind", "state"), [(kind, state) for kind, states in STATES_OF_OVERLAPS.items() for state in states]
)
def test_what_overlaps_has_the_outcome_of_the_same_port(kind: str, state: str, record: str, tmp_path: Path) -> None:
    expected = {call: outcome(TABLE[PORT][state][call], record) for call in CALLS}
    found = {call: Situation(tmp_path / call, kind, state, record).outcome_of(call) for call in CALLS}
    assert found == expected


def test_the_table_has_every_situation_and_no_other() -> None:
    assert {kind: tuple(rows) for kind, rows in TABLE.items()} == STATES
    assert all(tuple(cells) == CALLS for rows in TABLE.values() for cells in rows.values())
    named = {
        r
        for rows in TABLE.values()
        for cells in rows.values()
        for c in cells.values()
        if not isinstance(c, str)
        for r in c[1]
    }
    assert named <= set(RECORDS)


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text() == page(), "python -m tests.unit.nat.decision_page"


@pytest.mark.parametrize("life", [ALIVE, GONE, CANNOT_TELL, ""])
@pytest.mark.parametrize("boot", ["", "now", "before"])
@pytest.mark.parametrize("namespace", [(0, 0), OWN_NAMESPACE, ANOTHER_NAMESPACE])
@pytest.mark.parametrize("path", ["", "/run/netns/c"])
def test_a_record_is_worth_what_boot_host_and_container_say(
    life: str, boot: str, namespace: tuple[int, int], path: str
) -> None:
    record = attachment("c", "10.0.0.2/24")
    record.boot_id, record.host_netns, record.netns = boot, namespace, path
    standing = standing_of(record, Here("now", OWN_NAMESPACE), life)
    if boot == "before":
        assert standing == OVER
    elif namespace == ANOTHER_NAMESPACE:
        assert standing == ELSEWHERE
    elif not path:
        assert standing == IN_FORCE, "one of the Python API lives until it is undone"
    else:
        assert standing == {ALIVE: IN_FORCE, CANNOT_TELL: UNCERTAIN}.get(life, OVER)


class History:
    """Decides call after call, and remembers who has what: a kernel and a state directory without either."""

    def __init__(self) -> None:
        self.holding: dict[Unit, list[AttachmentId]] = {}
        self.shared: set[Unit] = set()
        self.records: dict[AttachmentId, Attachment] = {}
        self.numbers = 0

    def facts(self, identity: AttachmentId) -> Facts:
        holders = {
            unit: [Holder(i.owner, IN_FORCE, self.records[i]) for i in identities]
            for unit, identities in self.holding.items()
        }
        others = [record for record in self.records.values() if record.id != identity]
        return Facts(self.records.get(identity), others, holders, self.shared)

    def add(self, wanted: Attachment) -> bool:
        """Add it; False when it is refused, with nothing changed."""
        before = self.records.get(wanted.id)
        if before is not None:
            keep_live_changes(wanted, before)
        if not self._decide(wanted):
            return False
        if before is not None and before.wishes == wanted.wishes:
            wanted.sequence = before.sequence
        else:
            self.numbers += 1
            wanted.sequence = self.numbers
        return True

    def publish(self, identity: AttachmentId, port: int, sharing: str) -> bool:
        """Publish a port of an attachment; False when it is refused, with nothing changed."""
        before = self.records.get(identity)
        if before is None or any(mapping.host_port == port for mapping in before.port_mappings):
            return False
        wanted = copy_of(before)
        wanted.port_mappings.append(PortMapping(None, port, "tcp", 80, sharing=sharing, live=True))
        return self._decide(wanted)

    def unpublish(self, container_id: str, port: int) -> None:
        """Take a port from all attachments of a container, from those that wait for it first."""
        of_container = [record for record in self.records.values() if record.id.container_id == container_id]
        for record in sorted(of_container, key=lambda record: not record.waits_for):
            wanted = copy_of(record)
            if withdraw(wanted, PublishedPort("tcp", port, port)):
                assert self._decide(wanted)

    def _decide(self, wanted: Attachment) -> bool:
        try:
            decision = decide_add(wanted, self.facts(wanted.id))
        except HostPortConflict:
            return False
        for record in (wanted, *self.records.values()):
            record.waits_for = decision.waiting.get(record.id, record.waits_for)
        self._apply(decision, wanted.id)
        for released in decision.released:
            del self.records[released]
        self.records[wanted.id] = wanted
        return True

    def remove(self, identity: AttachmentId) -> None:
        if identity in self.records:
            decision = decide_remove([self.records[identity]], self.facts(identity))
            self._apply(decision, identity)
            del self.records[identity]
            for record in self.records.values():
                record.waits_for = decision.waiting.get(record.id, record.waits_for)

    def _apply(self, decision: Decision, identity: AttachmentId) -> None:
        losing = {identity, *decision.released}
        by_owner = {i.owner: i for i in (*self.records, *(installed.attachment.id for installed in decision.installed))}
        self.holding = {unit: [i for i in held if i not in losing] for unit, held in self.holding.items()}
        for installed in decision.installed:
            for unit in installed.units:
                members = decision.members.get(unit) if isinstance(unit, HostPort) else None
                self.holding[unit] = [by_owner[o] for o in members] if members else [installed.attachment.id]
        self.holding = {unit: held for unit, held in self.holding.items() if held}
        self.shared = {unit for unit, held in self.holding.items() if self._is_shared(unit, held[0], decision)}

    def _is_shared(self, unit: Unit, identity: AttachmentId, decision: Decision) -> bool:
        new = {installed.attachment.id: installed.attachment for installed in decision.installed}
        record = new.get(identity) or self.records[identity]
        return isinstance(unit, HostPort) and bool(record.host_ports[unit].sharing)


PORTS = st.sets(st.sampled_from([1, 2, 3]), max_size=2)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "remove", "publish", "unpublish"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["net", "net2"]),
        st.integers(2, 4),
        PORTS,
        st.booleans(),
    ),
    max_size=12,
)


# What one attachment wants: some overlap with what another one wants, none among themselves.
WANTED = [
    (1,),
    (20,),
    (1, 20),
    (PortRange(1, 16),),
    (PortRange(10, 30),),
    (PortRange(16, 40),),
    (1, PortRange(10, 30)),
    (),
]
EVENTS_WITH_RANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "remove"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["net", "net2", "net3"]),
        st.integers(2, 5),
        st.sampled_from(WANTED),
        st.just(False),
    ),
    max_size=12,
)


def history_of(events: list[tuple[str, str, str, int, Iterable[int | PortRange], bool]]) -> History:
    history = History()
    for verb, container, network, last, ports, is_shared in events:
        sharing = SPREAD if is_shared else ""
        wanted = attachment(container, f"10.0.0.{last}/24", *ports, network=network, sharing=sharing)
        if verb == "add":
            history.add(wanted)
        elif verb in ("publish", "unpublish"):
            for port in ports:
                assert isinstance(port, int)
                if verb == "publish":
                    history.publish(wanted.id, port, sharing)
                else:
                    history.unpublish(container, port)
        else:
            history.remove(wanted.id)
    return history


@settings(max_examples=500, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False))
@example(
    [
        ("add", "a", "net", 2, {1}, True),
        ("add", "a", "net2", 3, {1}, False),
        ("add", "b", "net", 4, {1}, True),
        ("remove", "a", "net", 2, set(), False),
    ],
    Random(0),  # noqa: S311 - a fixed order
)
@example(
    [("add", "a", "net2", 2, {1}, True), ("add", "b", "net2", 3, {1}, True), ("add", "b", "net", 4, {1}, False)],
    Random(0),  # noqa: S311 - a fixed order
)
@example(
    [("add", "b", "net", 2, {1}, True), ("add", "b", "net2", 3, {1}, True), ("add", "b", "net", 2, {1}, False)],
    Random(0),  # noqa: S311 - a fixed order
)
def test_call_after_call_ends_as_deciding_all_at_once(events: list[object], random: object) -> None:
    """Healing at any moment, and in whatever order the records are read, changes nothing."""
    history = history_of(events)  # type: ignore[arg-type]
    records = list(history.records.values())
    random.shuffle(records)  # type: ignore[attr-defined]
    plan = decide_all(records)
    planned: dict[Unit, set[AttachmentId]] = {}
    for installed in plan.installed:
        for unit in installed.units:
            planned.setdefault(unit, set()).add(installed.attachment.id)
    for unit in set(planned) - set(history.holding):
        # Whoever waits for a port that its sibling shared with others is unknown to the last of them: healing gives it the port.
        waits_for = {name for identity in planned.pop(unit) for name in history.records[identity].waits_for}
        assert isinstance(unit, HostPort)
        assert unit.name in waits_for
    assert planned == {unit: set(held) for unit, held in history.holding.items()}
    assert set(plan.shared) == history.shared
    assert plan.superseded == []


@settings(max_examples=300, deadline=None)
@given(EVENTS)
@example(
    [
        ("add", "a", "net2", 3, {1}, True),
        ("add", "a", "net", 4, {1}, False),
        ("add", "b", "net", 2, {1}, True),
        ("remove", "a", "net2", 3, set(), False),
    ]
)
def test_nobody_has_a_part_of_an_address_and_a_unit_has_one_owner_unless_it_is_shared(events: list[object]) -> None:
    history = history_of(events)  # type: ignore[arg-type]
    for unit, held in history.holding.items():
        assert len(held) == 1 or unit in history.shared
        assert len(set(held)) == len(held)
        assert all(unit in (*history.records[i].address_units, *history.records[i].host_ports) for i in held)
    for record in history.records.values():
        assert all(history.holding[unit] == [record.id] for unit in record.address_units)
        for port in record.host_ports:
            has_it = record.id.container_id in {i.container_id for i in history.holding.get(port, ())}
            assert has_it or port.name in record.waits_for


@settings(max_examples=500, deadline=None)
@given(EVENTS_WITH_RANGES)
@example(
    [
        ("add", "b", "net", 2, (PortRange(1, 16),), False),
        ("add", "b", "net3", 4, (PortRange(16, 40),), False),
        ("add", "a", "net", 2, (1, 20), False),
    ]
)
def test_what_overlaps_has_one_owner_and_who_lacks_something_is_on_record_as_waiting(events: list[object]) -> None:
    history = history_of(events)  # type: ignore[arg-type]
    held = Overlaps(history.holding)
    for unit, owners in history.holding.items():
        assert len(owners) == 1 or unit in history.shared
        assert held.of(unit) == [unit]
    for record in history.records.values():
        for port in record.host_ports:
            having = {owner for unit in held.of(port) for owner in history.holding[unit]}
            # Others may take ports of a range meanwhile that nobody has.
            assert not having or port.name in record.waits_for or having == {record.id}


@settings(max_examples=500, deadline=None)
@given(EVENTS_WITH_RANGES)
def test_healing_gives_what_overlaps_to_one_owner(events: list[object]) -> None:
    history = history_of(events)  # type: ignore[arg-type]
    plan = decide_all(history.records.values())
    owned = [unit for installed in plan.installed for unit in installed.units if unit not in plan.shared]
    assert all(Overlaps(owned).of(unit) == [unit] for unit in owned)
    assert len(set(owned)) == len(owned)
    assert plan.superseded == []


def test_what_is_decided_depends_on_no_order_of_the_facts() -> None:
    first, second = attachment("a", "10.0.0.2/24", 1, sequence=1), attachment("b", "10.0.0.3/24", 2, sequence=2)
    wanted = attachment("c", "10.0.0.2/24", 2)
    port = HostPort(4, "tcp", 2)
    held: dict[Unit, list[Holder]] = {
        Address.parse("10.0.0.2"): [Holder(first.id.owner, IN_FORCE, first)],
        port: [Holder(second.id.owner, OVER, second)],
    }
    for others in ([first, second], [second, first]):
        decision = decide_add(wanted, Facts(None, others, held, []))
        assert set(decision.released) == {first.id, second.id}
