"""Ports of running containers: published, taken back, moved and drained by an operator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from .peer import TimedOut
from .plugin import Attachment, Plugin, PluginError, publish
from .talk import Line, Talk
from .test_sources import FAR, NEAR, far
from .test_watch import Watch
from .topology import (
    HOST,
    HOST_SECONDARY,
    NO_REPLY_TIMEOUT_S,
    Container,
    Host,
    Namespace,
    connect_second_network,
)
from .unprivileged import unprivileged

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

__all__ = ["far"]  # a fixture

both_families = pytest.mark.parametrize("family", [4, 6])


def does(plugin: Plugin, *command: str) -> str:
    """Run a command that must succeed, and return its output."""
    done = plugin.operate(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refuses(plugin: Plugin, *command: str, status: int = 1) -> str:
    """Run a command that must fail, and return what it says."""
    done = plugin.operate(*command)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def assert_agreed(plugin: Plugin, *attachments: Attachment) -> None:
    """See that CHECK and `reconcile` find nothing to do."""
    for attachment in attachments:
        attachment.check()
    assert "0 differences" in does(plugin, "status")


def recorded(attachment: Attachment) -> dict[str, Any]:
    (path,) = (attachment.plugin.state_directory / "attachments" / attachment.container.id).iterdir()
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.behaviour
@both_families
def test_a_published_port_reaches_the_container_until_it_is_taken_back(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, family: int
) -> None:
    web = plugin.add(container, publish(8081))
    before = host.ruleset()
    said = does(plugin, "publish", container.id, "8080:80")
    assert said == f"published: 8080->80/tcp of container {container.id}\n"
    assert client.ask(HOST[family], 8080).server == "web"
    assert client.ask(HOST[family], 8081).server == "web"
    assert other_container.ask(HOST[family], 8080).server == "web", "a container of the same network"
    assert container.ask(HOST[family], 8080).server == "web", "itself"
    if family == 4:
        assert host.ask("127.0.0.1", 8080).server == "web"
    assert_agreed(plugin, web)
    does(plugin, "unpublish", container.id, "8080")
    assert client.is_refused(HOST[family], 8080)
    assert client.ask(HOST[family], 8081).server == "web"
    assert_agreed(plugin, web)
    if plugin.programs:
        assert host.ruleset() == before


@pytest.mark.behaviour
def test_udp_on_one_address_and_a_client_that_is_sending_already(
    client: Namespace, container: Container, plugin: Plugin, stack: ExitStack
) -> None:
    plugin.add(container)
    talk = Talk(stack, client, HOST_SECONDARY[4], 8053)
    assert talk.ask() is None
    does(plugin, "publish", container.id, "8053:80/udp", "--host-ip", HOST_SECONDARY[4])
    assert talk.ask() == "web"
    assert client.is_refused(HOST[4], 8053)
    assert client.is_refused(HOST_SECONDARY[4], 8053), "TCP"
    does(plugin, "unpublish", container.id, "8053/udp", "--host-ip", HOST_SECONDARY[4])
    assert talk.ask() is None


@pytest.mark.behaviour
def test_a_container_that_had_no_port_is_reached_on_localhost_too(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container)
    does(plugin, "publish", container.id[:-1], "8080:80", "--host-ip", "127.0.0.1")
    assert host.ask("127.0.0.1", 8080).server == "web"
    assert client.is_refused(HOST[4], 8080)
    assert_agreed(plugin, web)


@pytest.mark.behaviour
def test_ranges(client: Namespace, container: Container, plugin: Plugin) -> None:
    for port in (82, 20000, 20031):
        container.serve(f"on{port}", port)
    web = plugin.add(container)
    does(plugin, "publish", container.id, "8080-8082:80-82")
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST[4], 8082).server == "on82"
    does(plugin, "publish", container.id, "20000-20031:20000-20031")
    assert client.ask(HOST[4], 20031).server == "on20031"
    assert does(plugin, "publish", container.id, "20000-20031:20000-20031"), "again"
    assert len(recorded(web)["portMappings"]) == 4
    assert "a part of the range 20000-20031/tcp" in refuses(plugin, "unpublish", container.id, "20010")
    assert_agreed(plugin, web)
    does(plugin, "unpublish", container.id, "8080-8082")
    does(plugin, "unpublish", container.id, "20000-20031")
    assert client.is_refused(HOST[4], 8082)
    assert client.is_refused(HOST[4], 20000)
    assert_agreed(plugin, web)


@pytest.mark.behaviour
def test_a_conflict_is_refused_as_by_add_and_nothing_has_changed(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8080))
    other = plugin.add(other_container, publish(8081))
    host.serve("daemon", 8082)
    before, record = host.ruleset(), recorded(other)
    with pytest.raises(PluginError) as refusal:
        plugin.add(host.container(), publish(8080))
    said = refuses(plugin, "publish", other_container.id, "8080:80")
    assert said == f"quantum-nat: {refusal.value.message}\n{refusal.value.details}\n"
    assert "listens on" in refuses(plugin, "publish", other_container.id, "8082:80")
    assert "8081->80/tcp" in refuses(plugin, "publish", other_container.id, "8081:81")
    # One of several is in use: none is published.
    refuses(plugin, "publish", other_container.id, "8079-8080:80-81")
    assert (host.ruleset(), recorded(other)) == (before, record)
    assert client.ask(HOST[4], 8080).server == "web"
    assert_agreed(plugin, web, other)


@pytest.mark.behaviour
def test_del_ends_a_live_port_and_another_container_may_have_it(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    other_container.serve("other", 80)
    web = plugin.add(container, publish(8081))
    does(plugin, "publish", container.id, "8080:80")
    with pytest.raises(PluginError, match="host port 8080/tcp is already in use by container"):
        plugin.add(other_container, publish(8080))
    web.delete()
    assert host.owners() == set()
    assert client.is_refused(HOST[4], 8080)
    plugin.add(other_container, publish(8080)).check()
    assert client.ask(HOST[4], 8080).server == "other"


@pytest.mark.behaviour
def test_the_runtimes_next_add_keeps_live_ports_and_those_that_were_taken_back(
    client: Namespace, container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8081), publish(8082))
    does(plugin, "publish", container.id, "8080:80")
    does(plugin, "unpublish", container.id, "8082")
    web.add()
    assert_agreed(plugin, web)
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.is_refused(HOST[4], 8082)
    changed = plugin.add(container, publish(8083), publish(8082))
    assert_agreed(plugin, changed)
    assert [client.ask(HOST[4], port).server for port in (8080, 8083)] == ["web", "web"]
    assert client.is_refused(HOST[4], 8081)
    assert client.is_refused(HOST[4], 8082)
    # What the runtime asks for by now is the runtime's.
    plugin.add(container, publish(8080, 81)).check()
    assert client.is_refused(HOST[4], 8080), "nothing listens on port 81"
    assert "live" not in json.dumps(recorded(web))


@pytest.mark.behaviour
def test_a_port_of_the_runtime_is_taken_back_and_published_again(
    client: Namespace, container: Container, plugin: Plugin, stack: ExitStack
) -> None:
    web = plugin.add(container, publish(8080), publish(8080, protocol="udp"), publish(8081, 81))
    record = recorded(web)
    line, udp = Line(stack, client, container, 81, to=(HOST[4], 8081)), Talk(stack, client, HOST[4], 8080)
    assert (line.is_open(), udp.ask()) == (True, "web")
    does(plugin, "unpublish", container.id, "8081", "--drain")
    container.serve("again", 81)
    assert line.is_open()
    assert client.is_refused(HOST[4], 8081)
    does(plugin, "unpublish", container.id, "8080")
    assert client.is_refused(HOST[4], 8080)
    assert (line.is_open(), udp.ask()) == (True, "web"), "another port, another protocol"
    assert_agreed(plugin, web)
    does(plugin, "publish", container.id, "8080:80")
    does(plugin, "publish", container.id, "8081:81")
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST[4], 8081).server == "again"
    udp_first = [record["portMappings"][i] for i in (1, 0, 2)]
    assert recorded(web) | {"portMappings": []} == record | {"portMappings": [], "hadEarlier": True}
    assert recorded(web)["portMappings"] == udp_first
    assert line.is_open()
    does(plugin, "unpublish", container.id, "8081")
    assert not line.is_open()
    does(plugin, "unpublish", container.id, "8080/udp")
    assert udp.ask() is None
    assert client.ask(HOST[4], 8080).server == "web"
    assert_agreed(plugin, web)


@pytest.mark.behaviour
def test_a_reload_in_the_same_network_namespace_keeps_live_ports(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """podman's `network reload` is DEL and ADD."""
    web = plugin.add(container, publish(8081), publish(8082))
    does(plugin, "publish", container.id, "8080:80")
    does(plugin, "publish", container.id, "8079:80")
    does(plugin, "unpublish", container.id, "8082")
    web.delete()
    assert client.is_refused(HOST[4], 8080)
    plugin.add(other_container, publish(8079))
    web.add()
    assert_agreed(plugin, web)
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.is_refused(HOST[4], 8082)
    assert "8079" not in json.dumps(recorded(web)["portMappings"]), "another container was given it meanwhile"
    does(plugin, "unpublish", container.id, "8080")
    web.delete()
    web.add()
    assert client.is_refused(HOST[4], 8080)
    assert client.is_refused(HOST[4], 8082)
    assert client.ask(HOST[4], 8081).server == "web"


