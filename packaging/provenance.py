"""Writes the provenance of a release: provenance.py SHA256SUMS COMMIT VERSION TARGET.

It is an in-toto statement (https://in-toto.io/Statement/v1) with SLSA's predicate (https://slsa.dev/spec/v1.0/provenance): which files, by which
command, from which commit and which locked packages. Whoever builds the same commit again with packaging/release gets the same files.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

_LOCKS = ("packaging/requirements.lock", "packaging/runtime.lock")


def statement(sums: str, commit: str, version: str) -> dict[str, Any]:
    """Return the statement for the files in `sums`, the output of sha256sum."""
    files = [line.split("  ", 1) for line in sums.splitlines()]
    source = {"uri": f"git+{_repository()}@refs/tags/v{version}", "digest": {"gitCommit": commit}}
    locks = [
        {"uri": f"file:{name}", "digest": {"sha256": hashlib.sha256(Path(name).read_bytes()).hexdigest()}}
        for name in _LOCKS
    ]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}} for digest, name in files],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{_repository()}/blob/v{version}/packaging/release",
                "externalParameters": {"source": source},
                "internalParameters": {"SOURCE_DATE_EPOCH": os.environ["SOURCE_DATE_EPOCH"]},
                "resolvedDependencies": [source, *locks],
            },
            "runDetails": {"builder": {"id": _builder()}},
        },
    }


def _repository() -> str:
    """Return the repository's URL, which the workflow knows."""
    if "GITHUB_REPOSITORY" in os.environ:
        return f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}"
    return "urn:project:quantum-nat"


def _builder() -> str:
    """Return who built it: the run of a workflow, or a person."""
    if "GITHUB_RUN_ID" in os.environ:
        return f"{_repository()}/actions/runs/{os.environ['GITHUB_RUN_ID']}"
    return "urn:project:quantum-nat:packaging/release"


def main(sums: str, commit: str, version: str, target: str) -> None:
    """Write it."""
    document = statement(Path(sums).read_text(), commit, version)
    Path(target).write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
