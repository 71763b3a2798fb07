"""`quantum-nat validate FILE...`: what is wrong with CNI configuration files, and where."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, NamedTuple

from .jsonfile import Document, SyntaxProblem, decode, line_and_column
from .netconf import ERROR, WARNING, check
from .parser import add_command

if TYPE_CHECKING:
    import argparse

    from .jsonfile import Path
    from .parser import Commands

_MAX_BYTES = 1 << 20  # hundreds of times what any network needs


class Message(NamedTuple):
    """A finding in a file. line, column: from 1; 0 where the file could not be read."""

    file: str
    line: int
    column: int
    path: str
    severity: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        kind = f"{WARNING}: " if self.severity == WARNING else ""
        path = f"{self.path}: " if self.path else ""
        return f"{place}: {kind}{path}{self.message}"


def add_to(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "validate",
        run,
        summary="check CNI configuration files",
        description="Check CNI configuration files: as JSON, against CNI's demands, and against what ADD accepts. "
        "The exit status is 1 when there is an error; warnings alone are 0.",
        examples=("validate /etc/cni/net.d/*.conflist",),
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="a .conflist, .conf or .json file; - is standard input"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array of what was found")


def run(arguments: argparse.Namespace) -> int:
    """Print what is wrong with each file; 1 when anything is an error."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file may say "\ud800"
    found = {file: messages_of(file) for file in arguments.files}
    everything = [message for messages in found.values() for message in messages]
    if arguments.json:
        print(json.dumps([message._asdict() for message in everything], indent=2))
    else:
        for file, messages in found.items():
            print("\n".join(map(str, messages)) if messages else f"{file}: ok")
    return 1 if any(message.severity == ERROR for message in everything) else 0


def messages_of(file: str) -> list[Message]:
    """Return what is wrong with one file, in the order of its lines."""
    try:
        raw = _read(file)
    except OSError as error:
        return [Message(file, 0, 0, "", ERROR, f"it cannot be read: {error.strerror}")]
    if len(raw) > _MAX_BYTES:
        return [
            Message(file, 0, 0, "", ERROR, f"it has more than {_MAX_BYTES} bytes; that is no network configuration")
        ]
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
            "the key is there twice; keep one of them",
        )
        for path, offset in document.repeated
    ]
    for finding in check(document.value, splitext(file)[1]):
        place = document.place(finding.path)
        messages.append(Message(file, *place, _written(finding.path), finding.severity, finding.message))
    return messages


def _written(path: Path) -> str:
    """Write a path as jq does: plugins[1].masquerade."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.replace("_", "").isalnum():
            text += f".{part}"
        else:
            text += f"[{json.dumps(part)}]"
    return text.removeprefix(".")
