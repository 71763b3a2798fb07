"""JSON Schema (draft 2020-12) of a plugin of type quantum-nat, and of a list that contains one."""

from __future__ import annotations

from typing import Any

from .configuration import NatConfig
from .protocol import VERSIONS

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PORT_PATTERN = "^[0-9]{1,5}-[0-9]{1,5}$"


def plugin_schema() -> dict[str, Any]:
    """Return the schema of a plugin of type quantum-nat. Unknown keys are allowed, as CNI requires."""
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
    """Return the schema of a network configuration list; plugins of other types are not checked."""
    plugin = {key: value for key, value in plugin_schema().items() if key != "$schema"}
    ours = {"properties": {"type": {"const": "quantum-nat"}}, "required": ["type"]}
    return {
        "$schema": _DIALECT,
        "title": "CNI network configuration list with quantum-nat",
        "description": "A .conflist file for container runtimes.",
        "type": "object",
        "required": ["cniVersion", "name", "plugins"],
        "properties": {
            "cniVersion": {"enum": list(VERSIONS), "description": "The CNI version of the list."},
            "name": {
                "type": "string",
                "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$",
                "description": "The network's name.",
            },
            "plugins": {
                "type": "array",
                "minItems": 1,
                "description": "The plugins, in the order in which they run.",
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
    """Leave out pydantic's title, which editors would show instead of the description."""
    return {key: value for key, value in described.items() if key != "title"}


def _one_or_list(described: dict[str, Any]) -> dict[str, Any]:
    """Allow a single item instead of a list, as the model does."""
    kept = {key: value for key, value in described.items() if key in ("description", "default")}
    items = {key: value for key, value in described.items() if key not in kept}
    return {**kept, "anyOf": [described["items"], items]}
