"""Limits: a call succeeds completely, or fails with an error and changes nothing."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from cni_quantum_nat.kernel.namespaces import identity
from cni_quantum_nat.model.addresses import Endpoint
from cni_quantum_nat.model.attachments import Attachment, AttachmentId, Inbound, Outbound, PortMapping
from cni_quantum_nat.state.directory import State

from .plugin import PluginError, publish
from .topology import HOST

if TYPE_CHECKING:
    from .plugin import Plugin
    from .topology import Container, Host, Namespace

ATTACHMENTS = 2_000
FIRST, PORTS = 30_000, 28_000
RANGE = f"{FIRST}-{FIRST + PORTS - 1}"


def test_28000_ports_of_one_container_fill_a_range_and_the_next_is_refused(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    wanted = ({"containerPort": 1 + number} for number in range(PORTS))
    web = plugin.add(container, *wanted, portRange=RANGE)
    port_of_80 = plugin.operate("port", container.id, "80").stdout.split(":")[-1].strip()
    assert client.ask(HOST[4], int(port_of_80)).server == "web"
    web.check()
    before = host.owners()
    with pytest.raises(PluginError, match="no tcp port is free") as caught:
        plugin.add(other_container, {"containerPort": 80}, portRange=RANGE)
    assert caught.value.code == 107
    with pytest.raises(PluginError, match="no tcp port is free"):
        plugin.add(container, *({"containerPort": 1 + number} for number in range(PORTS + 1)), portRange=RANGE)
    assert host.owners() == before
    assert client.ask(HOST[4], int(port_of_80)).server == "web"
    host.run("nft", "flush ruleset")
    plugin.add(other_container, publish(20000))
    assert client.ask(HOST[4], int(port_of_80)).server == "web"
    web.delete()
    assert client.is_refused(HOST[4], int(port_of_80))


def test_2000_attachments_are_restored_together_and_deleted_one_by_one(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    """The attachments exist only as records: the first ADD finds no table, and builds it for all of them."""
    _record_many(plugin, container)
    web = plugin.add(container, publish(8080), network="web")
    assert len(host.owners()) == ATTACHMENTS + 1
    assert client.ask(HOST[4], 8080).server == "web"
    assert len(json.loads(plugin.operate("list", "--json").stdout)) == ATTACHMENTS + 1
    assert plugin.operate("reconcile", "--dry-run").returncode == 0
    with pytest.raises(PluginError, match="is already in use by"):
        plugin.add(container, publish(FIRST + 7), network="other")
    web.delete()
    plugin.gc({"cni.dev/valid-attachments": []})
    assert host.owners() == set()
    assert not list(plugin.state_directory.glob("attachments/*"))


def _record_many(plugin: Plugin, container: Container) -> None:
    state = State(str(plugin.state_directory))
    state.lock()
    for number in range(ATTACHMENTS):
        state.write(_attachment(number, container))
    state.unlock()


def _attachment(number: int, container: Container) -> Attachment:
    endpoint = Endpoint.parse(f"10.88.{1 + number // 250}.{1 + number % 250}/16")
    endpoint.host_interface = "cni0"
    return Attachment(
        AttachmentId("net", f"c{number}", "eth0"),
        backend="nftables",
        netns=str(container.path),
        netns_identity=identity(str(container.path)) or (0, 0),
        endpoints=[endpoint],
        port_mappings=[PortMapping(None, FIRST + number, "tcp", 80)],
        outbound=Outbound((4,)),
        inbound=Inbound(),
        established_timeout_s=3600,
        created_at=time.time(),
    )
