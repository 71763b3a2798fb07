"""Add a command to the command line; `--help`, the man page and the completions are generated from its parser."""

from __future__ import annotations

import argparse
import math
import shutil
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - as typeshed names it

# Whether a command is about all state directories of the host, about one at a time, or about none.
ALL_STATES, ONE_STATE, NO_STATE = "all", "one", "none"
_WIDEST = 100  # longer lines are hard to read


def add_command(  # noqa: PLR0913 - all by keyword
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    examples: Sequence[str],
    scope: str = ONE_STATE,
) -> argparse.ArgumentParser:
    """Add a command, and return its parser for further arguments. The examples are without `quantum-nat`.

    scope: ALL_STATES, ONE_STATE or NO_STATE.
    """
    lines = [f"  quantum-nat {example}" for example in examples]
    parser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, min(_WIDEST, shutil.get_terminal_size().columns)),
        epilog="\n".join(("examples:" if len(lines) > 1 else "example:", *lines)),
        formatter_class=argparse.RawDescriptionHelpFormatter,  # examples keep their lines
    )
    parser.set_defaults(run=run, scope=scope)
    if scope != NO_STATE:
        add_state_directory(parser, default=argparse.SUPPRESS)  # absent here, the one before the command stays
    return parser


def add_state_directory(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """Add --state-dir, which may stand before the command and after it."""
    parser.add_argument(
        "--state-dir",
        default=default,
        metavar="DIRECTORY",
        help="directory of the records, the networks' stateDir (default: $QUANTUM_NAT_STATE_DIR; without it, "
        "/run/cni/quantum-nat and those that installed networks name)",
    )


def seconds(text: str) -> float:
    """Parse a time in seconds; raise ArgumentTypeError if it is not above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number
