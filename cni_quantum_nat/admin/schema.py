"""`quantum-nat schema`: the configuration as JSON Schema, for editors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "schema",
        help="print the JSON Schema of the configuration",
        description="Print the JSON Schema of this plugin's object in a configuration list, or of a whole list.",
    )
    parser.add_argument("--conflist", action="store_true", help="of a whole configuration list")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    schema = conflist_schema() if arguments.conflist else plugin_schema()
    print(json.dumps(schema, indent=2))
    return 0


def plugin_schema() -> dict[str, Any]:
    """Return the schema of the plugin's own object."""
    from ..slowpath.config import NatConfig  # pydantic takes 100 ms

    schema = NatConfig.model_json_schema(by_alias=True)
    for described in schema["properties"].values():
        described.pop("title", None)
    schema["properties"] = {"type": {"const": "quantum-nat"}, **schema["properties"]}
    return {
        "$schema": _DRAFT,
        "title": "quantum-nat",
        "description": "The object of the CNI plugin quantum-nat in a configuration list.",
        "type": "object",
        "required": ["type"],
        "properties": schema["properties"],
    }


def conflist_schema() -> dict[str, Any]:
    """Return the schema of a configuration list that has the plugin in it."""
    from ..hotpath.protocol import VERSIONS

    plugin = {key: value for key, value in plugin_schema().items() if key != "$schema"}
    ours = {"if": {"properties": {"type": {"const": "quantum-nat"}}}, "then": {"$ref": "#/$defs/quantum-nat"}}
    return {
        "$schema": _DRAFT,
        "title": "CNI configuration list with quantum-nat",
        "type": "object",
        "required": ["cniVersion", "name", "plugins"],
        "properties": {
            "cniVersion": {"enum": list(VERSIONS)},
            "name": {"type": "string", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]*$"},
            "disableCheck": {"type": "boolean"},
            "plugins": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}, **ours},
            },
        },
        "$defs": {"quantum-nat": plugin},
    }
