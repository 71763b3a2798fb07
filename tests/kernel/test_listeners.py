"""Services of the host that listen on a port, and runtimes that reserve one."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .peer import inside
from .plugin import Plugin, PluginError, publish
from .test_ports import process_on
from .topology import HOST, Container, Host, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

# Binds and listens as nerdctl does, and hands the socket to `sleep infinity`.
RESERVE = """
import os, socket, sys
holder = socket.create_server(("0.0.0.0", int(sys.argv[1])))
holder.set_inheritable(True)
print("ready", flush=True)
os.execvp("sleep", ["sleep", "infinity"])
"""
NERDCTL_ID = "f" * 40 + "0123456789abcdef" + "e" * 8
NOT_SUPPORTED = "EPROTONOSUPPORT"


@contextmanager
def reserved(host: Host, port: int) -> Iterator[int]:
    """Let `sleep infinity` hold a port, and yield its process ID."""
    with inside(host.path):
        process = subprocess.Popen([sys.executable, "-I", "-c", RESERVE, str(port)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def nerdctl(host: Host) -> Container:
    """A container as nerdctl names it for CNI: namespace, dash, ID."""
    container = host.container()
    container.id = f"my-namespace-{NERDCTL_ID}"
    container.serve("web", 80)
    return container


def note_reserver(process: int) -> None:
    """Write what nerdctl writes before ADD; /run is the tests' own."""
    directory = Path("/run/nerdctl/my-namespace", NERDCTL_ID)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "port-reserver.pid").write_text(f"{process}\n")


@pytest.mark.behaviour
def test_a_port_that_nerdctl_reserves_for_the_container_is_published(
    host: Host, client: Namespace, nerdctl: Container, other_container: Container, plugin: Plugin
) -> None:
    """At 1.0.0 (defect 6) each `nerdctl run -p` was refused: since 2.1.6 `sleep infinity` holds its ports."""
    with reserved(host, 8080) as process:
        note_reserver(process)
        web = plugin.add(nerdctl, publish(8080))
        assert client.ask(HOST[4], 8080).server == "web"
        with pytest.raises(PluginError, match="already in use by container my-namespace"):
            plugin.add(other_container, publish(8080))
        web.delete()
        with pytest.raises(PluginError, match=rf"sleep \(process {process}\) listens on port 8080"):
            plugin.add(other_container, publish(8080))


def test_an_unknown_process_that_reserves_a_port_is_named_and_can_be_allowed(
    host: Host, client: Namespace, nerdctl: Container, plugin: Plugin
) -> None:
    """Whatever a runtime reserves ports with next (defect 6), the message says how to go on."""
    with reserved(host, 8081) as process, reserved(host, 8080) as other:
        note_reserver(process)
        with pytest.raises(PluginError, match=rf"sleep \(process {other}\)") as caught:
            plugin.add(nerdctl, publish(8080))
        assert '"hostPortConflict": "allow"' in caught.value.details
        plugin.add(nerdctl, publish(8080), hostPortConflict="allow")
        assert client.ask(HOST[4], 8080).server == "web"


@pytest.mark.parametrize("arguments", [("web",), ("--name=web",), ("/srv/web/app",), ("website",)])
def test_a_short_container_id_in_a_command_line_is_a_word_like_others(
    host: Host, container: Container, plugin: Plugin, arguments: tuple[str, ...]
) -> None:
    """At 1.0.0 (defect 34) a service with the container's ID somewhere in its command line lost its port to it."""
    container.id = "web"
    with (
        process_on(host, 8080, "0.0.0.0", "tcp", *arguments),
        pytest.raises(PluginError, match="is in use on the host"),
    ):
        plugin.add(container, publish(8080))


def test_without_sock_diag_a_port_is_published_with_a_warning(
    client: Namespace, container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    """At 1.0.0 (defect 22) a kernel without it failed each ADD with a host port, with "try again"."""
    attachment = plugin.add(container, publish(8080))
    attachment.delete()
    trace = tmp_path / "trace"
    attachment_call = ("strace", "-qq", "-o", str(trace), "-e", "trace=socket")
    plugin.call("ADD", attachment.configuration, container, before=attachment_call)
    attachment.delete()
    sockets = [line for line in trace.read_text().splitlines() if re.match(r"socket\(", line)]
    number = next(count for count, line in enumerate(sockets, 1) if "SOCK_DIAG" in line or line.endswith(", 4) = 3"))
    injection = (*attachment_call, "-e", f"inject=socket:error={NOT_SUPPORTED}:when={number}")
    process = plugin.start("ADD", attachment.configuration, container, before=injection)
    _, complaints = process.communicate(timeout=90)
    assert process.returncode == 0, complaints
    assert "cannot list the host's tcp sockets" in complaints or "list the host's tcp sockets" in complaints
    assert client.ask(HOST[4], 8080).server == "web"
