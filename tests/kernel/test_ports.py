"""Allocation of host ports, and host ports that the host itself uses."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .peer import inside, open_socket
from .plugin import Plugin, PluginError, publish
from .topology import CLIENT, HOST, HOST_SECONDARY, Container, Host, Namespace, connect_second_network

if TYPE_CHECKING:
    from collections.abc import Iterator

# Uses a port and reports that; further arguments only appear on its command line.
HOLDER = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
holder = socket.socket(family, socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM)
holder.bind((sys.argv[2], int(sys.argv[3])))
if sys.argv[1] == "tcp":
    holder.listen()
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def process_on(
    namespace: Namespace, port: int, address: str = "0.0.0.0", protocol: str = "tcp", *more: str
) -> Iterator[int]:
    """Let another process use a port, and yield the process ID."""
    pipe = subprocess.PIPE
    line = [sys.executable, "-I", "-c", HOLDER, protocol, address, str(port), *more]
    with inside(namespace.path):
        process = subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process.pid
    finally:
        process.communicate("")


def ask_for_any(container_port: int = 80, **more: Any) -> dict[str, Any]:
    """Return an entry of portMappings without a host port."""
    return {"containerPort": container_port, **more}


def command(plugin: Plugin, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an operator's command on the plugin's records."""
    line = [*plugin.command, "--state-dir", str(plugin.state_directory), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def recorded_ports(plugin: Plugin, container: Container) -> list[int]:
    records = sorted((plugin.state_directory / "attachments" / container.id).iterdir())
    return [m["hostPort"] for record in records for m in json.loads(record.read_text())["portMappings"]]


@pytest.mark.behaviour
@pytest.mark.frozen
def test_a_mapping_without_a_host_port_gets_the_first_of_the_range_and_port_shows_it(
    client: Namespace, container: Container, plugin: Plugin
) -> None:
    web = plugin.add(container, ask_for_any(), ask_for_any(protocol="udp"))
    assert client.ask(HOST[4], 32768).server == "web"
    assert client.ask(HOST[6], 32768, "udp").server == "web"
    web.check()
    shown = command(plugin, "port", container.id[:-1]).stdout.splitlines()
    assert shown == [
        "80/tcp -> 0.0.0.0:32768",
        "80/tcp -> [::]:32768",
        "80/udp -> 0.0.0.0:32768",
        "80/udp -> [::]:32768",
    ]
    assert command(plugin, "port", container.id, "80/udp").stdout == "0.0.0.0:32768\n[::]:32768\n"
    assert json.loads(command(plugin, "port", "--json", container.id, "80").stdout)[0]["hostPort"] == 32768
    missing = command(plugin, "port", container.id, "81")
    assert (missing.returncode, missing.stderr) == (1, f"quantum-nat: {container.id} does not publish port 81\n")


def test_port_reports_a_container_without_published_ports(plugin: Plugin, container: Container) -> None:
    plugin.add(container)
    missing = command(plugin, "port", container.id)
    assert (missing.returncode, missing.stderr) == (1, f"quantum-nat: {container.id} publishes no ports\n")


def test_port_refuses_an_unknown_container(plugin: Plugin, container: Container) -> None:
    plugin.add(container, publish(8080))
    done = command(plugin, "port", "nobody")
    assert done.returncode == 1
    assert "no container ID begins with 'nobody'" in done.stderr


@pytest.mark.behaviour
def test_each_container_gets_another_port_and_a_freed_one_is_not_reused_at_once(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    other_container.serve("other", 80)
    first = plugin.add(container, ask_for_any(), ask_for_any(81), portRange="40000-40009")
    plugin.add(other_container, ask_for_any(), portRange="40000-40009")
    assert recorded_ports(plugin, container) == [40000, 40001]
    assert client.ask(HOST[4], 40002).server == "other"
    first.delete()
    plugin.add(container, ask_for_any(), portRange="40000-40009")
    assert client.ask(HOST[4], 40003).server == "web"


@pytest.mark.behaviour
def test_a_port_on_record_is_not_allocated_after_a_flush(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    """The kernel says that all ports are free then. Code 100 would be wrong: there is a free one."""
    keys = {"portRange": "40000-40001"}
    plugin.add(container, ask_for_any(), **keys)
    plugin.add(
        other_container, ask_for_any(), **keys
    ).delete()  # the next search begins with the container's port again
    flush(host)
    again = plugin.add(other_container, ask_for_any(), **keys)
    assert [mapping["hostPort"] for mapping in _recorded(plugin, other_container)] == [40001]
    again.check()


def flush(host: Host) -> None:
    """Flush everything, as `nft flush ruleset` does, or all tables of iptables."""
    if host.backend == "nftables":
        host.run("nft", "flush", "ruleset")
        return
    for prefix in ("iptables", "ip6tables"):
        for table in ("nat", "raw", "filter"):
            for option in ("-F", "-X"):
                host.run(f"{prefix}-{host.backend.removeprefix('iptables-')}", "-t", table, option)


def _recorded(plugin: Plugin, container: Container) -> list[dict[str, Any]]:
    record = plugin.state_directory / "attachments" / container.id / "net:eth0.json"
    mappings: list[dict[str, Any]] = json.loads(record.read_text())["portMappings"]
    return mappings


@pytest.mark.behaviour
def test_a_repeated_add_and_a_second_network_get_the_same_port(
    client: Namespace, container: Container, plugin: Plugin
) -> None:
    first = plugin.add(container, ask_for_any())
    first.add()
    second = plugin.add(connect_second_network(container), ask_for_any(), network="second")
    assert recorded_ports(plugin, container) == [32768, 32768]
    first.check()
    second.check()
    assert client.ask(HOST[4], 32768).server == "web"


def test_ports_in_use_or_reserved_on_the_host_are_not_allocated(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    host.set_sysctl("ipv4/ip_local_reserved_ports", "40001,40003-40004")
    with (
        process_on(host, 40000),
        process_on(host, 40002, HOST[6]),
        process_on(host, 40005, "127.0.0.1", "udp"),
    ):
        plugin.add(
            container,
            ask_for_any(),
            ask_for_any(protocol="udp"),
            ask_for_any(hostIP=HOST[4]),
            portRange="40000-40009",
        )
    assert recorded_ports(plugin, container) == [40005, 40000, 40006]
    assert client.ask(HOST[4], 40006).server == "web"
    plugin.add(container, publish(40001))
    assert client.ask(HOST[4], 40001).server == "web"


def test_a_listener_on_another_address_is_no_conflict(host: Host, container: Container, plugin: Plugin) -> None:
    with process_on(host, 40000, HOST_SECONDARY[4]):
        plugin.add(container, ask_for_any(hostIP=HOST[4]), portRange="40000-40000")
    assert recorded_ports(plugin, container) == [40000]


@pytest.mark.behaviour
@pytest.mark.frozen
def test_a_full_range_is_an_error_and_nothing_changes(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(container, ask_for_any(), ask_for_any(81), portRange="40000-40001")
    before = host.installed()
    with pytest.raises(PluginError, match="no tcp port is free in portRange 40000-40001") as caught:
        plugin.add(other_container, publish(9000), ask_for_any(), portRange="40000-40001")
    assert caught.value.code == 107
    assert host.installed() == before
    assert client.is_refused(HOST[4], 9000)
    assert not (plugin.state_directory / "attachments" / other_container.id).exists()
    plugin.add(other_container, ask_for_any(protocol="udp"), portRange="40000-40001")


def test_no_port_is_allocated_twice_when_the_last_one_is_forgotten(
    client: Namespace, container: Container, other_container: Container, plugin: Plugin
) -> None:
    plugin.add(container, ask_for_any())
    (plugin.state_directory / "numbers").unlink()
    other_container.serve("other", 80)
    plugin.add(other_container, ask_for_any())
    assert client.ask(HOST[4], 32768).server == "web"
    assert client.ask(HOST[4], 32769).server == "other"


@pytest.mark.frozen
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::", HOST[6]])
def test_a_port_that_the_host_listens_on_is_refused_and_the_process_is_named(
    host: Host, container: Container, plugin: Plugin, protocol: str, address: str
) -> None:
    with process_on(host, 8080, address, protocol) as number:
        with pytest.raises(PluginError, match=rf"8080/{protocol} is in use.*\(process {number}\)") as caught:
            plugin.add(container, publish(8080, protocol=protocol))
        assert caught.value.code == 100
        assert not list(plugin.state_directory.glob("attachments/*"))
        plugin.add(container, publish(8080, protocol=protocol), hostPortConflict="allow")
        assert host.ask(HOST[4], 8080, protocol).server == "web"


def test_sockets_that_a_mapping_cannot_shadow_are_no_conflict(host: Host, container: Container, plugin: Plugin) -> None:
    only_ipv4 = host.container(families=(4,))
    with (
        process_on(host, 8080, HOST_SECONDARY[4]),
        process_on(host, 8081, "::1"),
        process_on(host, 8082, HOST[6]),
        process_on(container, 8083),
        host_socket_in_use(host, 8084),
    ):
        plugin.add(
            container, publish(8080, hostIP=HOST[4]), publish(8081), publish(8083), publish(8084, protocol="udp")
        )
        plugin.add(only_ipv4, publish(8082))


@contextmanager
def host_socket_in_use(host: Host, port: int) -> Iterator[None]:
    """Let the host be a client on this UDP port."""
    with open_socket(host.path, "udp", 4) as connected:
        connected.bind(("0.0.0.0", port))
        connected.connect(("198.51.100.2", 53))
        yield


@pytest.mark.behaviour
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_runtimes_own_reservation_is_no_conflict(
    host: Host, client: Namespace, container: Container, other_container: Container, plugin: Plugin, protocol: str
) -> None:
    """podman's conmon holds the ports while DEL and ADD run; the container ID is on its command line."""
    web = plugin.attachment(container, publish(8080, protocol=protocol))
    with process_on(host, 8080, "0.0.0.0", protocol, "--api-version", "1", "-c", container.id, "-n", "web"):
        web.add()
        web.delete()
        web.add()
        assert client.ask(HOST[4], 8080, protocol).server == "web"
        web.delete()
        with pytest.raises(PluginError, match="is in use on the host"):
            plugin.add(other_container, publish(8080, protocol=protocol))


def test_a_reservation_for_another_container_names_that_container(
    host: Host, container: Container, other_container: Container, plugin: Plugin
) -> None:
    web = plugin.attachment(container, publish(8080))
    with process_on(host, 8080, "0.0.0.0", "tcp", "-c", container.id):
        web.add()
        with pytest.raises(PluginError, match=f"8080/tcp is already in use by container {container.id}"):
            plugin.add(other_container, publish(8080))


def test_a_reservation_in_another_pid_namespace_is_refused_until_it_is_allowed(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    """From there nobody sees whose it is."""
    web = plugin.attachment(container, publish(8080))
    elsewhere = ("unshare", "--pid", "--fork", "--mount-proc")
    with process_on(host, 8080, "0.0.0.0", "tcp", "-c", container.id):
        with pytest.raises(PluginError, match="a process that cannot be seen from here listens on") as caught:
            plugin.call("ADD", web.configuration, container, before=elsewhere)
        assert '"hostPortConflict": "allow" lets the container have the port' in caught.value.details
        plugin.call("ADD", web.configuration | {"hostPortConflict": "allow"}, container, before=elsewhere)
        assert client.ask(HOST[4], 8080).server == "web"


def test_a_connection_of_the_host_keeps_a_port_that_is_allocated(
    host: Host, client: Namespace, container: Container, plugin: Plugin
) -> None:
    """The default range is also that of the ports which the kernel gives to clients."""
    client.serve("outside", 8000)
    with open_socket(host.path, "udp", 4) as connected:
        connected.settimeout(5)
        connected.bind(("0.0.0.0", 32768))
        connected.connect((CLIENT[4], 8000))
        connected.send(b"before")
        assert connected.recv(100).startswith(b"outside ")
        plugin.add(container, ask_for_any(protocol="udp"))
        assert recorded_ports(plugin, container) == [32768]
        assert client.ask(HOST[4], 32768, "udp").server == "web"
        connected.send(b"after")
        assert connected.recv(100).startswith(b"outside ")


def test_an_invalid_range_is_refused(container: Container, plugin: Plugin) -> None:
    for wrong in ("40000", "40001-40000", "0-5", "1-70000", "a-b", 5):
        with pytest.raises(PluginError, match="portRange is") as caught:
            plugin.add(container, ask_for_any(), portRange=wrong)
        assert caught.value.code == 7
    assert not Path(plugin.state_directory, "attachments").exists()
