"""`quantum-nat schema`: JSON Schema for editors and other checkers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

_EPILOG = """\
example:
  quantum-nat schema --conflist > quantum-nat.conflist.schema.json
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    from argparse import RawDescriptionHelpFormatter

    parser = commands.add_parser(
        "schema",
        help="print the JSON Schema of the configuration",
        description="Print the JSON Schema (draft 2020-12) of a plugin of type quantum-nat, for editors.",
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--conflist", action="store_true", help="of a whole configuration list")
    parser.add_argument("--json", action="store_true", help="as always: a schema is JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    from ..slowpath.schema import conflist_schema, plugin_schema  # pydantic, which only this and validate need

    print(json.dumps(conflist_schema() if arguments.conflist else plugin_schema(), indent=2))
    return 0
