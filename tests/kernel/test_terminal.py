"""What a person sees on a terminal of 80 columns, and what a pipe gets."""

from __future__ import annotations

import re

import pytest
from cni_quantum_nat.commands.cli import _COMMANDS

from .plugin import Plugin, publish
from .terminal import on_terminal
from .test_show import command
from .world import Container

_COLUMNS = 80
_PLAIN = {"TERM": "xterm", "NO_COLOR": "1"}


@pytest.mark.frozen
def test_a_long_list_of_ports_goes_on_in_the_next_line_and_loses_nothing(container: Container, plugin: Plugin) -> None:
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
def test_a_pipe_gets_a_line_a_row_without_escape_sequences(container: Container, plugin: Plugin) -> None:
    plugin.add(container, *(publish(port) for port in range(8080, 8092)))
    printed = command(plugin, "list").stdout
    assert len(printed.splitlines()) == 2
    assert "\x1b" not in printed


def test_an_empty_list_is_a_header(plugin: Plugin) -> None:
    assert command(plugin, "list").stdout.split() == [
        "NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "PORTS", "CONNECTIONS", "AGE",
    ]  # fmt: skip


def test_the_header_is_bold_on_a_terminal_and_never_coloured(plugin: Plugin) -> None:
    assert "\x1b[1m" in on_terminal(plugin, "list", environment={"TERM": "xterm"})[1]
    assert "\x1b[3" not in on_terminal(plugin, "list", environment=_PLAIN)[1]


def test_show_on_a_terminal_says_the_same_as_in_a_pipe(container: Container, plugin: Plugin) -> None:
    plugin.add(container, publish(8080))
    _, shown = on_terminal(plugin, "show", container.id, environment={"TERM": "xterm"})
    assert "In the kernel: as it should be" in shown
    assert "\x1b" not in shown


def test_an_abbreviation_of_two_containers_names_both(
    container: Container, neighbour: Container, plugin: Plugin
) -> None:
    for each in (container, neighbour):
        plugin.add(each)
    status, shown = on_terminal(plugin, "show", container.id[:3])
    assert status == 1
    assert container.id in shown
    assert neighbour.id in shown
    assert "Traceback" not in shown


@pytest.mark.frozen
def test_a_wrong_command_is_refused_with_those_that_there_are(plugin: Plugin) -> None:
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
