"""`quantum-nat metrics`: what Prometheus asks for, printed, as a file for node_exporter, or served."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from ...model.errors import IO_FAILURE, CniError
from ...state.directory import State
from ..parser import add_command

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from ..parser import Commands

_LAST_PORT = 65535
_READABLE_BY_ALL = 0o022  # as umask: node_exporter is another user


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "metrics",
        run,
        summary="print, write or serve metrics for Prometheus",
        description="Print the metrics in the form that Prometheus reads, write them for node_exporter's textfile collector, "
        "or serve them. docs/metrics.md says what each means, and what survives what.",
        examples=("metrics --textfile /var/lib/node_exporter/quantum-nat.prom", "metrics --listen 127.0.0.1:9477"),
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--textfile", metavar="PATH", help="write them to this file, at once, for node_exporter")
    ways.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        type=_address,
        help="serve them under /metrics until ended, as on 127.0.0.1:9477 or [::1]:9477",
    )
    ways.add_argument("--json", action="store_true", help="print a JSON array of metrics with their samples")


def _address(text: str) -> tuple[str, int]:
    """Read 127.0.0.1:9477 or [::1]:9477; ArgumentTypeError when it is neither."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_bracketed = host == f"[{bare}]"
    if not colon or not bare or not port.isdecimal() or int(port) > _LAST_PORT or (":" in bare) != is_bracketed:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT, as 127.0.0.1:9477 or [::1]:9477")
    return bare, int(port)


def run(arguments: argparse.Namespace) -> int:
    """Look once and print, or write the file; or serve until ended."""
    # 100 ms, which a shell that completes a word need not wait for
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    from .exposition import NatCollector
    from .listen import serve

    registry = CollectorRegistry()
    registry.register(NatCollector(State(arguments.state_dir)))
    if arguments.listen:
        ProcessCollector(registry=registry)  # it runs for long: let it be seen if it grows
        serve(arguments.listen, registry)
    elif arguments.textfile:
        _write(arguments.textfile, registry)
    elif arguments.json:
        print(_as_json(registry))
    else:
        sys.stdout.write(generate_latest(registry).decode())
    return 0


def _write(path: str, registry: CollectorRegistry) -> None:
    """Write the file beside its place and rename it: whoever reads it sees the old one or the new one, whole."""
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
