"""The other calls of a runtime: repeated DEL, CHECK, GC, STATUS."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from cni_quantum_nat.state.directory import State

from .plugin import Attachment, Plugin, PluginError, publish
from .topology import HOST, Container, Host, Namespace


@pytest.mark.frozen
def test_add_passes_on_prev_result_completely(container: Container, plugin: Plugin) -> None:
    web = plugin.attachment(container, publish(8080))
    web.configuration["prevResult"].update(
        {"routes": [{"dst": "0.0.0.0/0"}], "vendor.example/key": {"kept": [1, None]}}
    )
    assert web.add().result == web.configuration["prevResult"]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version_of_the_specification_is_supported(
    client: Namespace, container: Container, plugin: Plugin, version: str
) -> None:
    web = plugin.attachment(container, publish(8080), cniVersion=version)
    families = ["4", "6"] if version < "1.0.0" else [None, None]
    for address, family in zip(web.configuration["prevResult"]["ips"], families, strict=True):
        address.update({"version": family} if family else {})
    web.configuration["prevResult"]["cniVersion"] = version
    assert web.add().result == web.configuration["prevResult"]
    assert client.ask(HOST[4], 8080).server == "web"
    if version >= "0.4.0":
        web.check()
    web.delete()
    assert client.is_refused(HOST[4], 8080)


def test_add_without_prev_result_is_an_error(container: Container, plugin: Plugin) -> None:
    with pytest.raises(PluginError, match="is a chained plugin") as caught:
        plugin.call("ADD", plugin.configuration(), container)
    assert caught.value.code == 7


@pytest.mark.behaviour
def test_addresses_of_other_interfaces_are_ignored(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    other_container.serve("other", 80)
    web = plugin.attachment(container, publish(8080))
    result = web.configuration["prevResult"]
    result["interfaces"].append({"name": "eth9", "sandbox": str(container.path)})
    result["ips"].insert(0, {"interface": 2, "address": other_container.networks[4]})
    result["ips"].insert(0, {"interface": 0, "address": "10.88.0.1/24"})
    web.add()
    assert client.ask(HOST[4], 8080).server == "web"


@pytest.mark.behaviour
def test_a_damaged_record_stops_neither_add_nor_del(client: Namespace, container: Container, plugin: Plugin) -> None:
    web = plugin.add(container, publish(8080))
    (record,) = plugin.state_directory.glob("attachments/*/*")
    record.write_text('{"half": ')
    web.add().check()
    assert client.ask(HOST[4], 8080).server == "web"
    record.write_text('{"half": ')
    web.delete()
    assert client.is_refused(HOST[4], 8080)


@pytest.mark.behaviour
def test_del_may_be_repeated_without_namespace_and_prev_result(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8080))
    web.delete_again_like_containerd()
    assert client.is_refused(HOST[4], 8080)
    web.delete_again_like_containerd()
    web.delete()
    assert host.owners() == set()


@pytest.mark.behaviour
def test_del_of_an_unknown_attachment_succeeds(container: Container, plugin: Plugin) -> None:
    plugin.attachment(container, publish(8080)).delete()
    plugin.attachment(container).delete_again_like_containerd()


@pytest.mark.behaviour
def test_check_succeeds_after_add(container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080), publish(8081, protocol="udp", hostIP="127.0.0.1")).check()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("flush map inet quantum endpoints4", "endpoints4.*8080"),
        ("flush set inet quantum masqueraded6", "masqueraded6"),
        ("flush chain inet quantum prerouting", "prerouting"),
        ("flush chain inet quantum guard", "guard"),
        ("flush ruleset", "inet quantum"),
    ],
)
def test_check_reports_missing_elements_and_rules(
    host: Host, container: Container, plugin: Plugin, damage: str, named: str
) -> None:
    web = plugin.add(container, publish(8080))
    host.run("nft", damage)
    with pytest.raises(PluginError, match=named):
        web.check()
    web.add().check()


def test_check_reports_a_missing_chain(host: Host, container: Container, plugin: Plugin) -> None:
    web = plugin.add(container, publish(8080))
    host.run("nft", "delete chain inet quantum guard")
    with pytest.raises(PluginError, match="guard was altered"):
        web.check()


@pytest.mark.parametrize(("destination", "comment"), [("10.88.0.250 . 80", ""), ("{own} . 80", "other/somebody/eth0")])
def test_check_reports_a_changed_element(
    host: Host, container: Container, plugin: Plugin, destination: str, comment: str
) -> None:
    web = plugin.add(container, publish(8080))
    host.run("nft", "flush map inet quantum endpoints4")
    data = destination.format(own=container.address[4])
    comment = comment or web.owner + State(str(plugin.state_directory)).realm
    host.run("nft", f'add element inet quantum endpoints4 {{ tcp . 8080 comment "{comment}" : {data} }}')
    with pytest.raises(PluginError, match=r"10\.88\.0\.250" if "250" in destination else comment):
        web.check()


@pytest.mark.behaviour
def test_check_reports_a_lost_record(container: Container, plugin: Plugin) -> None:
    web = plugin.add(container, publish(8080))
    shutil.rmtree(plugin.state_directory / "attachments")
    with pytest.raises(PluginError, match="record is lost"):
        web.check()


def _valid(*attachments: Attachment) -> list[dict[str, Any]]:
    return [{"containerID": a.container.id, "ifname": a.container.interface} for a in attachments]


@pytest.mark.behaviour
@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_keeps_the_valid_attachments_and_those_of_other_networks(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, key: str
) -> None:
    other = host.container("cni1")
    other.serve("other", 80)
    kept = plugin.add(container, publish(8080))
    plugin.add(other_container, publish(8081))
    stranger = plugin.add(other, publish(8082), network="other")
    plugin.gc({key: _valid(kept)})
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.is_refused(HOST[4], 8081)
    assert client.ask(HOST[4], 8082).server == "other"
    assert host.owners() == {kept.owner, stranger.owner}
    kept.check()


@pytest.mark.behaviour
def test_gc_removes_elements_without_a_record(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080))
    kept = plugin.add(other_container, publish(8081))
    shutil.rmtree(plugin.state_directory / "attachments" / container.id)
    plugin.gc({"cni.dev/valid-attachments": _valid(kept)})
    assert client.is_refused(HOST[4], 8080)
    assert host.owners() == {kept.owner}


@pytest.mark.behaviour
def test_gc_with_null_removes_the_whole_network(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080))
    plugin.gc({"cni.dev/valid-attachments": None})
    assert client.is_refused(HOST[4], 8080)
    assert host.owners() == set()
    assert not list(plugin.state_directory.glob("attachments/*"))


@pytest.mark.behaviour
def test_gc_without_a_list_removes_dead_attachments(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    kept = plugin.add(container, publish(8080))
    plugin.add(other_container, publish(8081))
    other_container.remove()
    plugin.gc()
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.is_refused(HOST[4], 8081)
    assert host.owners() == {kept.owner}


@pytest.mark.behaviour
def test_status_succeeds_before_and_after_the_first_add(container: Container, plugin: Plugin) -> None:
    plugin.status()
    plugin.add(container)
    plugin.status()


@pytest.mark.parametrize("built", [False, True])
def test_status_without_cap_net_admin_has_code_50(
    container: Container,
    plugin: Plugin,
    built: bool,
) -> None:
    if built:
        plugin.add(container)
    with pytest.raises(PluginError, match="nftables") as caught:
        plugin.status("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
    assert caught.value.code == 50
