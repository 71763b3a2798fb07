"""Table `inet quantum_cover`: a copy of ours, kept by `quantum-nat reconcile --watch`, that translates while ours is missing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cni_quantum_nat import NatConfig, NatManager, Network
from cni_quantum_nat.backends.nftables.cover import COVER, EMPTY, MISSING, PRESENT, Cover, presence
from cni_quantum_nat.commands.reconcile import notifications, watch
from cni_quantum_nat.commands.reconcile.cover import Keeper
from cni_quantum_nat.model.errors import CniError, KernelRefused
from cni_quantum_nat.state.directory import State

from .peer import Refused, TimedOut, inside
from .plugin import Plugin, publish
from .test_metrics import Exposition, run_metrics
from .test_reconcile import flush, nft
from .test_sources import far
from .test_watch import Watch
from .topology import (
    CLIENT,
    HOST,
    HOST_SECONDARY,
    NO_REPLY_TIMEOUT_S,
    SUBNETS,
    Container,
    Host,
    Namespace,
    wait_until,
)

__all__ = ["far"]  # a fixture

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST, LAST = 20000, 20099
SMALL_BUFFER_BYTES = 1 << 17  # enough for a flush of a small table
CONDITIONS = ["ip", "saddr", "!=", "192.0.2.1"]


@pytest.fixture
def keeper(host: Host) -> Iterator[Keeper]:
    """A cover that follows our table, without the watch's comparisons."""
    with inside(host.path):
        made = Keeper()
    with made:
        yield made


def covers(host: Host) -> str:
    with inside(host.path):
        return presence()


def listing(host: Host, table: str) -> str:
    return host.run("nft", "--stateless", "list", "table", "inet", table)


def comparable(text: str) -> list[str]:
    """Return a listing's lines without what only one of the two tables has: its name, flags and version, priorities, time-outs."""
    text = re.sub(r"\tset layout \{.*?\n\t\}\n|\tct timeout \S+ \{.*?\n\t\}\n", "", text, flags=re.DOTALL)
    text = re.sub(r"priority [^;]+;", "", text.replace(COVER, "quantum"))
    text = re.sub(r"elements = \{(.*?)\}", _in_order, text, flags=re.DOTALL)
    lines = [line.strip() for line in text.splitlines()]
    return [
        line.partition(" # ")[0]
        for line in lines
        if line and not re.match(r"flags owner|comment |.*ct timeout set", line)
    ]


def _in_order(elements: re.Match[str]) -> str:
    return f"elements = {{ {sorted(' '.join(element.split()) for element in elements[1].split(','))} }}"


def overflow(host: Host, last: str = "") -> None:
    """Change more, in one transaction, than a small buffer holds the notifications of."""
    many = ", ".join(f"10.{number // 250}.{number % 250}.1" for number in range(5000))
    nft(host, f"add table inet other; add set inet other many {{ type ipv4_addr; elements = {{ {many} }}; }}; {last}")


def add_everything(host: Host, plugin: Plugin) -> None:
    """Add attachments that need every part of the table."""
    plugin.add(host.container(), publish(8080), *(publish(port, port) for port in range(FIRST, LAST + 1)))
    plugin.add(host.container(), publish(8081, hostIP=HOST[4]), publish(8082, snat=False), conntrackTimeout=60)
    plugin.add(
        host.container(),
        publish(8083),
        *(publish(port, port) for port in range(30000, 30100)),
        conditionsV4=CONDITIONS,
        network="conditions",
    )
    for _ in range(2):
        plugin.add(host.container(), publish(8084), sharedPorts=[8084], network="shared")
    plugin.add(
        host.container(),
        publish(8085),
        snatAddress=HOST_SECONDARY[4],
        isolate=True,
        noMasqueradeTo=["203.0.113.0/24"],
        network="fixed",
    )
    plugin.add(host.container(), publish(8086), ipv6Localhost=True, externalInterface="uplink", network="via")
    with inside(host.path):
        config = NatConfig.model_validate({"state_dir": str(plugin.state_directory), "conntrackTimeout": 77})
        NatManager(config).enable_outbound_connectivity(Network("fabric0", "fabric0", SUBNETS["cni1"][4]))


