"""`quantum-nat metrics`: print metrics, write them to a file for node_exporter, or serve them to Prometheus."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from ...model.errors import IO_FAILURE, CniError
from ...state.directory import State
from ..parser import add_command
from ..records import require_directory

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from ..parser import Commands

_LAST_PORT = 65535
_READABLE_BY_ALL = 0o022  # umask: node_exporter runs as another user


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "metrics",
        run,
        summary="print, write or serve metrics for Prometheus",
        description="Print the metrics in Prometheus' text format, write them to a file for node_exporter's textfile collector, "
        "or serve them over HTTP. docs/metrics.md describes each metric.",
        examples=("metrics --textfile /var/lib/node_exporter/quantum-nat.prom", "metrics --listen 127.0.0.1:9477"),
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--textfile", metavar="PATH", help="write them atomically to this file, for node_exporter")
    ways.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        type=_address,
        help="serve them at /metrics until interrupted; for example on 127.0.0.1:9477 or [::1]:9477",
    )
    ways.add_argument("--json", action="store_true", help="print a JSON array of metrics and their samples")


def _address(text: str) -> tuple[str, int]:
    """Parse an address such as 127.0.0.1:9477 or [::1]:9477; raise ArgumentTypeError if it is not valid.

    Brackets are for any address: a manifest does not know of which family its node's address is.
    """
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_bracketed = host == f"[{bare}]"
    is_unclear = ":" in bare or bare != host
    if not colon or not bare or not port.isdecimal() or int(port) > _LAST_PORT or (is_unclear and not is_bracketed):
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT, for example 127.0.0.1:9477 or [::1]:9477")
    return bare, int(port)


def run(arguments: argparse.Namespace) -> int:
    """Print the metrics, write the file, or serve until interrupted."""
    # 100 ms, which completions do without
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    from .exposition import NatCollector
    from .listen import serve

    state = State(arguments.state_dir)
    if not arguments.listen:  # a service may start before the first container
        require_directory(state)
    registry = CollectorRegistry()
    registry.register(NatCollector(state))
    if arguments.listen:
        ProcessCollector(registry=registry)  # it runs for long: show its memory
        serve(arguments.listen, registry)
    elif arguments.textfile:
        _write(arguments.textfile, registry)
    elif arguments.json:
        print(_as_json(registry))
    else:
        sys.stdout.write(generate_latest(registry).decode())
    return 0


def _write(path: str, registry: CollectorRegistry) -> None:
    """Write the file atomically."""
    from prometheus_client import write_to_textfile

    os.umask(_READABLE_BY_ALL)
    try:
        write_to_textfile(path, registry)
    except OSError as error:
        raise CniError(IO_FAILURE, f"cannot write {path}: {error.strerror}") from error


def _as_json(registry: CollectorRegistry) -> str:
    metrics = [
        {
            "name": metric.name,
            "type": metric.type,
            "help": metric.documentation,
            "samples": [
                {"name": sample.name, "labels": sample.labels, "value": sample.value} for sample in metric.samples
            ],
        }
        for metric in registry.collect()
    ]
    return json.dumps(metrics, indent=2)
