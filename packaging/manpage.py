"""Write the man page in man(7) format, from the parser of the command line.

argparse-manpage would not do: it writes two sections for each command, joins the lines of examples, and writes a date that
mandoc cannot read.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from typing import TYPE_CHECKING

from cni_quantum_nat import __version__
from cni_quantum_nat.commands.cli import make_parser
from cni_quantum_nat.state.directory import DEFAULT_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXIT_STATUS = (
    ("0", "Success."),
    ("1", "A failure, or a check found problems."),
    ("2", "The arguments are not valid."),
)
_FILES = (
    (DEFAULT_DIRECTORY, "The records, one file per attachment."),
    ("/etc/cni/net.d", "The network configurations that runtimes read."),
)


def page(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the lines of the page."""
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    yield f'.TH QUANTUM\\-NAT 8 {date} "quantum\\-nat {__version__}" "System Administration"'
    yield from (".SH NAME", r"quantum\-nat \- CNI plugin for port mapping and outbound NAT")
    yield from (".SH SYNOPSIS", *_text(_synopsis(parser)))
    yield ".SH DESCRIPTION"
    yield from _paragraphs(parser.description or "")
    yield ".SH OPTIONS"
    yield from _options(parser)
    yield ".SH COMMANDS"
    examples = []
    for name, summary, command in _commands(parser):
        yield from (f".SS {_escape(name)}", *_text(_synopsis(command)), ".PP")
        yield from _paragraphs(command.description or f"{summary[:1].upper()}{summary[1:]}.")
        yield from _options(command)
        examples += [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    yield from _terms("EXIT STATUS", _EXIT_STATUS)
    yield from _terms("FILES", _FILES)
    yield from (".SH EXAMPLES", ".nf", *map(_escape, examples), ".fi")
    yield from (".SH SEE ALSO", ".BR nft (8),", ".BR iptables (8),", ".BR podman\\-port (1)")


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield choice.dest, choice.help or "", action.choices[choice.dest]


def _synopsis(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        yield from (".TP", f".B {_escape(formatter._format_action_invocation(action))}")
        yield from _text(formatter._expand_help(action))


def _terms(title: str, terms: tuple[tuple[str, str], ...]) -> Iterator[str]:
    yield f".SH {title}"
    for term, meaning in terms:
        yield from (".TP", f".B {_escape(term)}", *_text(meaning))


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.strip().split("\n\n")):
        if number:
            yield ".PP"
        yield from _text(paragraph)


def _text(text: str) -> list[str]:
    return [_escape(line) for line in textwrap.wrap(" ".join(text.split()), 70, break_on_hyphens=False)]


def _escape(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    sys.stdout.write("\n".join(page(make_parser())) + "\n")
