"""Conditions of one network are that network's affair: whatever they say, all others work and are repaired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .plugin import Attachment, Plugin, PluginError, publish
from .topology import HOST, Container, Host, Namespace

if TYPE_CHECKING:
    from typing import Any


@pytest.mark.parametrize(
    "words",
    [
        ["iif", "wg0"],
        ["meta oif wg0"],
        ["ip saddr localhost"],
        ["ip saddr { 192.0.2.1, localhost }"],
        ["ip saddr . tcp dport { localhost . 80 }"],
        ["meta skuid root"],
    ],
)
def test_a_condition_that_is_looked_up_when_it_is_read_is_refused(
    host: Host, container: Container, plugin: Plugin, words: list[str]
) -> None:
    """At 1.0.0 (defect 4) it was taken, and the table could not be made again when the name had gone, or DNS did not answer."""
    host.ip("link add wg0 type bridge")
    with pytest.raises(PluginError) as caught:
        plugin.add(container, publish(8080), conditionsV4=words)
    assert caught.value.code == 7
    assert "conditionsV4" in caught.value.message
    assert not (plugin.state_directory / "attachments" / container.id).exists()


@pytest.mark.parametrize("words", [["-s", "localhost"], ["!", "--source", "localhost,192.0.2.1"]])
def test_iptables_looks_up_no_host_name_either(container: Container, plugin: Plugin, words: list[str]) -> None:
    """At 1.0.0 (defect 4) `iptables-restore` asked DNS for it, under the lock."""
    with pytest.raises(PluginError, match=r"'localhost.*' is not an address") as caught:
        plugin.add(container, publish(8080), conditionsV4=words, backend="iptables")
    assert caught.value.code == 7


def test_conditions_by_the_name_of_an_interface_that_has_gone_are_repaired(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    other_container.serve("other", 80)
    host.ip("link add wg0 type bridge")
    guarded = plugin.add(container, publish(8080), network="guarded", conditionsV4=["iifname", "wg0"])
    host.ip("link del wg0")
    host.run("nft", "flush", "ruleset")
    plugin.add(other_container, publish(8081)).check()
    guarded.check()
    assert client.ask(HOST[4], 8081).server == "other"
    assert client.is_refused(HOST[4], 8080)


def give_conditions(attachment: Attachment, words: list[str]) -> None:
    """Give the record conditions that this version refuses, as 1.0.0 took them."""
    directory = attachment.plugin.state_directory / "attachments" / attachment.container.id
    path = directory / f"{attachment.configuration['name']}:eth0.json"
    record: dict[str, Any] = json.loads(path.read_text())
    record["inbound"]["conditions"] = {"4": words}
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("words", [["iif", "wg0"], ["ip saddr localhost"]])
@pytest.mark.parametrize("how", ["ADD", "reconcile"])
def test_an_attachment_whose_conditions_no_longer_load_is_left_out_of_the_repair(
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    how: str,
    words: list[str],
) -> None:
    """At 1.0.0 (defect 4) no other container could be added, and nothing was repaired: code 50; or a host name was looked up under the lock."""
    other_container.serve("other", 80)
    other = plugin.add(other_container, publish(8081))
    stuck = plugin.add(container, publish(8080), network="guarded", conditionsV4=["iifname", "wg0"])
    give_conditions(stuck, words)
    host.run("nft", "flush", "ruleset")
    if how == "ADD":
        newcomer = host.container()
        attachment = plugin.attachment(newcomer, publish(8082))
        process = plugin.start("ADD", attachment.configuration, newcomer)
        _, complaints = process.communicate(timeout=90)
        assert process.returncode == 0, complaints
        attachment.check()
    else:
        complaints = plugin.operate("reconcile").stderr
    assert f"container {container.id} (eth0 on network guarded) is left out" in complaints
    assert client.ask(HOST[4], 8081).server == "other"
    assert client.is_refused(HOST[4], 8080)
    other.check()
    stuck.delete()
    other.check()
    assert not Path(plugin.state_directory, "attachments", container.id).exists()


@pytest.mark.parametrize("name", ["up+", ["uplink", "up+"]])
def test_a_wildcard_is_no_interface_for_iptables(container: Container, plugin: Plugin, name: object) -> None:
    """At 1.0.0 (defect 38) `externalInterface: "up+"` masqueraded what left by any interface whose name begins with "up"."""
    with pytest.raises(PluginError, match=r"externalInterface 'up\+'.* iptables") as caught:
        plugin.add(container, externalInterface=name, backend="iptables")
    assert caught.value.code == 7


def test_a_plus_in_a_name_is_a_plus_for_nftables(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    """nft has no such wildcard: it is an interface of this very name."""
    client.serve("outside", 80)
    host.add_client_routes()
    plugin.add(container, externalInterface="up+")
    assert container.ask("198.51.100.2", 80).source == container.address[4]


@pytest.mark.parametrize("backend", ["iptables-nft"], indirect=True)
def test_iptables_does_not_look_up_a_host_name_of_a_record(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """1.0.0 took such conditions; a repair would ask DNS for them, under the lock."""
    other_container.serve("other", 80)
    plugin.add(other_container, publish(8081))
    stuck = plugin.add(container, publish(8080), network="guarded", conditionsV4=["-s", "192.0.2.7"])
    give_conditions(stuck, ["-s", "localhost"])
    for prefix in ("iptables", "ip6tables"):
        host.run(f"{prefix}-nft", "-t", "nat", "-F")
    complaints = plugin.operate("reconcile").stderr
    assert f"container {container.id} (eth0 on network guarded) is left out" in complaints
    assert client.ask(HOST[4], 8081).server == "other"
    assert client.is_refused(HOST[4], 8080)
    stuck.delete()
