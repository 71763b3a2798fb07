"""`quantum-nat connections`: the translated connections of containers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from .plugin import Plugin, publish
from .test_policies import establish, listen
from .topology import CLIENT, HOST, Container, Host, Namespace

if TYPE_CHECKING:
    import subprocess
    from contextlib import ExitStack

both_families = pytest.mark.parametrize("family", [4, 6])


def connections(plugin: Plugin, *arguments: str) -> subprocess.CompletedProcess[str]:
    return plugin.operate("connections", *arguments)


def listed(plugin: Plugin, *arguments: str) -> list[dict[str, Any]]:
    done = connections(plugin, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@pytest.mark.frozen
@both_families
def test_both_directions_are_listed_with_addresses_before_and_after_translation(
    stack: ExitStack, host: Host, client: Namespace, plugin: Plugin, family: int
) -> None:
    container, other = host.container(), host.container()
    host.set_sysctl("netfilter/nf_conntrack_acct", "1")
    for namespace, port in ((container, 80), (host, 90), (client, 100)):
        listen(stack, namespace, port, family)
    plugin.add(container, publish(8080))
    plugin.add(other)
    inward = establish(stack, client, HOST[family], 8080)
    outward = establish(stack, container, CLIENT[family], 100)
    establish(stack, client, HOST[family], 90)
    incoming, outgoing = sorted(listed(plugin), key=lambda connection: str(connection["direction"]))
    assert incoming["containerId"] == outgoing["containerId"] == container.id
    assert (incoming["direction"], outgoing["direction"]) == ("in", "out")
    assert incoming["source"] == at(CLIENT[family], inward)
    assert incoming["destination"] == at(HOST[family], 8080)
    assert incoming["newDestination"] == at(container.address[family], 80)
    assert incoming["newSource"] == ""
    assert outgoing["source"] == at(container.address[family], outward)
    assert outgoing["newSource"].startswith(at(HOST[family], 0)[:-1])
    assert incoming["state"] == outgoing["state"] == "established"
    assert incoming["bytes"] > 100
    assert 3500 < incoming["expiresS"] <= 3600
    assert listed(plugin, other.id) == []
    assert len(listed(plugin, container.id[:-1])) == 2
    lines = connections(plugin).stdout.splitlines()
    assert lines[0].split()[:3] == ["DIRECTION", "PROTOCOL", "FROM"]
    assert f"to {at(container.address[family], 80)}" in lines[1]


def test_udp_from_another_container_through_the_host(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080, protocol="udp"))
    client.ask(HOST[4], 8080, "udp")
    other_container.ask(HOST[4], 8080, "udp")
    states = {connection["source"].partition(":")[0]: connection for connection in listed(plugin)}
    assert states[CLIENT[4]]["state"] == "replied"
    assert states[CLIENT[4]]["bytes"] is None
    assert states[other_container.address[4]]["newSource"].startswith("10.88.0.1:")


def test_an_unknown_container_is_an_error(plugin: Plugin) -> None:
    done = connections(plugin, "nobody")
    assert done.returncode == 1
    assert f"there is no state directory {plugin.state_directory}" in done.stderr
