"""`quantum-nat validate FILE...`: check CNI configuration files, and print problems with line and column."""

from __future__ import annotations

import json
import sys
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, NamedTuple

from .directories import SUFFIXES, configurations_in, named_by
from .jsonfile import Document, SyntaxProblem, decode, line_and_column
from .netconf import ERROR, WARNING, check
from .parser import NO_STATE, add_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from .jsonfile import Path
    from .parser import Commands

_MAX_BYTES = 1 << 20  # far more than any network needs


class Message(NamedTuple):
    """A finding in a file. line, column: from 1; 0 if the file could not be read."""

    file: str
    line: int
    column: int
    path: str
    severity: str
    message: str

    def __str__(self) -> str:
        position = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        kind = f"{WARNING}: " if self.severity == WARNING else ""
        path = f"{self.path}: " if self.path else ""
        return f"{position}: {kind}{path}{self.message}"


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "validate",
        run,
        summary="check CNI configuration files",
        description="Check CNI configuration files: JSON syntax, the rules of CNI, and the plugin's own keys, as ADD does. "
        "The exit status is 1 if there are errors, and 0 if there are only warnings.",
        examples=("validate /etc/cni/net.d", "validate 10-containers.conflist"),
        scope=NO_STATE,
    )
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="a .conflist, .conf or .json file, a directory of them, or - for standard input",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array of findings")


def run(arguments: argparse.Namespace) -> int:
    """Print the problems of each file; return 1 if any is an error."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file may say "\ud800"
    found = dict(_checked(arguments.files))
    everything = [message for messages in found.values() for message in messages]
    if arguments.json:
        print(json.dumps([message._asdict() for message in everything], indent=2))
    else:
        for file, messages in found.items():
            print("\n".join(map(str, messages)) if messages else f"{file}: ok")
    return 1 if any(message.severity == ERROR for message in everything) else 0


def _checked(names: list[str]) -> Iterator[tuple[str, list[Message]]]:
    for name in names:
        if not FilePath(name).is_dir():
            yield name, messages_of(name)
            continue
        files = configurations_in(FilePath(name))
        yield from ((str(file), messages_of(str(file))) for file in files)
        if not files:
            why = f"no network configuration is in this directory: runtimes read {', '.join(SUFFIXES)}"
            yield name, [Message(name, 0, 0, "", ERROR, why)]
        elif warning := _several_directories(files):
            yield name, [Message(name, 0, 0, "", WARNING, warning)]


def _several_directories(files: list[FilePath]) -> str:
    """Say that the networks use different state directories; empty if they use one. Their own errors are told elsewhere."""
    used = named_by(files, [])
    if len(used) < 2:
        return ""
    listed = "; ".join(f"{directory} ({', '.join(users)})" for directory, users in sorted(used.items()))
    return (
        f"the networks use different state directories: {listed}. Neither repairs the other's containers, and each needs a "
        "`quantum-nat reconcile --watch` of its own; use the same stateDir in all lists"
    )


def messages_of(file: str) -> list[Message]:
    """Return the problems of one file, in the order of its lines."""
    try:
        raw = _read(file)
    except OSError as error:
        return [Message(file, 0, 0, "", ERROR, f"cannot be read: {error.strerror}")]
    if len(raw) > _MAX_BYTES:
        return [Message(file, 0, 0, "", ERROR, f"more than {_MAX_BYTES} bytes; this is not a network configuration")]
    try:
        text = raw.decode()
        document = decode(text)
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        return [Message(file, *line_and_column(before, len(before)), "", ERROR, message)]
    except SyntaxProblem as error:
        return [Message(file, *line_and_column(text, error.offset), "", ERROR, f"not JSON: {error.message}")]
    return sorted(_findings(file, document), key=lambda message: (message.line, message.column))


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read(_MAX_BYTES + 1)
    with open(file, "rb") as stream:
        return stream.read(_MAX_BYTES + 1)


def _findings(file: str, document: Document) -> list[Message]:
    from posixpath import splitext

    messages = [
        Message(
            file,
            *line_and_column(document.text, offset),
            _written(path),
            ERROR,
            "duplicate key; remove one of them",
        )
        for path, offset in document.repeated
    ]
    for finding in check(document.value, splitext(file)[1]):
        position = document.position(finding.path)
        messages.append(Message(file, *position, _written(finding.path), finding.severity, finding.message))
    return messages


def _written(path: Path) -> str:
    """Format a path as jq does: plugins[1].masquerade."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.replace("_", "").isalnum():
            text += f".{part}"
        else:
            text += f"[{json.dumps(part)}]"
    return text.removeprefix(".")