def test_the_copy_has_every_set_chain_rule_and_element(host: Host, plugin: Plugin, keeper: Keeper) -> None:
    add_everything(host, plugin)
    keeper.copy()
    ours = comparable(listing(host, "quantum"))
    assert any("_ranges" in line for line in ours)
    assert any("vmap @policies" in line for line in ours)
    assert any("jhash" in line or "numgen" in line for line in ours)
    assert comparable(listing(host, COVER)) == ours


def test_it_follows_adds_and_dels(host: Host, container: Container, plugin: Plugin, keeper: Keeper) -> None:
    plugin.add(container, publish(8080))
    keeper.copy()
    other = plugin.add(host.container(), publish(9090))
    wait_until(lambda: comparable(listing(host, COVER)) == comparable(listing(host, "quantum")), "the ADD is copied")
    other.delete()
    wait_until(lambda: "9090" not in listing(host, COVER), "the DEL is copied")
    assert comparable(listing(host, COVER)) == comparable(listing(host, "quantum"))
    assert not keeper.take_news()


def test_while_ours_is_missing_everything_is_translated(
    host: Host, client: Namespace, plugin: Plugin, keeper: Keeper
) -> None:
    """Ranges, shared ports, ports with conditions, with a time-out, on one address; and what containers and networks send."""
    client.serve("outside", 80)
    ranges, timed, conditional, shared, fixed = (host.container() for _ in range(5))
    ranges.serve("ranges", 20050)
    for container, name in ((timed, "timed"), (conditional, "conditional"), (shared, "shared"), (fixed, "fixed")):
        container.serve(name, 80)
    plugin.add(ranges, *(publish(port, port) for port in range(FIRST, LAST + 1)))
    plugin.add(timed, publish(8081), publish(8082, hostIP=HOST_SECONDARY[4]), conntrackTimeout=60)
    plugin.add(conditional, publish(8083), conditionsV4=CONDITIONS, network="conditions")
    plugin.add(shared, publish(8084), sharedPorts=[8084], network="shared")
    plugin.add(fixed, publish(8085), snatAddress=HOST_SECONDARY[4], network="fixed")
    of_network = host.container("cni1")
    with inside(host.path):
        config = NatConfig.model_validate({"state_dir": str(plugin.state_directory), "conntrackTimeout": 77})
        NatManager(config).enable_outbound_connectivity(Network("fabric0", "fabric0", SUBNETS["cni1"][4]))
    keeper.copy()
    flush(host)
    assert "quantum " not in host.run("nft", "list", "tables").replace("\n", " ")
    for address, port, name in (
        (HOST[4], 20050, "ranges"),
        (HOST[4], 8081, "timed"),
        (HOST_SECONDARY[4], 8082, "timed"),
        (HOST[4], 8083, "conditional"),
        (HOST[4], 8084, "shared"),
        (HOST[6], 20050, "ranges"),
        (HOST[6], 8081, "timed"),
    ):
        assert client.ask(address, port).server == name, port
    assert fixed.ask(CLIENT[4], 80).source == HOST_SECONDARY[4]
    assert timed.ask(CLIENT[4], 80).source == HOST[4]
    assert of_network.ask(CLIENT[4], 80).source == HOST[4]


