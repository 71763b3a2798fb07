"""`quantum-nat reconcile`: the kernel matches the records again after any damage."""

from __future__ import annotations

import json
import subprocess
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from cni_quantum_nat import NatConfig, NatManager, Network
from cni_quantum_nat.state.directory import State

from .peer import Refused, inside
from .plugin import Plugin, publish
from .talk import Talk
from .test_shared import backends, served
from .topology import (
    CLIENT,
    HOST,
    SUBNETS,
    Container,
    Host,
    Namespace,
    connect_second_network,
    keep_conntrack_enabled,
    wait_until,
)

if TYPE_CHECKING:
    from contextlib import ExitStack

both_families = pytest.mark.parametrize("family", [4, 6])
PORT = "tcp . 8080"


def flush(host: Host) -> None:
    """Flush everything, as a reload of a firewall does."""
    if host.backend == "iptables-legacy":
        for prefix in ("iptables", "ip6tables"):
            host.run(f"{prefix}-legacy", "-t", "nat", "-F")
    else:
        host.run("nft", "flush", "ruleset")


def nft(host: Host, command: str) -> None:
    host.run("nft", command)


def dry_run(plugin: Plugin) -> list[dict[str, Any]]:
    """Return the differences of a dry run, and check that its exit status agrees."""
    done = plugin.operate("reconcile", "--dry-run", "--json")
    differences: list[dict[str, Any]] = json.loads(done.stdout)["differences"]
    assert done.returncode == (1 if differences else 0), done.stderr
    return differences


def heal(plugin: Plugin) -> dict[str, Any]:
    done = plugin.operate("reconcile", "--json")
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    assert dry_run(plugin) == []
    return outcome


@pytest.mark.frozen
@pytest.mark.behaviour
def test_everything_flushed_is_restored(host: Host, client: Namespace, container: Container, plugin: Plugin) -> None:
    client.serve("outside", 80)
    plugin.add(container, publish(8080))
    held = host.installed()
    flush(host)
    assert dry_run(plugin)
    assert client.is_refused(HOST[4], 8080), "a dry run changes nothing"
    heal(plugin)
    assert host.installed() == held
    for family in (4, 6):
        assert client.ask(HOST[family], 8080).server == "web"
        assert container.ask(CLIENT[family], 80).source == HOST[family]


@pytest.mark.behaviour
def test_an_undamaged_host_has_no_differences(host: Host, plugin: Plugin) -> None:
    one, other = host.container(), host.container()
    plugin.add(one, publish(8080), publish(9090, hostIP="127.0.0.1"), publish(53, 53, protocol="udp"))
    plugin.add(other, publish(8081))
    with_second_interface = connect_second_network(other)
    plugin.add(with_second_interface, publish(8081), network="second")
    assert dry_run(plugin) == []
    done = plugin.operate("reconcile")
    assert (done.returncode, done.stdout) == (0, "The kernel matches the records (3 attachments).\n")


def test_a_port_owned_by_either_network_of_a_container_is_no_difference(host: Host, plugin: Plugin) -> None:
    container = host.container()
    first = plugin.add(container, publish(8080))
    plugin.add(connect_second_network(container), publish(8080), network="second")
    first.add()  # by its record, it is now newer than the one that waits for its port
    assert dry_run(plugin) == []


def test_missing_and_changed_elements_are_repaired_and_others_unchanged(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    other_container.serve("other", 80)
    plugin.add(container, publish(8080))
    plugin.add(other_container, publish(8081))
    client.ask(HOST[4], 8081)
    nft(host, f"delete element inet quantum endpoints4 {{ {PORT} }}")
    nft(host, f"delete element inet quantum endpoints6 {{ {PORT} }}")
    owner = f"net/{container.id}/eth0"
    comment = owner + State(str(plugin.state_directory)).realm
    nft(
        host,
        f'add element inet quantum endpoints6 {{ {PORT} comment "{comment}" : {other_container.address[6]} . 80 }}',
    )
    assert {(d["change"], d["what"].split()[0], d["owner"]) for d in dry_run(plugin)} == {
        ("add", "endpoints4", owner),
        ("replace", "endpoints6", owner),
    }
    heal(plugin)
    for family in (4, 6):
        assert client.ask(HOST[family], 8080).server == "web"
        assert client.ask(HOST[family], 8081).server == "other"
    # The other element's counter continues: the element was not replaced.
    assert "packets 2" in host.run("nft", "list map inet quantum endpoints4")


@pytest.mark.behaviour
def test_elements_without_a_record_are_removed(host: Host, client: Namespace, plugin: Plugin) -> None:
    living, lost = host.container(), host.container()
    living.serve("living", 80)
    lost.serve("lost", 80)
    plugin.add(living, publish(8080))
    before = host.installed()
    plugin.add(lost, publish(8081))
    (plugin.state_directory / "attachments" / lost.id / "net:eth0.json").unlink()
    assert client.ask(HOST[4], 8081).server == "lost"
    assert {entry["owner"] for entry in dry_run(plugin)} == {f"net/{lost.id}/eth0"}
    heal(plugin)
    assert client.is_refused(HOST[4], 8081)
    assert client.ask(HOST[4], 8080).server == "living"
    if plugin.host.backend == "nftables":
        assert host.owners() == {f"net/{living.id}/eth0"}
    else:
        assert host.installed() == before


def test_elements_added_by_hand_are_removed(host: Host, container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080))
    nft(host, "add element inet quantum masqueraded4 { 10.99.0.1 }")
    (entry,) = dry_run(plugin)
    assert (entry["change"], entry["owner"], "10.99.0.1" in entry["what"]) == ("delete", "", True)
    heal(plugin)
    assert "10.99.0.1" not in host.ruleset()


