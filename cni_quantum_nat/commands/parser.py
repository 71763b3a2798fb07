"""Add a command to the command line; `--help`, the man page and the completions are generated from its parser."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - as typeshed names it

_WIDEST = 100  # longer lines are hard to read


def add_command(  # noqa: PLR0913 - all by keyword
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    examples: Sequence[str],
) -> argparse.ArgumentParser:
    """Add a command, and return its parser for further arguments. The examples are without `quantum-nat`."""
    lines = [f"  quantum-nat {example}" for example in examples]
    parser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, min(_WIDEST, shutil.get_terminal_size().columns)),
        epilog="\n".join(("examples:" if len(lines) > 1 else "example:", *lines)),
        formatter_class=argparse.RawDescriptionHelpFormatter,  # examples keep their lines
    )
    parser.set_defaults(run=run)
    return parser
