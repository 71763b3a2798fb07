"""Starts the programs of iptables: iptables-restore and iptables-save, and their twins for IPv6, of either variant."""

from __future__ import annotations

import re
import shutil
import subprocess

from ...model.errors import KERNEL_REFUSED, NOT_AVAILABLE, TRY_AGAIN_LATER, CniError
from ...state.lock import held
from .text import Listing, Script

PREFIXES = {4: "iptables", 6: "ip6tables"}
_DIRECTORIES = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin"
_MAX_COMPLAINT = 1000
_WAIT_S = 30
_LOCK_IN_USE = "holding the xtables lock"


class DoesNotFit(Exception):
    """iptables-restore did not take a script; `line` is the one that it stopped at."""

    def __init__(self, family: int, complaint: str, line: str) -> None:
        super().__init__(complaint)
        self.family = family
        self.line = line

    @property
    def as_problem(self) -> str:
        """Say which of the rules that were looked for is missing, or why there could be none."""
        if self.line.startswith("-C "):
            return f"{PREFIXES[self.family]} has no rule {self.line.removeprefix('-C ')}"
        return f"{PREFIXES[self.family]} cannot look for the rules: {self}"

    def as_error(self, code: int = KERNEL_REFUSED) -> CniError:
        """Return what a runtime is told."""
        at = f" at {self.line!r}" if self.line else ""
        return CniError(code, f"{PREFIXES[self.family]}-restore refused our rules{at}", str(self))


def find_program(family: int, name: str) -> str:
    """Return the path of a program; CniError(50) when it is not installed."""
    command = f"{PREFIXES[family]}-{name}"
    path = shutil.which(command) or shutil.which(command, path=_DIRECTORIES)
    if path is None:
        raise CniError(
            NOT_AVAILABLE,
            f'backend is "iptables", but there is no {command}',
            "Install iptables, or leave out backend: nftables needs no program.",
        )
    return path


def list_rules(family: int) -> Listing:
    """List the rules of all tables."""
    return Listing(_save(family))


def list_counted_rules(family: int) -> str:
    """List the rules of table nat, each with the packets and bytes that it has seen."""
    return _save(family, "-c", "-t", "nat")


def save(family: int, variant: str) -> str:
    """Return what iptables-save of a variant, nft or legacy, lists; CniError(50) when it is not installed."""
    return _save(family, program=f"{variant}-save")


def _save(family: int, *options: str, program: str = "save") -> str:
    done = _run([find_program(family, program), *options])
    if done.returncode:
        raise CniError(KERNEL_REFUSED, f"{PREFIXES[family]}-{program} failed", _one_line(done.stderr))
    return done.stdout


def try_to_restore(family: int, script: Script, *options: str) -> None:
    """Let iptables-restore do it; DoesNotFit when it does not want to, CniError(101) when it was killed."""
    text = script.text
    if not text:
        return
    done = _run([find_program(family, "restore"), "--noflush", f"--wait={_WAIT_S}", *options], text)
    if done.returncode and _LOCK_IN_USE in done.stderr:
        raise CniError(
            TRY_AGAIN_LATER,
            f"another program has held the lock of {PREFIXES[family]} for {_WAIT_S} seconds",
            f"Find out which: fuser -v /run/xtables.lock. {_one_line(done.stderr)}",
        )
    if done.returncode < 0:  # that says nothing about the rules: nobody should go and leave some of them out
        raise CniError(
            KERNEL_REFUSED, f"{PREFIXES[family]}-restore was ended by signal {-done.returncode}", _one_line(done.stderr)
        )
    if done.returncode:
        number = re.search(r"line:? (\d+)", done.stderr)
        line = text.split("\n")[int(number[1]) - 1] if number else ""
        raise DoesNotFit(family, _one_line(done.stderr), line)


def restore(family: int, script: Script) -> None:
    """Let iptables-restore do it; CniError(101) when it does not want to."""
    try:
        try_to_restore(family, script)
    except DoesNotFit as error:
        raise error.as_error() from error


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, pass_fds=tuple(held))


def _one_line(complaint: str) -> str:
    return " ".join(complaint.split())[:_MAX_COMPLAINT]
