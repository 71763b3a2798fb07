"""The counts of host ports are never too low, and allocation finds what is free."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cni_quantum_nat.hotpath.claims import PortClaims, free_ports
from cni_quantum_nat.hotpath.model import PortMapping

PORTS = st.sampled_from([1, 2, 8080, 65534, 65535])
PROTOCOLS = st.sampled_from(["tcp", "udp"])


class Claims(RuleBasedStateMachine):
    """Beside a dictionary of exact counts."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.claims = PortClaims(self.directory)
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


def test_a_file_that_is_cut_short_counts_as_zero_where_it_ends(tmp_path: Path) -> None:
    claims = PortClaims(str(tmp_path))
    assert claims.counts("tcp") == bytes(65536)
    claims.add([PortMapping(None, 80, "tcp", 80)])
    assert (tmp_path / "claims" / "tcp").stat().st_size == 81
    assert claims.counts("tcp") == bytes(80) + b"\1" + bytes(65455)
    assert claims.last_allocated("tcp") == 0
