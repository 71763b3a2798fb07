"""The operator's command line. `quantum-nat --help` is its manual."""

from __future__ import annotations

import argparse
import os
import sys

from ..model.errors import CniError
from ..version import __version__
from . import chain as chain_command
from . import completion as completion_command
from . import connections as connections_command
from . import gc as gc_command
from . import list as list_command
from . import port as port_command
from . import publish as publish_command
from . import schema as schema_command
from . import show as show_command
from . import status as status_command
from . import unpublish as unpublish_command
from . import validate as validate_command
from . import who as who_command
from .directories import mention_others, settle
from .doctor import doctor as doctor_command
from .metrics import metrics as metrics_command
from .parser import NO_STATE, ONE_STATE, add_state_directory
from .reconcile import reconcile as reconcile_command

_COMMANDS = (  # in the order of --help
    status_command,
    list_command,
    show_command,
    port_command,
    who_command,
    connections_command,
    publish_command,
    unpublish_command,
    doctor_command,
    reconcile_command,
    gc_command,
    metrics_command,
    validate_command,
    chain_command,
    schema_command,
    completion_command,
)
_INTERRUPTED = 130  # as of a shell, for SIGINT
_DESCRIPTION = """\
A CNI plugin for port mapping and outbound NAT, and the operator's commands for it.

Container runtimes (containerd, CRI-O, podman, cnitool) run it as a CNI plugin, with CNI_COMMAND in the environment
and a network configuration on standard input. In a configuration list it goes after the plugin that creates the
interface: {"type": "quantum-nat", "capabilities": {"portMappings": true}}.

Operators run it with one of the commands below.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; --help, the man page and the completions are generated from it."""
    parser = argparse.ArgumentParser(
        prog="quantum-nat", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"quantum-nat {__version__}")
    add_state_directory(parser, default=None)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser


def run() -> int:
    """Run the command, and return the exit status: 0, 1 after a failure, 2 for invalid arguments."""
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell requests completions
        completion_command.offer(parser)
    arguments = parser.parse_args()
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        if arguments.scope != NO_STATE:
            settle(arguments)
        if arguments.scope == ONE_STATE:
            mention_others(arguments)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"quantum-nat: a system call failed: {error}", file=sys.stderr)
        return 1
    except CniError as error:
        print(f"quantum-nat: {error.message}", file=sys.stderr)
        if error.details:
            print(error.details, file=sys.stderr)
        return 1
    return status