def test_elements_of_an_unreadable_record_are_kept(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080))
    plugin.add(other_container, publish(8081))
    (plugin.state_directory / "attachments" / container.id / "net:eth0.json").write_text("{")
    nft(host, f"delete element inet quantum endpoints4 {{ {PORT[:-4]}8081 }}")
    done = plugin.operate("reconcile")
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    assert client.ask(HOST[4], 8080).server == "web"
    assert "8081" in host.run("nft", "list map inet quantum endpoints4")


@pytest.mark.parametrize(
    "damage",
    [
        "flush chain inet quantum host_ports",
        "delete rule inet quantum postrouting handle {handle}",
        "add rule inet quantum prerouting counter",
    ],
)
def test_altered_chains_are_rebuilt(
    host: Host, client: Namespace, container: Container, plugin: Plugin, damage: str
) -> None:
    client.serve("outside", 80)
    plugin.add(container, publish(8080))
    listed = host.run("nft", "-a", "list", "chain", "inet", "quantum", "postrouting")
    handle = next(line for line in listed.splitlines() if "@containers4" in line).rpartition(" ")[2]
    nft(host, damage.format(handle=handle))
    assert {entry["change"] for entry in dry_run(plugin)} == {"rebuild"}
    heal(plugin)
    assert client.ask(HOST[4], 8080).server == "web"
    assert container.ask(CLIENT[4], 80).source == HOST[4]


def test_lost_buckets_of_a_shared_port_are_redistributed_and_the_others_kept(
    host: Host, client: Namespace, plugin: Plugin
) -> None:
    made = backends(host, plugin, 2)
    assert dry_run(plugin) == []
    before = {tuple(map(str, e[0]["elem"]["val"]["concat"])): e[1] for e in host.elements()["buckets4"]}
    for number in range(20):
        nft(host, f"delete element inet quantum buckets4 {{ {PORT} . {number} }}")
    heal(plugin)
    after = {tuple(map(str, e[0]["elem"]["val"]["concat"])): e[1] for e in host.elements()["buckets4"]}
    assert after.keys() == before.keys()
    assert {key for key in before if before[key] != after[key]} <= {("tcp", "8080", str(n)) for n in range(20)}
    counts = served(client, HOST[4], 64)
    assert counts == {attachment.container.address[4]: 32 for attachment in made}


def test_special_policies_are_restored(host: Host, client: Namespace, container: Container, plugin: Plugin) -> None:
    keys: dict[str, Any] = {
        "conditionsV4": ["ip", "saddr", "!=", "192.0.2.77"],
        "conntrackTimeout": 77,
        "snatAddress": "198.51.100.9",
    }
    plugin.add(container, publish(8080), **keys)
    nft(host, f"delete element inet quantum policies4 {{ {PORT} }}")
    heal(plugin)
    nft(host, "delete table inet quantum")
    heal(plugin)
    assert client.ask(HOST[4], 8080).server == "web"
    assert "established_77" in host.ruleset()


