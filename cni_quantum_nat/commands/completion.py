"""`quantum-nat completion SHELL`, and the completions themselves: containers, networks and ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..model.errors import CniError
from ..state.directory import State
from .directories import settle
from .parser import NO_STATE, add_command

if TYPE_CHECKING:
    import argparse

    from ..model.attachments import Attachment
    from .parser import Commands


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "completion",
        run,
        summary="print the completion script for a shell",
        description="Print the completion script for a shell. It completes commands, options, containers, networks and ports.",
        examples=(
            "completion bash > /etc/bash_completion.d/quantum-nat",
            "completion zsh > /usr/local/share/zsh/site-functions/_quantum-nat",
            "completion fish > /etc/fish/completions/quantum-nat.fish",
        ),
        scope=NO_STATE,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from argcomplete.shell_integration import shellcode  # only this command needs it

    print(shellcode(["quantum-nat"], shell=arguments.shell))
    return 0


def offer(parser: argparse.ArgumentParser) -> None:
    """Print the completions that the shell requests, and exit."""
    from argcomplete import autocomplete

    autocomplete(parser, always_complete_options=False)


def containers(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return all container IDs."""
    return sorted({attachment.id.container_id for attachment in _attachments(parsed_args)})


def networks(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return the names of all networks."""
    return sorted({attachment.id.network for attachment in _attachments(parsed_args)})


def ports(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return the published ports of the container given before."""
    named = str(parsed_args.container)
    found = [a for a in _attachments(parsed_args) if a.id.container_id.startswith(named)]
    return sorted({f"{m.container_range}/{m.protocol}" for attachment in found for m in attachment.port_mappings})


def host_ports(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return the host ports of the container given before."""
    named = str(parsed_args.container)
    found = [a for a in _attachments(parsed_args) if a.id.container_id.startswith(named)]
    return sorted({f"{m.host_range}/{m.protocol}" for attachment in found for m in attachment.port_mappings})


def _attachments(parsed_args: argparse.Namespace) -> list[Attachment]:
    try:
        settle(parsed_args)
        states = [State(name) for name in parsed_args.state_dirs]
        return [attachment for state in states for attachment in state.attachments([])]
    except CniError:
        return []  # a message would disturb the line that is being typed
