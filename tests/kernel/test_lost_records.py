"""What is answered when something is lost, of another time, or lacking: the record, a version, a program, a kernel's feature."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .peer import inside
from .plugin import Plugin, PluginError, publish
from .talk import Talk
from .topology import CLIENT, HOST, Container, Host, Namespace

if TYPE_CHECKING:
    from contextlib import ExitStack
    from typing import Any

both_families = pytest.mark.parametrize("family", [4, 6])
ABSENT = "absent"
# Opens so many descriptors that those of libnftables have numbers above 1,024, which a time-out other than the usual one needs, and publishes a port.
MANY_DESCRIPTORS = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1500)]
from cni_quantum_nat import NatConfig, NatManager
manager = NatManager(NatConfig(state_dir=sys.argv[1], conntrack_timeout=7200))
print(manager.create_port_mapping("web", sys.argv[2], 80, 8080).host_port)
"""


@pytest.mark.behaviour
@pytest.mark.parametrize("version", [ABSENT, "", "0.1.0", "0.2.0"])
def test_lists_of_versions_that_only_libcni_understands_are_served(
    host: Host, client: Namespace, container: Container, plugin: Plugin, version: str
) -> None:
    """At 1.0.0 (defect 8) ADD and DEL were refused; libcni stops at a DEL that fails, and the interface leaks."""
    web = plugin.attachment(container, publish(8080))
    web.configuration["cniVersion"] = version
    previous = {
        "ip4": {"ip": container.networks[4], "gateway": "10.88.0.1"},
        "ip6": {"ip": container.networks[6]},
        "dns": {},
    }
    web.configuration["prevResult"] = {"cniVersion": version or "0.1.0", **previous}
    if version == ABSENT:
        del web.configuration["cniVersion"]
        web.configuration["prevResult"]["cniVersion"] = "0.1.0"
    answer = plugin.call("ADD", web.configuration, container)
    assert answer["ip4"]["ip"] == container.networks[4]
    for family in (4, 6):
        assert client.ask(HOST[family], 8080).server == "web"
    web.delete()
    web.delete_again_like_containerd()
    assert host.owners() == set()


@pytest.mark.parametrize("version", ["9.9.9", 5, "0.4"])
def test_a_del_is_answered_in_whatever_version(
    host: Host, container: Container, plugin: Plugin, version: object
) -> None:
    """DEL must not fail (defect 8); ADD of such a version is refused."""
    web = plugin.add(container, publish(8080))
    web.configuration["cniVersion"] = version
    with pytest.raises(PluginError) as caught:
        plugin.call("ADD", web.configuration, container)
    assert caught.value.code == 1
    web.delete()
    assert host.owners() == set()


@pytest.mark.behaviour
def test_null_is_as_absent(client: Namespace, container: Container, plugin: Plugin) -> None:
    """At 1.0.0 (defect 24) it was refused, with Python's `None` in the message; programs in Go write it."""
    nulls: dict[str, Any] = dict.fromkeys(
        ("snat", "masqAll", "conditionsV4", "conditionsV6", "markMasqBit", "externalSetMarkChain")
    )
    plugin.add(container, publish(8080), **nulls).check()
    assert client.ask(HOST[4], 8080).server == "web"


@pytest.mark.parametrize(
    ("key", "value", "right"), [("ConditionsV4", ["ip saddr 192.0.2.1"], "conditionsV4"), ("SNAT", False, "snat")]
)
def test_a_known_key_in_another_case_is_refused(
    container: Container, plugin: Plugin, key: str, value: object, right: str
) -> None:
    """At 1.0.0 (defect 24) it was ignored: with portmap the conditions guard the port, and here it was open."""
    keys: dict[str, Any] = {key: value}
    with pytest.raises(PluginError, match=f"'{key}'.*'{right}'") as caught:
        plugin.add(container, publish(8080), **keys)
    assert caught.value.code == 7


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN"])
def test_a_number_that_json_cannot_have_is_refused_before_anything_changes(
    host: Host, container: Container, plugin: Plugin, number: str
) -> None:
    """At 1.0.0 (defect 42) ADD failed with code 199 after it had made rules."""
    web = plugin.attachment(container, publish(8080))
    web.configuration["prevResult"]["interfaces"][0]["mtu"] = "NUMBER"
    script = f"""sed 's/"NUMBER"/{number}/' | "$@\""""
    process = plugin.start("ADD", web.configuration, container, before=("sh", "-c", script, "sh"))
    with pytest.raises(PluginError) as caught:
        plugin.finish(process)
    assert caught.value.code == 6
    assert host.installed() == set()
    assert not list(plugin.state_directory.glob("attachments/*"))