@both_families
def test_network_cidrs_of_the_python_api_match_and_are_restored(
    host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    client.serve("outside", 80)
    api = NatManager(NatConfig.model_validate({"state_dir": str(plugin.state_directory)}))
    with inside(host.path):
        api.enable_outbound_connectivity(Network("fabric", "fabric", SUBNETS["cni0"][family]))
        api.enable_outbound_connectivity(Network("other", "other", SUBNETS["cni1"][family]))
    assert dry_run(plugin) == []
    nft(host, f"delete element inet quantum network_masqueraded{family} {{ {SUBNETS['cni0'][family]} }}")
    (entry,) = dry_run(plugin)
    assert (entry["change"], entry["owner"]) == ("add", "python-api/fabric/network")
    heal(plugin)
    assert container.ask(CLIENT[family], 80).source == HOST[family]


@pytest.mark.behaviour
@both_families
def test_clients_that_sent_without_rules_reach_the_container_and_others_stay_connected(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """Conntrack has an entry for the untranslated datagrams, and would not translate those that follow either."""
    keep_conntrack_enabled(host)
    host.serve("host", 8080)
    plugin.add(container, publish(8080, protocol="udp"), hostPortConflict="allow")
    served_before = Talk(stack, client, HOST[family], 8080)
    assert served_before.ask() == "web"
    if host.backend == "nftables":
        nft(host, "delete table inet quantum")
    else:
        host.run("nft", f"flush chain {'ip' if family == 4 else 'ip6'} nat PREROUTING")
    begun_meanwhile = Talk(stack, client, HOST[family], 8080)
    assert begun_meanwhile.ask() == "host"
    assert heal(plugin)["deletedConntrackEntries"] == 1
    assert begun_meanwhile.ask() == "web"
    assert served_before.ask() == "web"


@both_families
def test_connections_that_began_without_rules_are_masqueraded_afterwards(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    keep_conntrack_enabled(host)
    client.serve("outside", 80)
    plugin.add(container)
    nft(host, "delete table inet quantum")
    talk = Talk(stack, container, CLIENT[family], 80)
    assert talk.ask() is None, "the client has no route to the container"
    heal(plugin)
    assert talk.ask() == "outside"


def test_a_missing_state_directory_is_refused_and_nothing_is_removed(
    host: Host, container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080))
    held = host.installed()
    plugin.state_directory.rename(plugin.state_directory.with_name("elsewhere"))
    done = plugin.operate("reconcile")
    assert done.returncode == 1
    assert "there is no state directory" in done.stderr
    assert host.installed() == held
    assert not plugin.state_directory.exists()


def test_reconcile_is_safe_during_adds_and_dels(host: Host, plugin: Plugin) -> None:
    containers = [host.container() for _ in range(4)]
    stays = plugin.add(host.container(), publish(7000))
    failures: list[object] = []

    def come_and_go(container: Container, port: int) -> None:
        for _ in range(4):
            attachment = plugin.add(container, publish(port))
            attachment.check()
            attachment.delete()

    def guarded(*arguments: Any) -> None:
        try:
            come_and_go(*arguments)
        except Exception as error:  # noqa: BLE001 - a thread's failure is told by the test
            failures.append(error)

    threads = [Thread(target=guarded, args=(c, 8000 + n)) for n, c in enumerate(containers)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert json.loads(plugin.operate("reconcile", "--json").stdout)["differences"] == []
    assert failures == []
    stays.check()
    assert dry_run(plugin) == []


@pytest.mark.frozen
def test_gc_removes_dead_attachments(host: Host, client: Namespace, plugin: Plugin) -> None:
    living, dead = host.container(), host.container()
    living.serve("living", 80)
    plugin.add(living, publish(8080))
    plugin.add(dead, publish(8081))
    dead.remove()
    rehearsed = plugin.operate("gc", "--dry-run", "--json")
    (entry,) = json.loads(rehearsed.stdout)
    assert (entry["containerId"], entry["error"]) == (dead.id, None)
    assert f"net/{dead.id}/eth0" in host.owners()
    done = plugin.operate("gc")
    assert (done.returncode, "removed" in done.stdout) == (0, True), done.stderr
    assert host.owners() == {f"net/{living.id}/eth0"}
    assert json.loads(plugin.operate("gc", "--json").stdout) == []
    assert client.ask(HOST[4], 8080).server == "living"
    with pytest.raises(Refused):
        client.ask(HOST[4], 8081)


def test_gc_goes_on_at_an_interval(host: Host, plugin: Plugin) -> None:
    dead = host.container()
    plugin.add(dead, publish(8080))
    line = plugin.operator_line("gc", "--interval", "0.1")
    with subprocess.Popen(line, env=plugin.environ, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: process.poll() is None and host.owners() != set(), "it runs")
            dead.remove()
            wait_until(lambda: host.owners() == set(), "the dead container's attachment is removed")
        finally:
            process.kill()


def test_gc_without_records_finds_nothing(plugin: Plugin) -> None:
    done = plugin.operate_as([*plugin.command, "gc", "--json"])
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_output_lists_the_repairs(host: Host, container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080))
    flush(host)
    done = subprocess.run(
        plugin.operator_line("reconcile"), env=plugin.environ, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["CHANGE", "WHAT", "OWNER", "WHY"]
    assert "table inet quantum is missing" in lines[1]
    assert lines[2].startswith("Repaired 1 difference for 1 attachment in ")
