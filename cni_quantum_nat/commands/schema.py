"""`quantum-nat schema`: JSON Schema for editors and other tools."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .parser import NO_STATE, add_command

if TYPE_CHECKING:
    import argparse

    from .parser import Commands


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "schema",
        run,
        summary="print the JSON Schema of the configuration",
        description="Print the JSON Schema (draft 2020-12) of a plugin of type quantum-nat, for editors.",
        examples=("schema --conflist > quantum-nat.conflist.schema.json",),
        scope=NO_STATE,
    )
    parser.add_argument("--conflist", action="store_true", help="the schema of a whole configuration list")
    parser.add_argument("--json", action="store_true", help="no effect: the schema is always JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    from ..cni.schema import conflist_schema, plugin_schema  # pydantic: only this command and validate need it

    print(json.dumps(conflist_schema() if arguments.conflist else plugin_schema(), indent=2))
    return 0
