"""The real manager over the real state directory, with the kernel in memory: all sequences of five calls and events, and failures.

Two sequences that lead to the same records and the same rules go on alike, so each situation is left once by each event: a
sequence of five is a path through what is found in five rounds.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cni_quantum_nat.model.errors import CLEAN_UP_INCOMPLETE, KERNEL_REFUSED, KernelRefused, NeedsFullProgram
from cni_quantum_nat.nat import manager as manager_module
from cni_quantum_nat.nat.manager import NatManager
from tests.sequences import Sequence, Violation
from tests.simulation import Held, Host, SimulatedBackend, attachment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from cni_quantum_nat.backends.base import Applied, Change
    from cni_quantum_nat.model.addresses import Address
    from cni_quantum_nat.model.attachments import Attachment, PortMapping
    from cni_quantum_nat.model.units import Unit

LENGTH = 5


class Situation(NamedTuple):
    """Everything that what happens next depends on."""

    files: dict[str, bytes]
    table: dict[Unit, Held] | None
    is_older: bool
    lives: dict[str, str]
    starts: dict[str, int]
    sees_namespaces: bool
    clock: float

    @property
    def key(self) -> tuple[object, ...]:
        """Return what two situations that go on alike have in common: not how late it is, only who came before whom."""
        records = {path: content for path, content in self.files.items() if path.startswith("attachments/")}
        texts = [f"{path} {records[path].decode()}" for path in sorted(records)]
        joined = "\n".join(texts)
        for pattern in (r'"sequence": ?(\d+)', r'"createdAt": ?([\d.]+)'):
            numbers = sorted({float(number) for number in re.findall(pattern, joined)})
            joined = re.sub(pattern, lambda m, n=numbers: f"{m[0].split(':')[0]}:{n.index(float(m[1]))}", joined)
        table = None
        if self.table is not None:
            table = tuple(sorted((str(u), tuple(held.rules.items()), held.is_shared) for u, held in self.table.items()))
        others = tuple(sorted(path for path in self.files if not path.startswith("attachments/") and path != "numbers"))
        alive = tuple(sorted(self.lives.items())), tuple(sorted(self.starts.items()))
        return joined, table, self.is_older, alive, self.sees_namespaces, others


def capture(host: Host) -> Situation:
    root = Path(host.directory)
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return Situation(
        files,
        copy.deepcopy(host.backend.table),
        host.backend.is_older,
        dict(host.lives),
        dict(host.starts),
        host.sees_namespaces,
        host.clock,
    )


def restore(host: Host, situation: Situation) -> None:
    root = Path(host.directory)
    shutil.rmtree(root, ignore_errors=True)
    for name, content in situation.files.items():
        path = root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(content)
    host.backend.table = copy.deepcopy(situation.table)
    host.backend.is_older = situation.is_older
    host.lives = dict(situation.lives)
    host.starts = dict(situation.starts)
    host.sees_namespaces = situation.sees_namespaces
    host.clock = situation.clock


@pytest.fixture
def memory() -> Iterator[str]:
    """A directory in memory: the state directory is written and read a hundred thousand times."""
    directory = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)  # noqa: PTH112
    before = os.umask(0o077)
    yield directory
    os.umask(before)
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("arbitrates", "length"), [(True, LENGTH), (False, LENGTH - 1)], ids=["like nftables", "like iptables"]
)
def test_after_every_sequence_of_five_events_all_invariants_hold(memory: str, arbitrates: bool, length: int) -> None:
    host = Host(f"{memory}/state", backend=SimulatedBackend(arbitrates=arbitrates))
    sequence = Sequence(host)
    found: dict[tuple[object, ...], tuple[str, ...]] = {}
    with host.here():
        start = capture(host)
        frontier: list[tuple[tuple[str, ...], Situation]] = [((), start)]
        found[start.key] = ()
        for _ in range(length):
            frontier = _next_round(host, sequence, frontier, found)
    assert len(found) > 500, "so many situations, or the events do too little"


def test_after_every_sequence_of_four_events_with_live_ports_all_invariants_hold(memory: str) -> None:
    host = Host(f"{memory}/state")
    sequence = Sequence(host, live=True)
    found: dict[tuple[object, ...], tuple[str, ...]] = {}
    with host.here():
        frontier: list[tuple[tuple[str, ...], Situation]] = [((), capture(host))]
        for _ in range(4):
            frontier = _next_round(host, sequence, frontier, found)
    assert any("publish web 8081" in path for path in found.values())


def _next_round(
    host: Host,
    sequence: Sequence,
    frontier: list[tuple[tuple[str, ...], Situation]],
    found: dict[tuple[object, ...], tuple[str, ...]],
) -> list[tuple[tuple[str, ...], Situation]]:
    reached: list[tuple[tuple[str, ...], Situation]] = []
    for path, situation in frontier:
        for event in sequence.events:
            restore(host, situation)
            try:
                sequence.happen(event)
            except (Violation, AssertionError) as violation:
                pytest.fail(f"after {'; '.join((*path, event))}: {violation}")
            after = capture(host)
            if after.key not in found:
                found[after.key] = (*path, event)
                reached.append(((*path, event), after))
    return reached


class RefusingBackend(SimulatedBackend):
    """A kernel that refuses what concerns one container."""

    refused = ""

    def apply(self, change: Change) -> Applied:
        concerned = [*change.remove, *(installed.attachment for installed in change.install)]
        if any(attachment.id.container_id == self.refused for attachment in concerned):
            raise KernelRefused("change the elements", 12)
        return super().apply(change)


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have conntrack entries to delete; return the list of the addresses that they are deleted of."""
    deleted: list[str] = []

    class Tracker:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def delete_of_addresses(self, addresses: list[Address]) -> None:
            deleted.extend(map(str, addresses))

        def delete_published(self, address: Address, mappings: list[PortMapping]) -> None:
            deleted.extend(f"{mapping} of {address}" for mapping in mappings)

        def delete_untranslated(self, _attachments: list[Attachment]) -> None:
            """The first ADD has made the table."""

    monkeypatch.setattr(Host, "is_tracking", True)
    monkeypatch.setattr(manager_module, "ConnectionTracker", Tracker)
    return deleted


