"""Other programs with filters and NAT on the same host: both kinds of traffic work, or the doctor names what blocks."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

import pytest

from .firewalld import Firewalld
from .peer import TimedOut
from .plugin import Plugin, publish
from .test_doctor import findings, only_finding
from .test_watch import Conversation
from .topology import CLIENT, HOST, Container, Host, Namespace

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path


@pytest.fixture
def firewalld(host: Host, tmp_path: Path, stack: ExitStack) -> Firewalld:
    return Firewalld(host, tmp_path / "firewalld", stack)


def test_under_firewalld_the_doctors_advice_works_and_survives_a_reload(
    host: Host, client: Namespace, container: Container, plugin: Plugin, firewalld: Firewalld
) -> None:
    client.serve("outside", 80)
    plugin.add(container, publish(8080))
    with pytest.raises((TimedOut, OSError)):
        container.ask(CLIENT[4], 80, timeout=0.3)
    firewalld.shell(only_finding(plugin, "filters")["remedy"])
    for family in (4, 6):
        assert container.ask(CLIENT[family], 80).source == HOST[family]
        for asking in (client, host, container):
            assert asking.ask(HOST[family], 8080).server == "web"
    assert findings(plugin) == []


def test_strict_forward_ports_of_firewalld_is_named_and_cured(
    host: Host, client: Namespace, container: Container, plugin: Plugin, firewalld: Firewalld
) -> None:
    """Newer versions of firewalld have the option, which leaves out the rule that accepts translated connections."""

    def be_strict() -> None:
        listed = host.run("nft", "-a", "list chain inet firewalld filter_FORWARD")
        (handle,) = re.findall(r"ct status dnat accept # handle (\d+)", listed)
        host.run("nft", f"delete rule inet firewalld filter_FORWARD handle {handle}")

    plugin.add(container, publish(8080))
    firewalld.shell("echo StrictForwardPorts=yes >>/etc/firewalld/firewalld.conf")
    be_strict()
    with pytest.raises((TimedOut, OSError)):
        client.ask(HOST[4], 8080, timeout=0.3)
    found = json.loads(firewalld.shell(shlex.join(plugin.operator_line("doctor", "--json")) + " || true"))
    (problem,) = [entry for entry in found if entry["status"] != "ok"]
    assert "StrictForwardPorts=yes" in problem["problem"]
    firewalld.shell(problem["remedy"])
    be_strict()
    for family in (4, 6):
        assert client.ask(HOST[family], 8080).server == "web"
    assert findings(plugin) == []


def test_a_reload_of_firewalld_keeps_our_rules(
    host: Host, client: Namespace, container: Container, plugin: Plugin, firewalld: Firewalld, stack: ExitStack
) -> None:
    plugin.add(container, publish(8081, 81), publish(8080, 9000))
    conversation = Conversation(stack, client, container, HOST[4], 9000)
    container.serve("other", 81)
    before = host.installed()
    for reload in ("--reload", "--complete-reload"):
        firewalld.call(reload)
        assert host.installed() == before
        assert client.ask(HOST[4], 8081).server == "other"
    conversation.end()
    assert conversation.failure == ""


@pytest.mark.parametrize("backend", ["iptables-nft"], indirect=True)
def test_if_firewalld_flushes_iptables_rules_reconcile_restores_them(
    host: Host, client: Namespace, container: Container, plugin: Plugin, firewalld: Firewalld
) -> None:
    plugin.add(container, publish(8080))
    firewalld.call("--reload")
    if "8080" in host.run("iptables-nft-save", "-t", "nat"):  # firewalld 2.3 leaves the rules of others alone
        assert client.ask(HOST[4], 8080).server == "web"
        return
    with pytest.raises(OSError, match="No route"):  # firewalld's reject for traffic to the host itself
        client.ask(HOST[4], 8080)
    assert f"quantum-nat --state-dir {plugin.state_directory} reconcile" in {
        finding["remedy"].rstrip(".") for finding in findings(plugin)
    }
    assert plugin.operate("reconcile").returncode == 0
    assert client.ask(HOST[4], 8080).server == "web"


DOCKER = """
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 10.99.0.0/24 ! -o cni1 -j MASQUERADE
-A DOCKER -i cni1 -j RETURN
-A DOCKER ! -i cni1 -p tcp -m tcp --dport 9090 -j DNAT --to-destination {container}:80
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o cni1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o cni1 -j DOCKER
-A FORWARD -i cni1 ! -o cni1 -j ACCEPT
-A DOCKER -d {container}/32 ! -i cni1 -o cni1 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-USER -i cni0 -j ACCEPT
-A DOCKER-USER -o cni0 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
"""


@pytest.mark.behaviour
@pytest.mark.parametrize("docker_first", [True, False], ids=["docker first", "docker later"])
def test_docker_and_its_containers_keep_working(
    host: Host, client: Namespace, container: Container, plugin: Plugin, docker_first: bool
) -> None:
    of_docker = host.container("cni1")
    of_docker.serve("docker's", 80)
    client.serve("outside", 80)
    host.set_sysctl("ipv4/ip_forward", "1")
    rules = DOCKER.format(container=of_docker.address[4])
    if docker_first:
        host.run("iptables-nft-restore", stdin=rules)
    attachment = plugin.add(container, publish(8080))
    if not docker_first:
        host.run("iptables-nft-restore", "--noflush", stdin=rules)
    for asking in (client, container):
        assert asking.ask(HOST[4], 9090).server == "docker's"
    for asking in (client, host, of_docker):
        assert asking.ask(HOST[4], 8080).server == "web"
    for leaving in (container, of_docker):
        assert leaving.ask(CLIENT[4], 80).source == HOST[4]
    attachment.delete()
    assert client.ask(HOST[4], 9090).server == "docker's"
