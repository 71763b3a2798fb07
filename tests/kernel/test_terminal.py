"""Output on a terminal of 80 columns and in a pipe."""

from __future__ import annotations

import re

import pytest
from cni_quantum_nat.commands.cli import _COMMANDS

from .plugin import Plugin, publish
from .terminal import on_terminal
from .test_show import command
from .topology import Container

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
