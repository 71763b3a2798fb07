"""Writes the bill of materials, CycloneDX 1.6, and the licences: sbom.py FROZEN_DIRECTORY BILL LICENCES_DIRECTORY."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

from inventory import Component, components, write_licences

from cni_quantum_nat import __version__

_ROOT = f"pkg:pypi/cni-quantum-nat@{__version__}"


def bill(found: list[Component], seconds: int) -> dict[str, Any]:
    """Return the bill of materials; its serial number is of its content."""
    content: dict[str, Any] = {
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": _ROOT,
                "name": "quantum-nat",
                "version": __version__,
                "purl": _ROOT,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": [_entry(component) for component in found],
        "dependencies": [{"ref": _ROOT, "dependsOn": [component.purl for component in found]}],
    }
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{number}",
        "version": 1,
        **content,
    }


def _entry(component: Component) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "library",
        "bom-ref": component.purl,
        "name": component.name,
        "version": component.version,
        "purl": component.purl,
    }
    if component.is_expression:
        entry["licenses"] = [{"expression": component.licence}]
    else:
        entry["licenses"] = [{"license": {"name": component.licence or f"third-party/{component.name}.txt"}}]
    files = [
        {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}
        for name, digest in component.files.items()
    ]
    if parts := [*files, *component.parts]:
        entry["components"] = parts
    return entry


def main(frozen: Path, target: Path, licences: Path) -> None:
    """Write both."""
    found = components(frozen)
    shutil.rmtree(licences, ignore_errors=True)
    write_licences(found, licences)
    target.write_text(json.dumps(bill(found, int(os.environ["SOURCE_DATE_EPOCH"])), indent=2) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
