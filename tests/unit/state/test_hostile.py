"""State files that somebody else wrote, or a disk changed: each is understood or refused, and makes no rule that is none."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_quantum_nat.backends.nftables.encoding import addition
from cni_quantum_nat.backends.nftables.rules import plan_rules
from cni_quantum_nat.backends.nftables.text import elements_text
from cni_quantum_nat.cni.settings import read_settings
from cni_quantum_nat.kernel.netlink import message
from cni_quantum_nat.model.errors import CniError
from cni_quantum_nat.state.counters import CounterFile
from cni_quantum_nat.state.directory import State
from tests.unit.attachments import attachment
from tests.unit.kernel.netlink_specification import CREATE, REQUEST, decode

if TYPE_CHECKING:
    from cni_quantum_nat.model.attachments import Attachment

DAMAGED, NEWER = 102, 108
QUICK = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["", "::", "0.0.0.0/0", "10.0.0.2/33", "::1/128", "tcp", "icmp", 'x" drop', "a b", "\n", "all", "iptables"]
    ),
    st.sampled_from([0, 1, -1, 65535, 65536, 1 << 64, 1e308, 4, 6]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
WORKLOAD = attachment("net", "c1", "eth0", 8080)


@contextmanager
def state() -> Iterator[tuple[State, Path]]:
    """Make a state directory with two attachments, and yield it with the record of the first."""
    with tempfile.TemporaryDirectory() as directory:
        made = State(f"{directory}/state")
        made.lock()
        try:
            for container in ("c1", "c2"):
                made.write(attachment("net", container, "eth0", 8080))
            yield made, Path(made.path(WORKLOAD.id))
        finally:
            made.unlock()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value in a document."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*path, key))


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """Put other values into a document, or take some out."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([place for place in places(document) if place] or [("nothing",)]))
        inner = document
        for key in way:
            inner = inner[key]
        if draw(st.booleans()) and isinstance(inner, dict):
            inner.pop(last, None)
        else:
            inner[last] = draw(VALUES)
    return document


def assert_makes_rules(record: Attachment) -> None:
    """See that what follows from a record that is believed is what nf_tables specifies, and has no syntax of its own."""
    elements = plan_rules(record)
    for element in elements:
        decode(message(0xA0C, REQUEST | CREATE, 1, b"\1\0\0\0" + addition(element, element.owner)))
    for command in elements_text(elements):
        assert "\n" not in command
        assert ";" not in command


def assert_is_understood_or_refused(made: State) -> None:
    try:
        record = made.read(WORKLOAD.id)
    except CniError as error:
        assert error.code in (DAMAGED, NEWER)
    else:
        if record is not None:
            assert record.id == WORKLOAD.id
            assert_makes_rules(record)
    refused: list[CniError] = []
    others = {record.id.container_id for record in made.attachments(refused)}
    assert "c2" in others
    assert all(error.code in (DAMAGED, NEWER) for error in refused)
    assert made.siblings(WORKLOAD.id) == []


@QUICK
@given(st.data())
def test_a_record_with_other_values(data: st.DataObject) -> None:
    with state() as (made, path):
        path.write_text(json.dumps(data.draw(changed(json.loads(path.read_text())))))
        assert_is_understood_or_refused(made)


@QUICK
@given(st.data())
def test_a_record_with_other_bytes(data: st.DataObject) -> None:
    with state() as (made, path):
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        assert_is_understood_or_refused(made)


@QUICK
@given(st.data())
def test_a_cached_configuration_with_other_values(data: st.DataObject) -> None:
    """It is a cache: what cannot be used is made anew."""
    configuration = {"cniVersion": "1.1.0", "name": "net", "type": "quantum-nat", "portRange": "40000-40001"}
    with state() as (made, _):
        read_settings(configuration, made, "net", lambda _: None)
        path = Path(made.directory, "networks", "net.json")
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "normalised": data.draw(changed(document["normalised"]))}))
        found = read_settings(configuration, made, "net", lambda _: None)
        assert len(found.port_range) == len(configuration["portRange"].split("-"))


@QUICK
@given(st.binary(max_size=64), st.booleans())
def test_a_counter_file_with_other_bytes(content: bytes, is_of_this_layout: bool) -> None:
    """What is of another size counts nothing; what has ours is believed, up to the largest number."""
    with state() as (made, _):
        counters = CounterFile(made, "net")
        counters.change(lambda cells: cells.count_call("nftables", "ADD", 5, 0), create=True)
        path = Path(made.directory, "counters", "net")
        size = path.stat().st_size
        path.write_bytes(
            (path.read_bytes()[:8] + content.ljust(size, b"\xff"))[:size] if is_of_this_layout else content
        )
        counters.change(lambda cells: cells.count_call("nftables", "ADD", 5, 0), create=True)
        count = counters.read().calls("nftables", "ADD").count
        assert 1 <= count < 1 << 64 if is_of_this_layout else count == 1
        assert path.stat().st_size == size