def test_what_is_added_during_the_gap_is_covered_from_then_on(
    host: Host, client: Namespace, container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    """While the watch is stopped, an ADD heals the table, with parts that it did not have."""
    plugin.add(container, publish(8080))
    later = host.container()
    later.serve("later", 20050)
    later.serve("later", 80)
    with Watch(plugin, tmp_path) as running:
        running.process.send_signal(signal.SIGSTOP)
        flush(host)
        assert client.ask(HOST[4], 8080).server == "web"
        ranges = [publish(port, port) for port in range(FIRST, LAST + 1)]
        plugin.add(later, publish(8081), *ranges, conditionsV4=CONDITIONS, conntrackTimeout=60)
        assert client.ask(HOST[4], 8081).server == "later"
        assert "8081" not in listing(host, COVER)
        running.process.send_signal(signal.SIGCONT)
        wait_until(lambda: comparable(listing(host, COVER)) == comparable(listing(host, "quantum")), "it is copied")
        running.process.send_signal(signal.SIGSTOP)
        flush(host)
        for port, name in ((8080, "web"), (8081, "later"), (20050, "later")):
            assert client.ask(HOST[4], port).server == name
        running.process.send_signal(signal.SIGCONT)
        running.wait_for_repair()


def test_where_there_is_nothing_to_copy_no_second_comparison_is_needed(
    host: Host, container: Container, plugin: Plugin, keeper: Keeper
) -> None:
    """As on a host with the iptables backend. A second comparison would only be in the way of a real one."""
    keeper.copy()
    assert not keeper.take_news()
    plugin.add(container, publish(8080))
    keeper.copy()
    assert covers(host) == PRESENT
    nft(host, "delete table inet quantum")
    keeper.copy()
    assert keeper.take_news(), "it may have been flushed after the comparison"
    assert covers(host) == PRESENT
    keeper.copy()
    assert not keeper.take_news()
    assert covers(host) == EMPTY


def test_a_table_that_was_flushed_is_not_copied(
    host: Host, client: Namespace, container: Container, plugin: Plugin, keeper: Keeper
) -> None:
    """As when a flush falls between a comparison and the copy that follows it."""
    plugin.add(container, publish(8080))
    for damage in ("flush table inet quantum", "flush ruleset"):
        keeper.copy()
        nft(host, damage)
        keeper.copy()
        assert client.ask(HOST[4], 8080).server == "web", damage
        assert plugin.operate("reconcile").returncode == 0


def test_after_lost_notifications_nothing_is_translated_until_ours_is_copied_again(
    host: Host, client: Namespace, container: Container, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lost ones may have released a port: its element is deleted beside more changes than the buffer holds."""
    monkeypatch.setattr(notifications, "_BUFFER_BYTES", SMALL_BUFFER_BYTES)
    plugin.add(container, publish(8080))
    with inside(host.path):
        keeper = Keeper()
    keeper.copy()
    assert covers(host) == PRESENT
    overflow(host, "delete element inet quantum endpoints4 { tcp . 8080 }")
    with keeper:  # from now on it reads
        wait_until(lambda: covers(host) == EMPTY, "it is emptied")
        assert client.is_refused(HOST[4], 8080)
        assert keeper.take_news()
        assert plugin.operate("reconcile").returncode == 0
        keeper.copy()
        flush(host)
        assert client.ask(HOST[4], 8080).server == "web"


def test_nothing_is_left_of_a_cover_that_cannot_be_followed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipes fail, for want of descriptors."""
    opened = set(Path("/proc/self/fd").iterdir())

    def refuse(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe2", refuse)
    with inside(host.path), pytest.raises(OSError, match="Too many open files"):
        Keeper()
    assert covers(host) == MISSING
    assert set(Path("/proc/self/fd").iterdir()) == opened


def test_a_cover_that_can_no_longer_be_changed_goes(
    host: Host, container: Container, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would go on to translate to containers that are gone. The watch learns of it, and ends."""
    monkeypatch.setattr(notifications, "_BUFFER_BYTES", SMALL_BUFFER_BYTES)

    def refuse(_cover: Cover) -> None:
        raise KernelRefused("change table inet quantum_cover", errno.ENOMEM)

    plugin.add(container, publish(8080))
    with inside(host.path):
        keeper = Keeper()
    keeper.copy()
    overflow(host)
    monkeypatch.setattr(Cover, "clear", refuse)
    with keeper:
        wait_until(lambda: covers(host) == MISSING, "it is gone")
        assert keeper.take_news()
        for call in (keeper.copy, keeper.clear):
            with pytest.raises(CniError, match="Cannot allocate memory"):
                call()


def test_a_repair_that_fails_is_tried_once_more_before_the_cover_is_emptied(
    host: Host, container: Container, plugin: Plugin, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a second flush falls into the middle of it. Until it succeeds, nothing tells which ports are released."""

    def refuse(*_: object, **__: object) -> None:
        raise KernelRefused("sign table inet quantum", errno.ENOENT)

    plugin.add(container, publish(8080))
    keeper.copy()
    with inside(host.path):
        listening = notifications.Notifications()
    with listening:
        watcher = watch.Watcher(State(str(plugin.state_directory)), listening, 60, watch.Log(as_json=False), keeper)
        monkeypatch.setattr(watch, "reconcile", refuse)
        watcher.step()
        assert covers(host) == PRESENT
        watcher.step()
        assert covers(host) == EMPTY


@pytest.mark.frozen
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_goes_with_the_watch_however_that_ends(
    host: Host, container: Container, plugin: Plugin, tmp_path: Path, number: signal.Signals
) -> None:
    plugin.add(container, publish(8080))
    with Watch(plugin, tmp_path) as running:
        assert covers(host) == PRESENT
        running.process.send_signal(number)
        running.process.wait(10)
        wait_until(lambda: covers(host) == MISSING, "it is gone")


@pytest.mark.frozen
def test_commands_tell_whether_there_is_one_and_do_not_mistake_it_for_somebody_elses(
    container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    plugin.add(container, publish(8080))

    def seen() -> tuple[str, str, float, list[dict[str, Any]]]:
        (status,) = json.loads(plugin.operate("status", "--json").stdout)
        line = plugin.operate("status").stdout
        checks = {entry["check"]: entry for entry in json.loads(plugin.operate("doctor", "--json").stdout)}
        wrong = [entry for entry in checks.values() if entry["status"] != "ok"]
        assert f"cover {status['cover']}, " in line
        metric = Exposition(run_metrics(plugin).stdout).sum("nat_cover_present")
        return status["cover"], checks["cover"].get("remark", ""), metric, wrong

    cover, remark, metric, wrong = seen()
    assert (cover, metric, wrong) == (MISSING, 0, [])
    assert f"`quantum-nat --state-dir {plugin.state_directory} reconcile --watch` does not run here" in remark
    with Watch(plugin, tmp_path):
        assert seen() == (PRESENT, "", 1, [])
        done = plugin.operate("reconcile", "--dry-run", "--json")
        assert (done.returncode, json.loads(done.stdout)["differences"]) == (0, [])
        assert "quantum_cover" not in plugin.operate("doctor", "--packet", f"tcp:{HOST[4]}:8080").stdout


def test_uninstall_empties_it_and_says_what_keeps_it(host: Host, container: Container, tmp_path: Path) -> None:
    """Only the process that owns the table can remove it: the service is stopped before, but this watch is not the service."""
    library = tmp_path / "library"
    library.mkdir()
    shutil.copy(Path(__file__).parents[2] / "packaging" / "uninstall", library)
    (library / "installed").touch()
    plugin = Plugin(host, Path("/run/cni/quantum-nat"))
    plugin.add(container, publish(8080)).delete()
    with Watch(plugin, tmp_path):
        assert covers(host) == PRESENT
        assert "'quantum-nat reconcile --watch' still runs here" in host.run("sh", str(library / "uninstall"))
        wait_until(lambda: covers(host) == EMPTY, "nothing is left to translate")
    assert covers(host) == MISSING
    assert "quantum" not in host.run("nft", "list", "tables")


@pytest.mark.parametrize(
    "keys",
    [
        {"publishOn": ["uplink"]},
        {"conditionsV4": ["ip", "saddr", CLIENT[4]], "conditionsV6": ["ip6", "saddr", CLIENT[6]]},
        {"allowFrom": [f"{CLIENT[4]}/32", f"{CLIENT[6]}/128"]},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_the_cover_never_opens_a_filtered_port(
    host: Host, client: Namespace, far: Namespace, plugin: Plugin, keeper: Keeper, keys: dict[str, Any]
) -> None:
    """The first port of a kind needs a new part of the table: until the next copy, the cover has neither the part nor the port."""
    first, *filtered = (host.container() for _ in range(3))
    plugin.add(first, publish(8080))
    keeper.copy()
    for number, one in enumerate(filtered, 8081):
        one.serve("filtered", 80)
        plugin.add(one, publish(number), network="filtered", **keys)
    wait_until(keeper.take_news, "the cover is outdated")
    assert not any(enters(far, port) for port in (8081, 8082))
    flush(host)
    assert not any(enters(far, port) for port in (8081, 8082))
    plugin.operate("reconcile")
    keeper.copy()
    assert comparable(listing(host, COVER)) == comparable(listing(host, "quantum"))
    flush(host)
    assert all(enters(client, port) for port in (8081, 8082))
    assert not any(enters(far, port) for port in (8081, 8082))


def enters(client: Namespace, port: int) -> bool:
    try:
        return client.ask(HOST[4], port, timeout=NO_REPLY_TIMEOUT_S).server == "filtered"
    except (Refused, TimedOut):
        return False
