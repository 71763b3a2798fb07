"""The state directory, partial failures, lost rulesets, and concurrent calls."""

from __future__ import annotations

import stat
from typing import Any

import pytest

from .plugin import Plugin, PluginError, publish
from .topology import CLIENT, HOST, Container, Host, Namespace

PARALLEL = 50


def test_the_state_directory_is_private(container: Container, plugin: Plugin) -> None:
    plugin.state_directory.mkdir(mode=0o755)
    plugin.add(container, publish(8080))
    assert stat.S_IMODE(plugin.state_directory.stat().st_mode) == 0o700
    files = [path for path in plugin.state_directory.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert len(list(plugin.state_directory.glob("attachments/*/*"))) == 1


@pytest.mark.parametrize("container_id", ["../../escape", "a/b", "..", ".hidden", "a:b"])
def test_a_container_id_that_could_escape_the_directory_is_refused(
    container: Container, plugin: Plugin, container_id: str
) -> None:
    container.id = container_id
    with pytest.raises(PluginError, match="CNI_CONTAINERID") as caught:
        plugin.add(container, publish(8080))
    assert caught.value.code == 4


@pytest.mark.parametrize("network", ["../net", "a/b", "..", ""])
def test_a_network_name_that_could_escape_the_directory_is_refused(
    container: Container, plugin: Plugin, network: str
) -> None:
    with pytest.raises(PluginError, match="name") as caught:
        plugin.add(container, publish(8080), network=network)
    assert caught.value.code == 7


@pytest.mark.behaviour
@pytest.mark.frozen
@pytest.mark.parametrize(
    "broken",
    [
        {"runtimeConfig": {"portMappings": [publish(8080), publish(0)]}},
        {"runtimeConfig": {"portMappings": [publish(8080), publish(8081, protocol="icmp")]}},
        {"masquerade": "both"},
        {"snatAddress": ["nonsense"]},
        {"externalInterface": "a/b"},
    ],
)
def test_a_refused_add_leaves_neither_record_nor_element(
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    plugin: Plugin,
    broken: dict[str, Any],
) -> None:
    other = plugin.add(other_container, publish(8081))
    with pytest.raises(PluginError) as caught:
        _add_with(plugin, container, broken)
    assert caught.value.code == 7
    assert client.is_refused(HOST[4], 8080)
    assert host.owners() == {other.owner}
    assert not list(plugin.state_directory.glob(f"attachments/{container.id}*"))


def test_an_add_refused_by_the_kernel_leaves_neither_record_nor_element(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    with pytest.raises(PluginError) as caught:
        plugin.call(
            "ADD",
            plugin.attachment(container, publish(8080), ipForwarding=False).configuration,
            container,
            before=("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"),
        )
    assert caught.value.code in (50, 101)
    assert client.is_refused(HOST[4], 8080)
    assert "No such file" in host.ruleset()
    assert not list(plugin.state_directory.glob("attachments/*"))


@pytest.mark.behaviour
def test_an_add_that_fails_in_its_last_step_leaves_neither_record_nor_element(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    other = plugin.add(other_container)
    host.set_sysctl("ipv4/conf/cni0/route_localnet", "0")
    read_only = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    request = plugin.attachment(container, publish(8080)).configuration
    with pytest.raises(PluginError, match="route_localnet"):
        plugin.call("ADD", request, container, before=("unshare", "--mount", "sh", "-c", read_only, "sh"))
    assert client.is_refused(HOST[4], 8080)
    assert host.owners() == {other.owner}
    assert not list(plugin.state_directory.glob(f"attachments/{container.id}*"))


@pytest.mark.behaviour
def test_a_failed_second_add_keeps_the_attachment(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    other_container.serve("other", 80)
    plugin.add(other_container, publish(9000))
    web = plugin.add(container, publish(8080))
    with pytest.raises(PluginError, match=other_container.id):
        plugin.add(container, publish(8081), publish(9000))
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.is_refused(HOST[4], 8081)
    assert client.ask(HOST[4], 9000).server == "other"
    web.check()


@pytest.mark.frozen
@pytest.mark.parametrize("loss", ["flush ruleset", "delete table inet quantum", "flush chain inet quantum prerouting"])
def test_after_a_lost_ruleset_the_next_add_restores_everything(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, loss: str
) -> None:
    client.serve("outside", 80)
    other_container.serve("other", 80)
    attachments = [plugin.add(container, publish(8080)), plugin.add(other_container, publish(8081, hostIP=HOST[6]))]
    host.run("nft", loss)
    assert client.is_refused(HOST[4], 8080)
    attachments.append(plugin.add(host.container("cni1"), network="other"))
    for family in (4, 6):
        assert client.ask(HOST[family], 8080).server == "web"
        assert other_container.ask(CLIENT[family], 80).source == HOST[family]
    assert client.ask(HOST[6], 8081).server == "other"
    assert host.ask("127.0.0.1", 8080).server == "web"
    for attachment in attachments:
        attachment.check()


def test_an_add_refused_for_a_conflict_still_restores_a_lost_ruleset(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8080))
    host.run("nft", "flush ruleset")
    with pytest.raises(PluginError, match=container.id):
        plugin.add(other_container, publish(8080))
    assert client.ask(HOST[4], 8080).server == "web", "a refused ADD repairs too"
    web.check()


@pytest.mark.behaviour
def test_concurrent_adds_and_dels_leave_nothing(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    attachments = []
    for number in range(PARALLEL):
        attachment = plugin.attachment(container, publish(8000 + number), publish(8000 + number, protocol="udp"))
        attachment.configuration["name"] = f"net{number}"
        attachment.configuration["prevResult"]["ips"] = _addresses(number, container)
        attachments.append(attachment)
    _all_at_once(plugin, "ADD", attachments)
    for number in (0, PARALLEL - 1):
        assert client.ask(HOST[4], 8000 + number).server == "web"
    assert host.owners() == {attachment.owner for attachment in attachments}
    _all_at_once(plugin, "DEL", attachments)
    assert client.is_refused(HOST[4], 8000)
    assert host.owners() == set()
    assert not list(plugin.state_directory.glob("attachments/*"))


def _addresses(number: int, container: Container) -> list[dict[str, Any]]:
    """Return addresses for an attachment, each different; the container answers to all IPv4 ones."""
    container.ip(f"address add 10.88.0.{100 + number}/24 dev eth0")
    return [{"interface": 1, "address": f"10.88.0.{100 + number}/24"}]


def _all_at_once(plugin: Plugin, verb: str, attachments: list[Any]) -> None:
    calls = [plugin.start(verb, a.configuration, a.container) for a in attachments]
    for call in calls:
        plugin.finish(call)


def _add_with(plugin: Plugin, container: Container, keys: dict[str, Any]) -> None:
    attachment = plugin.attachment(container, publish(8080))
    attachment.configuration.update(keys)
    attachment.add()