@pytest.mark.parametrize(
    ("verb", "version", "environment"),
    [
        ("ADD", "0.4.0", {}),
        ("ADD", "1.0.0", {"CNI_IFNAME": "eth/0"}),
        ("GC", "1.0.0", {}),
        ("CHECK", "0.3.1", {}),
    ],
)
def test_error_objects_have_the_version_of_the_configuration(
    container: Container, plugin: Plugin, verb: str, version: str, environment: dict[str, Any]
) -> None:
    """At 1.0.0 (defect 49) they said 1.1.0 where the environment was wrong, or the verb younger than the configuration's version."""
    process = plugin.start(verb, plugin.configuration(cniVersion=version), container, **environment)
    output, _ = process.communicate(timeout=90)
    assert "code" in json.loads(output)
    assert json.loads(output)["cniVersion"] == version


@pytest.mark.behaviour
@both_families
def test_conntrack_entries_from_before_an_add_again_go_with_del(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """At 1.0.0 (defect 15) the counters of the new elements said that nobody ever came."""
    plugin.add(container, publish(8080, protocol="udp"))
    talk = Talk(stack, client, HOST[family], 8080)
    assert talk.ask() == "web"
    again = plugin.add(container, publish(9090, protocol="udp"))
    again.delete()
    container.ip("link del eth0")
    newcomer = host.container(number=int(container.address[4].rpartition(".")[2]))
    newcomer.serve("newcomer", 80)
    assert talk.ask() is None


@both_families
def test_conntrack_entries_from_before_a_move_between_backends_go_with_del(
    stack: ExitStack, host: Host, client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    """The counters of the new backend know nothing of them, and the next owner of the address would get the client's datagrams."""
    plugin.add(host.container("cni1"), network="other")  # or the table is new to the move, and that is noted
    plugin.add(container, publish(8080, protocol="udp"), backend="iptables")
    talk = Talk(stack, client, HOST[family], 8080)
    assert talk.ask() == "web"
    moved = plugin.attachment(container, publish(8080, protocol="udp"), backend="nftables")
    plugin.add(host.container(), backend="nftables")
    moved.delete()
    container.ip("link del eth0")
    newcomer = host.container(number=int(container.address[4].rpartition(".")[2]))
    newcomer.serve("newcomer", 80)
    assert talk.ask() is None


@both_families
def test_an_add_that_repairs_also_translates_what_began_in_the_gap(
    stack: ExitStack,
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    family: int,
) -> None:
    """At 1.0.0 (defect 14) only `reconcile` did: who sent UDP during the gap went on unreached, and unmasqueraded."""
    client.serve("outside", 53)
    host.add_client_routes()
    plugin.add(container, publish(8080, protocol="udp"))
    host.run(
        "nft", "add table inet firewall { chain c { type nat hook prerouting priority 0; ct state new accept; }; }"
    )
    host.run("nft", "delete", "table", "inet", "quantum")
    inbound = Talk(stack, client, HOST[family], 8080)
    outbound = Talk(stack, container, CLIENT[family], 54)
    assert (inbound.ask(), outbound.ask()) == (None, None)
    plugin.add(other_container)
    assert inbound.ask() == "web"
    server = client.serve("late", 54)
    assert outbound.ask() == "late"
    assert server.seen == [HOST[family]]


def test_a_dormant_table_is_woken_and_named(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 26) ADD, CHECK and reconcile were content, and nothing was translated."""
    web = plugin.add(container, publish(8080))
    host.run("nft", "add table inet quantum { flags dormant; }")
    assert client.is_refused(HOST[4], 8080)
    with pytest.raises(PluginError, match="the table or a base chain was altered"):
        web.check()
    assert plugin.operate("reconcile", "--dry-run").returncode == 1
    plugin.add(other_container)
    assert client.ask(HOST[4], 8080).server == "web"
    web.check()


@pytest.mark.parametrize("chain", ["host_ports", "outbound4", "published", "return_path4"])
@pytest.mark.parametrize("how", ["ADD", "reconcile"])
def test_a_rule_that_was_deleted_in_any_chain_is_repaired(
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    chain: str,
    how: str,
) -> None:
    """At 1.0.0 (defects 8b and 26) only doctor saw a rule that was missing in a chain that others jump to."""
    client.serve("outside", 80)
    web = plugin.add(container, publish(8080))
    host.run("nft", "flush", "chain", "inet", "quantum", chain)
    with pytest.raises(PluginError, match=f"chain {chain} was altered"):
        web.check()
    if how == "ADD":
        plugin.add(other_container)
    else:
        assert plugin.operate("reconcile").returncode == 0
    web.check()
    assert client.ask(HOST[4], 8080).server == "web"
    assert container.ask(HOST[4], 8080).server == "web"
    assert container.ask(CLIENT[4], 80).source == HOST[4]


def test_a_table_that_was_restored_from_a_file_holds_no_port(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 43) `nft list ruleset > /etc/nftables.conf` and a reboot left ports that nobody had: code 100 forever."""
    plugin.add(container, publish(8080))
    saved = host.run("nft", "list", "ruleset")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert boot in saved
    container.remove()
    shutil.rmtree(plugin.state_directory)
    host.run("nft", "flush", "ruleset")
    host.run("nft", "-f", "-", stdin=saved.replace(boot, "00000000-1111-2222-3333-444444444444"))
    other_container.serve("other", 80)
    web = plugin.add(other_container, publish(8080))
    assert client.ask(HOST[4], 8080).server == "other"
    web.check()
    assert host.owners() == {web.owner}


@pytest.mark.behaviour
def test_a_program_with_many_descriptors_can_use_the_api(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 23) libnftables' select(2) aborted it where the table was to be made."""
    if plugin.programs is not None:
        pytest.skip("the kernel has no part in it: libnftables is nftables' alone")
    line = [sys.executable, "-I", "-c", MANY_DESCRIPTORS, str(plugin.state_directory), container.address[4]]
    with inside(host.path):
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=90, env=plugin.environ)
    assert (done.returncode, done.stdout) == (0, "8080\n"), done.stderr
    assert client.ask(HOST[4], 8080).server == "web"


def test_a_user_namespace_without_rights_outside_can_have_the_table(tmp_path: Path) -> None:
    """At 1.0.0 (defect 21) it failed there, rootless: "Message too long"."""
    script = (
        "mount -t tmpfs none /run && mkdir /run/netns && ip link set lo up && ip link add cni0 type bridge && "
        "ip addr add 10.88.0.1/24 dev cni0 && ip link set cni0 up && ip netns add web && "
        'exec "$@"'
    )
    state = tmp_path / "state"
    tmp_path.chmod(0o755)
    call = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "quantum-nat",
        "stateDir": str(state),
        "ipForwarding": False,
        "runtimeConfig": {"portMappings": [publish(8080 + number) for number in range(300)]},
        "prevResult": {
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/web"}],
            "ips": [{"interface": 0, "address": "10.88.0.2/24"}],
        },
    }
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "web",
        "CNI_NETNS": "/run/netns/web",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    }
    command = (
        [os.environ["QUANTUM_NAT_PLUGIN"]]
        if "QUANTUM_NAT_PLUGIN" in os.environ
        else [sys.executable, "-I", "-m", "cni_quantum_nat"]
    )
    line = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", script, "sh", *command]
    done = subprocess.run(
        line, input=json.dumps(call), env=environment, capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["ips"][0]["address"] == "10.88.0.2/24"


def test_del_succeeds_where_iptables_was_uninstalled(container: Container, plugin: Plugin) -> None:
    """At 1.0.0 (defect 38) it failed with code 50 forever."""
    web = plugin.add(container, publish(8080), backend="iptables")
    without = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /usr/sbin && exec "$@"', "sh")
    process = plugin.start("DEL", web.configuration, container, before=without)
    _, complaints = process.communicate(timeout=90)
    assert process.returncode == 0
    assert "iptables" in complaints
    assert not list(plugin.state_directory.glob("attachments/*"))


def test_a_second_address_of_a_container_does_not_get_its_host_port(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 33) the API said that it had, and the port led to the first address."""
    from cni_quantum_nat import CniError, NatConfig, NatManager

    container.ip("address add 10.88.0.200/24 dev eth0")
    with inside(host.path):
        manager = NatManager(NatConfig(state_dir=str(plugin.state_directory)))
        manager.create_port_mapping("web", container.address[4], 80, 8080)
        with pytest.raises(CniError, match=r"8080.* is already published by container web") as caught:
            manager.create_port_mapping("web", "10.88.0.200", 80, 8080)
        assert caught.value.code == 100
        manager.create_port_mapping("web", "10.88.0.200", 80, 8081)
        manager.create_port_mapping("web", container.address[6], 80, 8080)
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST[6], 8080).server == "web"
    assert client.ask(HOST[4], 8081).server == "web"
