"""`quantum-nat validate FILE...`: checks network configuration files, as a compiler does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..hotpath.errors import IO_FAILURE, CniError
from .positions import line_and_column

if TYPE_CHECKING:
    import argparse

    from .network_file import Problem

_MOST_BYTES = 1 << 20  # such a file has some hundreds


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "validate",
        help="check network configuration files",
        description="Check conf and conflist files: JSON, what CNI asks, every key of this plugin, and what around it makes traffic "
        "fail. Each message says file, line and column. Exit status 1 when there is an error; warnings alone are none.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="a conf or conflist file; - is standard input")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what is wrong with each file; 1 when there is an error in one."""
    from .network_file import ERROR, problems_in  # pydantic takes 100 ms

    reports: list[dict[str, object]] = []
    for name in arguments.files:
        text = _read(name)
        problems = problems_in(text)
        reports += [_report(name, text, problem) for problem in problems]
        if not problems and not arguments.json:
            print(f"{name}: ok")
    if arguments.json:
        print(json.dumps(reports, indent=2))
    else:
        for report in reports:
            print(_line(report))
    return 1 if any(report["severity"] == ERROR for report in reports) else 0


def _read(name: str) -> str:
    try:
        content = sys.stdin.buffer.read(_MOST_BYTES + 1) if name == "-" else _read_file(Path(name))
    except OSError as error:
        raise CniError(IO_FAILURE, f"cannot read {name}: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise CniError(IO_FAILURE, f"{name} is larger than {_MOST_BYTES} bytes", "That is no network configuration.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise CniError(IO_FAILURE, f"{name} is not UTF-8: byte {error.start} is {content[error.start]:#x}") from error


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES + 1)


def _report(name: str, text: str, problem: Problem) -> dict[str, object]:
    line, column = line_and_column(text, problem.offset)
    return {
        "file": name,
        "line": line,
        "column": column,
        "path": problem.path,
        "severity": problem.severity,
        "message": problem.message,
    }


def _line(report: dict[str, object]) -> str:
    where = f"{report['file']}:{report['line']}:{report['column']}: {report['severity']}: "
    return where + (f"{report['path']}: " if report["path"] else "") + str(report["message"])
