"""The counts of host ports are never too low, and allocation finds what is free."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cni_quantum_nat.model.attachments import PortMapping
from cni_quantum_nat.state.claims import PortClaims, free_ports
from cni_quantum_nat.state.directory import State
from tests.unit.attachments import attachment

PORTS = st.sampled_from([1, 2, 8080, 65534, 65535])
PROTOCOLS = st.sampled_from(["tcp", "udp"])


class Claims(RuleBasedStateMachine):
    """Beside a dictionary of exact counts."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.claims = PortClaims(State(self.directory))
        for protocol in ("tcp", "udp"):
            PortClaims(State(self.directory)).counts(protocol)  # makes the files: a removal finds them
        self.exact: dict[tuple[str, int], int] = {}

    @rule(protocol=PROTOCOLS, port=PORTS, times=st.sampled_from([1, 2, 100]))
    def add(self, protocol: str, port: int, times: int) -> None:
        for _ in range(times):
            self.claims.add([PortMapping(None, port, protocol, 80)])
        self.exact[protocol, port] = self.exact.get((protocol, port), 0) + times

    @rule(protocol=PROTOCOLS, port=PORTS)
    def remove(self, protocol: str, port: int) -> None:
        if self.exact.get((protocol, port)):
            self.claims.remove([PortMapping(None, port, protocol, 80)])
            self.exact[protocol, port] -= 1

    @rule(protocol=PROTOCOLS, port=PORTS)
    def allocate(self, protocol: str, port: int) -> None:
        self.claims.note_allocated(protocol, port)
        assert self.claims.last_allocated(protocol) == port

    @invariant()
    def zero_means_that_nobody_has_it(self) -> None:
        for (protocol, port), count in self.exact.items():
            counted = self.claims.count(PortMapping(None, port, protocol, 80))
            assert counted == count or (counted == 255 and count < counted) or count >= 255
            assert counted or not count
            assert self.claims.counts(protocol)[port] == counted

    def teardown(self) -> None:
        shutil.rmtree(self.directory)


TestClaims = Claims.TestCase
TestClaims.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


@given(st.binary(min_size=40, max_size=40), st.data())
def test_free_ports_are_those_of_the_range_that_nobody_has_each_once_after_the_last(
    counts: bytes, data: st.DataObject
) -> None:
    counts = bytes(count % 3 for count in counts)
    first = data.draw(st.integers(1, 39))
    last = data.draw(st.integers(first, 39))
    after = data.draw(st.integers(0, 39))
    excluded = data.draw(st.sets(st.integers(0, 39), max_size=5))
    found = list(free_ports(counts, first, last, after, excluded))
    assert len(found) == len(set(found))
    assert set(found) == {port for port in range(first, last + 1) if not counts[port] and port not in excluded}
    beyond = [port for port in found if port > after]
    assert not first <= after < last or found == beyond + [port for port in found if port <= after]


@pytest.mark.parametrize("damage", ["gone", "short", "link", "writable"])
def test_counts_that_are_not_what_we_made_are_taken_anew_from_the_records(tmp_path: Path, damage: str) -> None:
    state = State(str(tmp_path / "state"))
    state.lock()
    for container in ("c", "d"):
        state.write(attachment("n", container, "eth0", 80))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(bytes(65538))
    file = tmp_path / "state" / "claims" / "tcp"
    _damage(file, damage, elsewhere)
    PortClaims(state).add([PortMapping(None, 80, "tcp", 80), PortMapping(None, 81, "tcp", 80)])
    assert PortClaims(state).counts("tcp") == bytes(80) + b"\3\1" + bytes(65454)
    assert elsewhere.read_bytes() == bytes(65538), "a link is not followed"


def test_a_removal_after_the_counts_were_lost_takes_nothing_from_others(tmp_path: Path) -> None:
    state = State(str(tmp_path / "state"))
    state.lock()
    state.write(attachment("n", "c", "eth0", 80))
    PortClaims(state).remove([PortMapping(None, 80, "tcp", 80)])  # of a record that shared the port
    assert PortClaims(state).count(PortMapping(None, 80, "tcp", 80)) == 1


def _damage(file: Path, damage: str, elsewhere: Path) -> None:
    file.parent.mkdir()
    if damage == "short":
        file.write_bytes(bytes(80))
    elif damage == "link":
        file.symlink_to(elsewhere)
    elif damage == "writable":
        file.write_bytes(bytes(65538))
        file.chmod(0o666)
