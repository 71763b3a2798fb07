"""Writes the table of docs/configuration.md from the model of the configuration: python packaging/configuration.py."""

from __future__ import annotations

import json
from pathlib import Path

from cni_quantum_nat.cni.configuration import NatConfig
from cni_quantum_nat.cni.explain import ALLOWED

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
_BEGIN, _END = "<!-- keys: begin -->\n", "<!-- keys: end -->\n"


def table() -> str:
    """Return the table: each key, its default, its values, and what it means."""
    lines = ["| key | default | values | meaning |", "| --- | --- | --- | --- |"]
    for field in NatConfig.model_fields.values():
        key, default = str(field.alias), field.get_default(call_default_factory=True)
        if key == "capabilities":  # CNI's own
            continue
        shown = "none" if default in (None, []) else f"`{json.dumps(default)}`"
        lines.append(f"| `{key}` | {shown} | {ALLOWED[key]} | {field.description} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """Return the page with the table in its place."""
    before, _, rest = page.partition(_BEGIN)
    return f"{before}{_BEGIN}{table()}{_END}{rest.partition(_END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