@pytest.mark.behaviour
def test_a_container_that_starts_again_has_only_what_its_runtime_asks_for(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8081))
    does(plugin, "publish", container.id, "8080:80")
    web.delete()
    container.remove()
    again = host.container()
    again.id = container.id
    again.serve("again", 80)
    plugin.add(again, publish(8081)).check()
    assert client.ask(HOST[4], 8081).server == "again"
    assert client.is_refused(HOST[4], 8080)


@pytest.mark.behaviour
def test_a_flush_is_healed_and_gc_removes_all(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8081))
    does(plugin, "publish", container.id, "8080:80")
    does(plugin, "unpublish", container.id, "8081")
    host.run("nft", "flush", "ruleset")
    plugin.add(other_container)
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.is_refused(HOST[4], 8081)
    assert_agreed(plugin, web)
    host.run("nft", "flush", "ruleset")
    does(plugin, "publish", container.id, "8083:80")
    assert [client.ask(HOST[4], port).server for port in (8080, 8083)] == ["web", "web"]
    plugin.gc({"cni.dev/valid-attachments": []})
    assert host.owners() == set()


def test_a_running_watch_has_nothing_to_repair_and_heals_live_ports(
    host: Host, client: Namespace, container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    plugin.add(container, publish(8081))
    with Watch(plugin, tmp_path) as watch:
        does(plugin, "publish", container.id, "8080:80")
        does(plugin, "unpublish", container.id, "8081")
        assert client.ask(HOST[4], 8080).server == "web"
        host.run("nft", "flush", "ruleset")
        watch.wait_for_repair()
        assert len(watch.repairs()) == 1, watch.repairs()
        assert client.ask(HOST[4], 8080).server == "web"
        assert client.is_refused(HOST[4], 8081)


@pytest.mark.behaviour
def test_with_two_networks_one_is_named_and_a_port_is_taken_back_from_both(
    client: Namespace, container: Container, plugin: Plugin
) -> None:
    first = plugin.add(container, publish(8080), network="one")
    second = plugin.add(connect_second_network(container), publish(8080), network="two")
    assert "--network one" in refuses(plugin, "publish", container.id, "8081:80")
    assert "It is on one, two" in refuses(plugin, "publish", container.id, "8081:80", "--network", "three")
    does(plugin, "publish", container.id, "8081:80", "--network", "one")
    assert client.ask(HOST[4], 8081).server == "web"
    assert "network one" in refuses(plugin, "publish", container.id, "8081:80", "--network", "two")
    does(plugin, "unpublish", container.id, "8080")
    assert client.is_refused(HOST[4], 8080)
    assert_agreed(plugin, first, second)
    first.delete()
    assert_agreed(plugin, second)
    assert client.is_refused(HOST[4], 8080)


@pytest.mark.nftables
def test_a_shared_port_is_published_on_one_more_container(host: Host, client: Namespace, plugin: Plugin) -> None:
    keys: dict[str, Any] = {"sharedPorts": [8080]}
    first, second = host.container(), host.container()
    first.serve("first", 80)
    second.serve("second", 80)
    one = plugin.add(first, publish(8080), **keys)
    two = plugin.add(second, **keys)
    does(plugin, "publish", second.id, "8080:80")
    assert {client.ask(HOST[4], 8080).server for _ in range(32)} == {"first", "second"}
    assert_agreed(plugin, one, two)
    does(plugin, "unpublish", first.id, "8080")
    assert {client.ask(HOST[4], 8080).server for _ in range(32)} == {"second"}
    assert_agreed(plugin, one, two)


def test_taken_back_and_published_again_passes_check(container: Container, plugin: Plugin) -> None:
    web = plugin.add(container, publish(8080), publish(8081))
    does(plugin, "unpublish", container.id, "8080")
    does(plugin, "publish", container.id, "8080:80")
    assert_agreed(plugin, web)


def test_a_range_that_was_taken_back_stays_away_however_the_runtime_asks(
    client: Namespace, container: Container, plugin: Plugin
) -> None:
    container.serve("web", 20000)
    plugin.add(container, *(publish(port, port) for port in range(20000, 20020)))
    does(plugin, "unpublish", container.id, "20000-20019")
    for first, last, others in ((20000, 20029, 10), (20000, 20009, 0), (20000, 20000, 0)):
        web = plugin.add(container, *(publish(port, port) for port in range(first, last + 1)))
        assert client.is_refused(HOST[4], 20000)
        assert len(recorded(web)["portMappings"]) == others
        assert_agreed(plugin, web)


@pytest.mark.nftables
def test_a_port_that_comes_back_has_the_clients_that_the_runtime_named_last(
    client: Namespace, far: Namespace, container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8080, allowFrom=[NEAR[4], f"{FAR[4]}/32"]), publish(8090))
    does(plugin, "unpublish", container.id, "8080")
    web = plugin.add(container, publish(8080, allowFrom=[NEAR[4]]), publish(8090))
    does(plugin, "publish", container.id, "8080:80")
    assert client.ask(HOST[4], 8080).server == "web"
    assert is_dropped(far, 8080)
    assert_agreed(plugin, web)


