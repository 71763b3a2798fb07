"""Output on a terminal of 80 columns and in a pipe."""

from __future__ import annotations

import re
import signal

import pytest
from cni_quantum_nat.commands.cli import _COMMANDS

from .plugin import Plugin, publish
from .terminal import on_terminal
from .test_show import as_json, command
from .topology import CLIENT, HOST, Container, Namespace

_COLUMNS = 80
_PLAIN = {"TERM": "xterm", "NO_COLOR": "1"}


@pytest.mark.frozen
def test_a_long_list_of_ports_is_wrapped_completely(container: Container, plugin: Plugin) -> None:
    plugin.add(container, *(publish(port) for port in range(8080, 8092)))
    status, shown = on_terminal(plugin, "list", environment=_PLAIN)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]
    assert status == 0
    assert len(lines) > 2
    assert max(map(len, lines)) <= _COLUMNS
    assert "CONNECTIONS" in lines[0]
    column = lines[0].index("PORTS"), lines[0].index("CONNECTIONS")
    ports = "".join(line[slice(*column)].strip() for line in lines[1:])
    assert ports == ",".join(f"{port}->80/tcp" for port in range(8080, 8092))


def plain(shown: str) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]


@pytest.mark.parametrize("columns", [80, 60, 50])
def test_no_word_of_a_list_is_cut(container: Container, plugin: Plugin, columns: int) -> None:
    plugin.add(container, publish(8080), publish(65535, 443, hostIP=HOST[4]), network="a-network-with-a-long-name")
    _, shown = on_terminal(plugin, "list", environment=_PLAIN, columns=columns)
    lines = plain(shown)
    assert max(map(len, lines)) <= columns
    words = {word.strip(",") for line in lines for word in line.split()}
    assert {
        "a-network-with-a-long-name", container.id[:12], *container.address.values(), "8080->80/tcp", "CONNECTIONS",
        f"{HOST[4]}:65535->443/tcp",
    } <= words  # fmt: skip


@pytest.mark.parametrize("family", [4, 6])
def test_no_word_of_a_connection_is_cut(client: Namespace, container: Container, plugin: Plugin, family: int) -> None:
    client.serve("outside", 80)
    plugin.add(container, publish(8080), masquerade=True)
    assert client.ask(HOST[family], 8080) is not None
    assert container.ask(CLIENT[family], 80) is not None
    (inbound,) = as_json(plugin, "connections", "--filter", "direction=in")
    for columns in (80, 50):
        lines = plain(on_terminal(plugin, "connections", environment=_PLAIN, columns=columns)[1])
        assert max(map(len, lines)) <= columns
        assert {inbound["source"], inbound["destination"], inbound["newDestination"], "TRANSLATED"} <= {
            word for line in lines for word in line.split()
        }


def test_a_list_is_filtered_sorted_and_cut_to_columns(
    container: Container, other_container: Container, plugin: Plugin
) -> None:
    for each, port in ((container, 8081), (other_container, 9000)):
        plugin.add(each, publish(port), network="blue" if each is container else "red")
    assert command(plugin, "list", "-q", "--filter", "network=r*").stdout == f"{other_container.id}\n"
    assert command(plugin, "list", "--quiet", "--filter", "ports=8081-*").stdout == f"{container.id}\n"
    assert command(plugin, "list", "--sort=-ports", "--format", "ports,network").stdout.splitlines() == [
        "PORTS         NETWORK",
        "9000->80/tcp  red",
        "8081->80/tcp  blue",
    ]
    assert [entry["network"] for entry in as_json(plugin, "list", "--sort=-network")] == ["red", "blue"]
    for option in (["--sort", "colour"], ["--filter", "colour=red"], ["--format", "ports,colour"]):
        done = command(plugin, "list", *option)
        assert (done.returncode, done.stdout) == (1, "")
        assert "there is no column 'colour'" in done.stderr


def test_a_long_container_id_is_abbreviated_unless_told(container: Container, plugin: Plugin) -> None:
    container.id = "0123456789abcdef0123456789abcdef"
    plugin.add(container)
    assert command(plugin, "list", "--format", "container").stdout.split() == ["CONTAINER", container.id[:12]]
    assert container.id in command(plugin, "list", "--no-trunc").stdout


def test_watch_prints_again_until_interrupted(container: Container, plugin: Plugin) -> None:
    plugin.add(container)
    process = plugin.start_operation("list", "--watch", "0.2", "--format", "container")
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(4)] == ["CONTAINER", container.id[:12]] * 2
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    for nonsense in ("0", "-1", "nan", "often"):
        done = command(plugin, "list", f"--watch={nonsense}")
        assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.frozen
def test_a_pipe_gets_one_line_per_row_without_escape_sequences(container: Container, plugin: Plugin) -> None:
    plugin.add(container, *(publish(port) for port in range(8080, 8092)))
    printed = command(plugin, "list").stdout
    assert len(printed.splitlines()) == 2
    assert "\x1b" not in printed


def test_an_empty_list_is_only_a_header(container: Container, plugin: Plugin) -> None:
    plugin.add(container).delete()
    assert command(plugin, "list").stdout.split() == [
        "NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "PORTS", "CONNECTIONS", "AGE",
    ]  # fmt: skip


def test_the_header_is_bold_on_a_terminal_and_never_coloured(container: Container, plugin: Plugin) -> None:
    plugin.add(container).delete()
    assert "\x1b[1m" in on_terminal(plugin, "list", environment={"TERM": "xterm"})[1]
    assert "\x1b[3" not in on_terminal(plugin, "list", environment=_PLAIN)[1]


def test_show_prints_the_same_on_a_terminal_and_in_a_pipe(container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080))
    _, shown = on_terminal(plugin, "show", container.id, environment={"TERM": "xterm"})
    assert "In the kernel: matches the record" in shown
    assert "\x1b" not in shown


def test_an_ambiguous_prefix_is_refused_with_all_matches(
    container: Container, other_container: Container, plugin: Plugin
) -> None:
    for each in (container, other_container):
        plugin.add(each)
    status, shown = on_terminal(plugin, "show", container.id[:3])
    assert status == 1
    assert container.id in shown
    assert other_container.id in shown
    assert "Traceback" not in shown


@pytest.mark.frozen
def test_an_unknown_command_is_refused_with_the_list_of_commands(plugin: Plugin) -> None:
    status, shown = on_terminal(plugin, "shwo")
    assert status == 2
    assert "invalid choice: 'shwo'" in shown
    assert "show" in shown


@pytest.mark.frozen
def test_every_command_has_help_with_an_example(plugin: Plugin) -> None:
    for module in _COMMANDS:
        name = module.__name__.rpartition(".")[2]
        status, shown = on_terminal(plugin, name, "--help")
        assert status == 0
        assert shown.startswith(f"usage: quantum-nat {name}"), name
        assert "example" in shown, name
