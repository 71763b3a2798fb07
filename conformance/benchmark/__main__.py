"""The command line: which sections to measure, how often, and where to write the figures."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import calls, costs, packets, parallel, reconciling, resources
from .contenders import NETAVARK_IPTABLES, NETAVARK_NFTABLES, Programs
from .figures import Figure, Figures
from .plot import draw
from .report import comparison, put_into, tables, verdicts
from .summary import summary
from .targets import targets_of
from .waterfall import draw_waterfall

if TYPE_CHECKING:
    from collections.abc import Callable

    from .figures import Samples

_ROOT = Path(__file__).parents[2]
_JSON = _ROOT / "docs/development/performance.json"
_PLOT = _ROOT / "docs/pictures/performance.svg"
_WATERFALL = _ROOT / "docs/pictures/add.svg"
_DOCUMENT = _ROOT / "docs/development/performance.md"
_PAGE_FOR_USERS = _ROOT / "docs/performance.md"


@dataclass(frozen=True)
class Extent:
    """The extent of a run: the numbers of existing containers, and the rounds."""

    levels: list[int]
    rounds: int
    parallel_rounds: int
    resource_rounds: int
    packet_levels: list[int]
    packet_repeat: packets.Repeat
    reconcile_levels: list[int]
    reconcile_rounds: int


_FULL = Extent([0, 100, 1000, 10000], 20, 3, 5, [0, 1000, 10000, 28000], packets.Repeat(12, 0.4), [1000, 10000], 5)
_QUICK = Extent([0, 1000], 4, 1, 2, [0, 1000], packets.Repeat(2, 0.3), [1000], 2)


def main() -> None:
    """Measure, print and write the figures."""
    arguments = _arguments()
    if arguments.write_tables:
        _write_tables(arguments.json or _JSON)
        return
    before = _read(arguments.against) if arguments.against.exists() else None
    figures = _measure(arguments)
    print("\n".join(_lines(figures)))
    if before is not None:
        print("\n".join(comparison(before, figures)))
    _write(arguments, figures)


def _measure(arguments: argparse.Namespace) -> Figures:
    programs = Programs(arguments.ours, arguments.ours_pip, arguments.plugins, _netavarks(arguments))
    found: list[Figure] = []
    extent = _QUICK if arguments.quick else _FULL
    if arguments.rounds:
        extent = replace(extent, rounds=arguments.rounds)
    for name, measure in _sections(programs, arguments.packets, extent).items():
        if arguments.only and name not in arguments.only:
            continue
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(dir="/run") as directory, ExitStack() as stack:
            found += measure(stack=stack, directory=Path(directory)).figures()
        print(f"{name}: measured in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    return Figures(found)


def _sections(programs: Programs, packets_program: str, extent: Extent) -> dict[str, Callable[..., Samples]]:
    return {
        calls.SECTION: partial(calls.measure, programs, extent.levels, extent.rounds),
        parallel.SECTION: partial(parallel.measure, programs, extent.parallel_rounds),
        resources.SECTION: partial(resources.measure, programs, extent.resource_rounds),
        packets.SECTION: partial(
            packets.measure, programs, packets_program, extent.packet_levels, extent.packet_repeat
        ),
        costs.SECTION: partial(costs.measure, programs, extent.rounds),
        reconciling.SECTION: partial(reconciling.measure, programs, extent.reconcile_levels, extent.reconcile_rounds),
    }


def _netavarks(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the path of each; the newer one needs a newer cargo."""
    programs = {NETAVARK_IPTABLES: arguments.netavark, NETAVARK_NFTABLES: arguments.newer_netavark}
    return {name: program for name, program in programs.items() if program}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="conformance/bench", description="Benchmark the plugin against its peers, in one run."
    )
    for name in ("ours", "ours-pip", "plugins", "netavark", "newer-netavark", "packets"):
        parser.add_argument(f"--{name}", required=True, help=argparse.SUPPRESS)
    names = (calls.SECTION, parallel.SECTION, resources.SECTION, packets.SECTION, reconciling.SECTION, costs.SECTION)
    parser.add_argument(
        "--quick", action="store_true", help="few rounds, 0 and 1,000 containers; writes no files by default"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="time each call N times (default: 20, with --quick: 4)")
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="SECTION", help=f"one or more of {', '.join(names)}"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the figures to this file (default for a full run: docs/development/performance.json)",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw them to this file (default for a full run: docs/pictures/performance.svg)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        default=_JSON,
        metavar="FILE",
        help="report regressions since these figures (default: %(default)s)",
    )
    parser.add_argument(
        "--write-tables",
        action="store_true",
        help="measure nothing, but write the tables from --json to the two pages on performance, and draw their pictures",
    )
    return parser.parse_args()


def _lines(figures: Figures) -> list[str]:
    return [*verdicts(targets_of(figures)), *tables(figures)]


def _read(path: Path) -> Figures:
    return Figures(Figure.from_json(content) for content in json.loads(path.read_text())["figures"])


def _write(arguments: argparse.Namespace, figures: Figures) -> None:
    whole = not arguments.quick and not arguments.only
    json_path = arguments.json or (_JSON if whole else None)
    if json_path is not None:
        json_path.write_text(json.dumps(_document(figures), indent=1) + "\n")
    if arguments.plot is not None:
        arguments.plot.write_text(draw(figures))
    if whole and json_path == _JSON:
        _write_tables(_JSON)


def _document(figures: Figures) -> dict[str, Any]:
    return {
        "measuredAt": time.strftime("%Y-%m-%d", time.gmtime()),
        "kernel": platform.release(),
        "targets": [{**target._asdict(), "met": target.is_met} for target in targets_of(figures)],
        "figures": [figure.as_json() for figure in figures],
    }


def _write_tables(path: Path) -> None:
    content = json.loads(path.read_text())
    head = f"Measured on {content['measuredAt']}, Linux {content['kernel']}."
    figures = _read(path)
    for page, lines in ((_DOCUMENT, _lines(figures)), (_PAGE_FOR_USERS, summary(figures))):
        page.write_text(put_into(page.read_text(), [head, "", *lines]))
    _PLOT.write_text(draw(figures))
    _WATERFALL.write_text(draw_waterfall(figures))


if __name__ == "__main__":
    main()