@pytest.mark.nftables
def test_a_part_of_a_filtered_range_comes_back_with_its_clients(
    client: Namespace, far: Namespace, container: Container, plugin: Plugin
) -> None:
    container.serve("web", 20000)
    web = plugin.add(container, *(publish(port, port, allowFrom=[NEAR[4]]) for port in range(20000, 20020)))
    does(plugin, "unpublish", container.id, "20000-20019")
    does(plugin, "publish", container.id, "20000:20000")
    assert client.ask(HOST[4], 20000).server == "web"
    assert is_dropped(far, 20000)
    assert_agreed(plugin, web)


@pytest.mark.nftables
def test_a_network_that_has_other_clients_by_now_is_said(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """The container began without a list: what it publishes now would be open to all."""
    plugin.add(container, publish(8081))
    plugin.add(other_container, allowFrom=[NEAR[4]])
    before = host.ruleset()
    assert "has another publishOn or allowFrom since" in refuses(plugin, "publish", container.id, "8080:80")
    assert host.ruleset() == before
    plugin.add(container, publish(8081), allowFrom=[NEAR[4]])
    does(plugin, "publish", container.id, "8080:80")


@pytest.mark.nftables
def test_a_live_port_is_shared_as_its_network_says(
    container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(container, publish(8081), sharedPorts=[8080])
    does(plugin, "publish", container.id, "8080:80")
    web = plugin.add(container, publish(8081))
    assert [mapping["sharing"] for mapping in recorded(web)["portMappings"]] == ["", ""]
    with pytest.raises(PluginError, match=container.id):
        plugin.add(other_container, publish(8080))


def is_dropped(client: Namespace, port: int) -> bool:
    try:
        client.ask(HOST[4], port, timeout=NO_REPLY_TIMEOUT_S)
    except TimedOut:
        return True
    return False


def test_who_list_show_and_port_know_live_ports(container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8081))
    does(plugin, "publish", container.id, "8080:80")
    does(plugin, "unpublish", container.id, "8081")
    assert f"container {container.id}" in does(plugin, "who", "8080")
    assert plugin.operate("who", "8081").returncode == 1
    assert "8080->80/tcp" in does(plugin, "list")
    assert does(plugin, "port", container.id).startswith("80/tcp -> 0.0.0.0:8080\n")
    shown = does(plugin, "show", container.id)
    assert "Port:          8080->80/tcp, published on the running container\n" in shown
    assert "Withdrawn:     8081->80/tcp\n" in shown
    (published,) = json.loads(does(plugin, "publish", container.id, "8082:81/udp", "--host-ip", HOST[4], "--json"))
    assert published == {
        "containerId": container.id,
        "containerPort": 81,
        "protocol": "udp",
        "hostIP": HOST[4],
        "hostPort": 8082,
    }
    assert json.loads(does(plugin, "unpublish", container.id, "8082/udp", "--json")) == [published]
    (described,) = json.loads(does(plugin, "list", "--json"))
    assert [mapping["live"] for mapping in described["portMappings"]] == [True]
    assert [mapping["hostPort"] for mapping in described["withdrawn"]] == [8081]


def test_wrong_inputs(host: Host, container: Container, plugin: Plugin) -> None:
    plugin.add(container)
    single = host.container(families=(4,))
    plugin.add(single, network="single")
    before = host.ruleset()
    for status, words, command in (
        (1, "no container ID begins with 'nobody'", ("publish", "nobody", "8080:80")),
        (2, "names no container port", ("publish", container.id, "8080")),
        (2, "not a port from 1 to 65535", ("publish", container.id, "0:80")),
        (2, "not a port from 1 to 65535", ("publish", container.id, "8080:65536")),
        (2, "'icmp' is not one of", ("publish", container.id, "8080:80/icmp")),
        (2, "11 host ports and 2 container ports", ("publish", container.id, "8080-8090:80-81")),
        (2, "not an ascending range", ("publish", container.id, "8090-8080:80-90")),
        (2, "not an IP address", ("publish", container.id, "8080:80", "--host-ip", "host")),
        (1, "::1, which the kernel never routes", ("publish", container.id, "8080:80", "--host-ip", "::1")),
        (1, "has no IPv6 address", ("publish", single.id, "8080:80", "--host-ip", HOST[6])),
        (1, "does not publish host port 8080/tcp", ("unpublish", container.id, "8080")),
        (2, "not a port from 1 to 65535", ("unpublish", container.id, "eighty")),
    ):
        assert words in refuses(plugin, *command, status=status)
    assert host.ruleset() == before


def test_who_may_not_be_changed(container: Container, other_container: Container, plugin: Plugin) -> None:
    plugin.add(container)
    container.remove()
    assert "is gone" in refuses(plugin, "publish", container.id, "8080:80")
    assert "does not run" in refuses(plugin, "unpublish", container.id, "8080")
    plugin.add(other_container)
    (plugin.state_directory / "networks/net.json").unlink()
    assert "not on record" in refuses(plugin, "publish", other_container.id, "8080:80")


def test_without_root_nothing_changes_and_the_message_says_so(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, publish(8081))
    before = host.ruleset()
    record = recorded(web)
    for command in (("publish", container.id, "8080:80"), ("unpublish", container.id, "8081")):
        for line in (
            unprivileged([*plugin.command, "--state-dir", str(plugin.state_directory), *command]),
            # It may write the records, but not the rules.
            [
                "setpriv",
                "--bounding-set=-net_admin",
                *plugin.command,
                "--state-dir",
                str(plugin.state_directory),
                *command,
            ],
        ):
            done = plugin.operate_as(line)
            assert done.returncode == 1, done.stdout
            assert "Traceback" not in done.stderr
            assert "root" in done.stderr or "permitted" in done.stderr, done.stderr
    assert recorded(web) == record
    assert host.ruleset() == before
    assert client.ask(HOST[4], 8081).server == "web"