def test_a_gc_that_fails_for_one_container_deletes_the_connections_of_the_others(
    memory: str, tracked: list[str]
) -> None:
    """The next GC does not find these containers any more."""
    backend = RefusingBackend()
    host = Host(f"{memory}/state", backend=backend)
    with host.here():
        for container_id, address in (("web", "10.88.0.2/24"), ("db", "10.88.0.3/24"), ("mail", "10.88.0.4/24")):
            assert host.add(attachment(container_id, address)) == 0
        backend.refused = "db"
        assert host.collect_garbage("net", set()) == CLEAN_UP_INCOMPLETE
    assert sorted(tracked) == ["10.88.0.2", "10.88.0.4"]


@pytest.mark.parametrize("failing", ["publish", "unpublish"])
def test_a_live_change_that_fails_changes_nothing(memory: str, tracked: list[str], failing: str) -> None:
    backend = RefusingBackend()
    host = Host(f"{memory}/state", backend=backend)
    web = attachment("web", "10.88.0.2/24", 8080)
    with host.here():
        assert host.add(web) == 0
        before = capture(host)
        backend.refused = "web"
        code = host.publish(web.id, 8081) if failing == "publish" else host.unpublish("web", 8080)
        assert code == KERNEL_REFUSED
        after = capture(host)
        assert (after.files, after.key) == (before.files, before.key)
        assert tracked == []
        backend.refused = ""
        assert host.publish(web.id, 8081) == 0
        assert host.unpublish("web", 8080) == 0
    assert tracked == ["8080->80/tcp of 10.88.0.2"]


def test_an_interruption_after_a_removal_does_not_keep_its_connections(memory: str, tracked: list[str]) -> None:
    """So ends a DEL in a release's plugin whose network has to be moved to another backend: the full program begins it again."""
    host = Host(f"{memory}/state")
    web = attachment("web", "10.88.0.2/24")

    def remove_and_go(manager: NatManager) -> None:
        manager.remove(web.id)
        raise NeedsFullProgram("cni_quantum_nat.cni.configuration", [])

    with host.here():
        assert host.add(web) == 0
        with pytest.raises(NeedsFullProgram):
            host.call(remove_and_go)
    assert tracked == ["10.88.0.2"]


def test_an_add_that_fails_deletes_no_connections(
    memory: str, tracked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had the address still has it."""
    host = Host(f"{memory}/state")

    def refuse(*_: object) -> None:
        raise KernelRefused("write route_localnet", 30)

    with host.here():
        assert host.add(attachment("dead", "10.88.0.2/24")) == 0
        host.dies("dead")
        with monkeypatch.context() as patch:
            patch.setattr(NatManager, "_enable_route_localnet", refuse)
            assert host.add(attachment("web", "10.88.0.2/24")) == KERNEL_REFUSED
        assert tracked == []
        assert host.add(attachment("web", "10.88.0.2/24")) == 0
    assert tracked == ["10.88.0.2"]
