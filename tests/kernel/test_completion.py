"""Completion in real shells, with the script that the command prints."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .plugin import Plugin, publish

if TYPE_CHECKING:
    from .topology import Container

_BASH = """
eval "$(quantum-nat completion bash)"
COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9 COMP_WORDS=($1) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
[[ $1 == *" " ]] && COMP_WORDS+=("") COMP_CWORD=$((COMP_CWORD + 1))
handler=$(complete -p quantum-nat | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$handler quantum-nat "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
_FISH = """quantum-nat completion fish | source; complete -C "$argv[1]" """
_SCRIPTS = {"bash": ["bash", "-c", _BASH, "bash"], "fish": ["fish", "--private", "-c", _FISH]}

each_shell = pytest.mark.parametrize("shell", _SCRIPTS)


def complete(shell: str, plugin: Plugin, typed: str, directory: Path) -> list[str]:
    """Return the shell's completions of a line, without descriptions and white space."""
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "quantum-nat"
    if not program.exists():
        program.write_text(f'#!/bin/sh\nexec {shlex.join(plugin.command)} "$@"\n')
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(directory)}
    line = f"quantum-nat --state-dir {plugin.state_directory} {typed}"
    assert shutil.which(shell), f"{shell} is not installed"
    done = subprocess.run([*_SCRIPTS[shell], line], capture_output=True, text=True, check=True, env=environment)
    return [answer.split("\t")[0].strip() for answer in done.stdout.splitlines() if answer.strip()]


@pytest.mark.frozen
@each_shell
def test_a_shell_completes_commands_containers_networks_and_ports(
    shell: str, container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    plugin.add(container, publish(8080), network="blue")
    assert complete(shell, plugin, "conn", tmp_path) == ["connections"]
    assert complete(shell, plugin, f"show {container.id[:3]}", tmp_path) == [container.id]
    assert complete(shell, plugin, "list --network b", tmp_path) == ["blue"]
    assert complete(shell, plugin, f"port {container.id} 8", tmp_path) == ["80/tcp"]
    assert complete(shell, plugin, f"unpublish {container.id} 8", tmp_path) == ["8080/tcp"]


@pytest.mark.frozen
def test_zsh_accepts_the_script(plugin: Plugin) -> None:
    script = subprocess.run([*plugin.command, "completion", "zsh"], capture_output=True, text=True, check=True).stdout
    assert script.startswith("#compdef quantum-nat")
    subprocess.run(["zsh", "-n"], input=script, text=True, check=True)


def test_the_parser_is_built_without_heavy_libraries() -> None:
    heavy = ("rich", "pyroute2", "pydantic", "prometheus_client", "argcomplete", "subprocess")
    code = f"from cni_quantum_nat.commands.cli import make_parser; make_parser(); import sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
