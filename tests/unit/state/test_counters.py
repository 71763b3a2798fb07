"""The counter file: counts add up, also of concurrent processes, and foreign files are not used."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_quantum_nat.backends.nftables.counts import counted
from cni_quantum_nat.backends.nftables.rules import Element
from cni_quantum_nat.cni.entry import counter_of
from cni_quantum_nat.connections.counts import add_gone, note_lost, settle
from cni_quantum_nat.model import errors
from cni_quantum_nat.model.addresses import Address
from cni_quantum_nat.model.errors import CniError
from cni_quantum_nat.state.counters import (
    BACKENDS,
    BUCKETS_MS,
    CODES,
    FLOW_TYPES,
    REFUSED,
    VERBS,
    CallCounter,
    Cells,
    CounterFile,
    counted_networks,
)
from cni_quantum_nat.state.directory import State

CALL = st.tuples(
    st.sampled_from(BACKENDS),
    st.sampled_from(VERBS),
    st.integers(0, 20_000_000),
    st.sampled_from([0, 0, 3, 4, 100, 199, 299]),
)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(str(tmp_path / "state"))


@pytest.fixture
def file(state: State) -> CounterFile:
    return CounterFile(state, "net")


def count(file: CounterFile, code: int = 0) -> None:
    file.change(lambda cells: cells.count_call("nftables", "ADD", 1000, code), create=True)


@given(st.lists(CALL, max_size=30))
def test_any_sequence_of_calls_adds_up(calls: list[tuple[str, str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = CounterFile(State(f"{directory}/state"), "net")
        for call in calls:
            file.change(lambda cells, call=call: cells.count_call(*call), create=True)  # type: ignore[misc]
        cells = file.read()
    for backend in BACKENDS:
        for verb in VERBS:
            mine = [(took, code) for b, v, took, code in calls if (b, v) == (backend, verb)]
            found = cells.calls(backend, verb)
            assert (found.count, found.sum_us) == (len(mine), sum(took for took, _ in mine))
            names = Counter("other" if code == 299 else str(code) for _, code in mine if code)
            assert {code: number for code, number in found.failures.items() if number} == names
            for bucket_ms in BUCKETS_MS:
                up_to = sum(number for of, number in found.buckets.items() if of <= bucket_ms)
                assert up_to == sum(took <= bucket_ms * 1000 for took, _ in mine)


def test_every_error_code_has_a_cell() -> None:
    ours = {value for value in vars(errors).values() if isinstance(value, int) and not isinstance(value, bool)}
    assert ours <= set(CODES)
    assert len(set(CODES)) == len(CODES)


def _count_often(directory: str, times: int) -> None:
    for _ in range(times):
        count(CounterFile(State(directory), "net"))


def test_concurrent_processes_lose_no_counts(state: State, file: CounterFile) -> None:
    processes = [
        multiprocessing.get_context("fork").Process(target=_count_often, args=(state.directory, 200)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert file.read().calls("nftables", "ADD").count == 800


def test_the_file_has_a_constant_size_and_is_private(state: State, file: CounterFile) -> None:
    path = Path(state.directory, "counters", "net")
    count(file)
    before = path.stat()
    for code in (0, 100, 299):
        count(file, code)
    assert path.stat().st_size == before.st_size < 4096
    assert before.st_mode & 0o777 == 0o600
    assert counted_networks(state) == ["net"]


def test_a_file_of_1_0_0_goes_on_with_nothing_refused(state: State, file: CounterFile) -> None:
    file.change(lambda cells: cells.add_gone("ip6tables", "snat", 7), create=True)
    path = Path(state.directory, "counters", "net")
    path.write_bytes(path.read_bytes()[:-48])  # the cells of refused packets come last
    assert file.read().gone("ip6tables", "snat") == 7
    file.change(lambda cells: cells.add_gone("nftables", REFUSED, 3), create=False)
    assert (file.read().gone("ip6tables", "snat"), file.read().gone("nftables", REFUSED)) == (7, 3)


@pytest.mark.parametrize("damage", ["truncated", "longer", "foreign", "empty"])
def test_a_file_with_another_layout_starts_again(state: State, file: CounterFile, damage: str) -> None:
    path = Path(state.directory, "counters", "net")
    count(file)
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[:-1],
            "longer": content + b"\0",
            "foreign": b"X" + content[1:],
            "empty": b"",
        }[damage]
    )
    count(file)
    assert file.read().calls("nftables", "ADD").count == 1
    assert path.stat().st_size == len(content)


def test_a_symbolic_link_is_not_followed(
    state: State, file: CounterFile, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    count(file)
    Path(state.directory, "counters", "net").unlink()
    Path(state.directory, "counters", "net").symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        count(file)
    CallCounter(file, "nftables", "ADD", 0).count(0)
    assert "cannot update counters" in capfd.readouterr().err
    assert elsewhere.read_text() == "mine"


def test_a_state_directory_that_is_a_link_is_not_used(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "state").symlink_to(real)
    with pytest.raises(CniError, match="symbolic link"):
        count(CounterFile(State(str(tmp_path / "state")), "net"))
    assert list(real.iterdir()) == []


@pytest.mark.parametrize(
    "configuration",
    [{"name": "net", "metrics": False}, {"name": "net", "metrics": 1}, {"name": "../net"}, {}, {"name": 7}],
)
def test_a_call_without_a_network_or_with_metrics_off_is_not_counted(
    configuration: dict[str, object], tmp_path: Path
) -> None:
    assert counter_of({"stateDir": str(tmp_path / "state"), **configuration}, "ADD", 0) is None
    assert list(tmp_path.iterdir()) == []


def dnat(flows: int, port: int = 80, owner: str = "net/c/eth0") -> Element:
    element = Element("endpoints4", ("tcp", port), (Address.parse("10.0.0.2"), 80), owner)
    element.flows = flows
    return element


def total(cells: Cells, source: str = "nftables") -> int:
    return cells.gone(source, "dnat") + cells.seen(source, "dnat")


def look(file: CounterFile, live: int, source: str = "nftables", before: Cells | None = None) -> int:
    start = before or file.read()
    tells = source == "nftables"
    cells = file.change(lambda c: settle(c, source, start, {"dnat": live}, tells_deletions=tells), create=True)
    assert cells is not None
    return total(cells, source)


EVENT = st.tuples(st.sampled_from(["flow", "scrape", "delete", "flush", "rebuild"]), st.integers(0, 3))


@given(st.lists(EVENT, max_size=40))
def test_totals_never_decrease_and_never_exceed_the_real_number(events: list[tuple[str, int]]) -> None:
    live, happened, shown = [0, 0, 0, 0], 0, 0
    with tempfile.TemporaryDirectory() as directory:
        state = State(f"{directory}/state")
        file = CounterFile(state, "net")
        count(file)
        for event, number in events:
            if event == "flow":
                live[number] += 1
                happened += 1
            elif event == "delete":
                add_gone(state, "nftables", counted([dnat(live[number], number)]))
                live[number] = 0
            elif event == "flush":
                live = [0, 0, 0, 0]
            elif event == "rebuild":
                note_lost(state, "nftables", {"net": {"dnat": sum(live)}})
                live = [0, 0, 0, 0]
            else:
                now = look(file, sum(live))
                assert shown <= now <= happened
                shown = now


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=30))
def test_without_deletion_counts_a_decrease_is_a_deletion(steps: list[tuple[int, bool]]) -> None:
    live = happened = shown = 0
    with tempfile.TemporaryDirectory() as directory:
        state = State(f"{directory}/state")
        file = CounterFile(state, "net")
        for flows, is_lost in steps:
            live += flows
            happened += flows
            now = look(file, live, "iptables")
            assert now == happened >= shown
            shown = now
            if is_lost:
                live = 0
                note_lost(state, "iptables", {})


def test_a_connection_deleted_during_a_scrape_is_not_counted_twice(state: State, file: CounterFile) -> None:
    count(file)
    before = file.read()
    add_gone(state, "nftables", counted([dnat(8)]))
    assert look(file, 8 + 4, before=before) == 12
    assert look(file, 4) == 12


def test_elements_without_an_owner_or_counters_belong_to_no_network(state: State, file: CounterFile) -> None:
    count(file)
    add_gone(
        state, "nftables", counted([dnat(1, owner=""), dnat(1, owner="shared"), dnat(1, owner="other/c/eth0"), dnat(1)])
    )
    assert total(file.read()) == 1
    assert counted_networks(state) == ["net"]


@pytest.mark.parametrize(
    ("set_name", "kind"),
    [
        ("endpoints4", "dnat"),
        ("host_ip_buckets6", "dnat"),
        ("masqueraded4", "masquerade"),
        ("masqueraded_via4", "masquerade"),
        ("network_masqueraded_via6", "masquerade"),
        ("fixed6", "snat"),
        ("fixed_via6", "snat"),
        ("network_fixed4", "snat"),
    ],
)
def test_the_type_of_an_elements_counter_follows_from_its_set(
    set_name: str, kind: str, state: State, file: CounterFile
) -> None:
    count(file)
    element = Element(set_name, (Address.parse("10.0.0.2"),), (), "net/c/eth0")
    element.flows = 5
    add_gone(state, "nftables", counted([element]))
    assert {kind: file.read().gone("nftables", kind) for kind in FLOW_TYPES} == {
        **dict.fromkeys(FLOW_TYPES, 0),
        kind: 5,
    }
