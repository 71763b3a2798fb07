"""JSON Schema (draft 2020-12) of what a person writes: a plugin of type quantum-nat, and a list that has one."""

from __future__ import annotations

from typing import Any

from .configuration import NatConfig
from .protocol import VERSIONS

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PORT_PATTERN = "^[0-9]{1,5}-[0-9]{1,5}$"


def plugin_schema() -> dict[str, Any]:
    """Return the schema of a plugin of type quantum-nat. Unknown keys are allowed, as CNI asks."""
    described = NatConfig.model_json_schema(by_alias=True)
    properties = {key: _without_title(value) for key, value in described["properties"].items()}
    properties["snatAddress"] = _one_or_list(properties["snatAddress"])
    properties["portRange"]["pattern"] = _PORT_PATTERN
    return {
        "$schema": _DIALECT,
        "title": "quantum-nat",
        "description": "A plugin of type quantum-nat in a CNI network configuration list.",
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"const": "quantum-nat", "description": "The plugin's name."}, **properties},
        **({"$defs": described["$defs"]} if "$defs" in described else {}),
    }


def conflist_schema() -> dict[str, Any]:
    """Return the schema of a network configuration list; plugins of other types may be anything."""
    plugin = {key: value for key, value in plugin_schema().items() if key != "$schema"}
    ours = {"properties": {"type": {"const": "quantum-nat"}}, "required": ["type"]}
    return {
        "$schema": _DIALECT,
        "title": "CNI network configuration list with quantum-nat",
        "description": "A .conflist file, as container runtimes read it.",
        "type": "object",
        "required": ["cniVersion", "name", "plugins"],
        "properties": {
            "cniVersion": {"enum": list(VERSIONS), "description": "The version of CNI that the list is written in."},
            "name": {
                "type": "string",
                "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$",
                "description": "The network's name.",
            },
            "plugins": {
                "type": "array",
                "minItems": 1,
                "description": "The plugins, in the order in which they are run.",
                "items": {
                    "type": "object",
                    "required": ["type"],
                    "properties": {"type": {"type": "string", "minLength": 1, "description": "The program to run."}},
                    "if": ours,
                    "then": {"$ref": "#/$defs/quantum-nat"},
                },
                "contains": ours,
            },
        },
        "$defs": {"quantum-nat": plugin},
    }


def _without_title(described: dict[str, Any]) -> dict[str, Any]:
    """Leave out the title that pydantic makes of a name, which an editor would show in place of the description."""
    return {key: value for key, value in described.items() if key != "title"}


def _one_or_list(described: dict[str, Any]) -> dict[str, Any]:
    """Allow a single item in place of a list, which the model accepts before it looks."""
    kept = {key: value for key, value in described.items() if key in ("description", "default")}
    items = {key: value for key, value in described.items() if key not in kept}
    return {**kept, "anyOf": [described["items"], items]}
