"""Run iptables-save and iptables-restore, and ip6tables' programs for IPv6, of either variant (nft or legacy)."""

from __future__ import annotations

import re
import shutil
import subprocess

from ...model.errors import KERNEL_REFUSED, NOT_AVAILABLE, TRY_AGAIN_LATER, CniError
from ...state.lock import held
from .text import Listing, Names, Script

PREFIXES = {4: "iptables", 6: "ip6tables"}
_DIRECTORIES = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin"
_MAX_COMPLAINT = 1000
_WAIT_S = 30
_LOCK_IN_USE = "holding the xtables lock"


class DoesNotFit(Exception):
    """iptables-restore rejected a script, at `line`."""

    def __init__(self, family: int, complaint: str, line: str) -> None:
        super().__init__(complaint)
        self.family = family
        self.line = line

    @property
    def as_problem(self) -> str:
        """Say which rule is missing, or why iptables-restore could not check."""
        if self.line.startswith("-C "):
            return f"{PREFIXES[self.family]} has no rule {self.line.removeprefix('-C ')}"
        return f"{PREFIXES[self.family]}-restore cannot check the rules: {self}"

    def as_error(self, code: int = KERNEL_REFUSED) -> CniError:
        """Return the error for the runtime."""
        at = f" at {self.line!r}" if self.line else ""
        return CniError(code, f"{PREFIXES[self.family]}-restore refused our rules{at}", str(self))


def find_program(family: int, name: str) -> str:
    """Return the path of a program. CniError(50) if it is not installed."""
    command = f"{PREFIXES[family]}-{name}"
    path = shutil.which(command) or shutil.which(command, path=_DIRECTORIES)
    if path is None:
        raise CniError(
            NOT_AVAILABLE,
            f'backend is "iptables", but there is no {command}',
            "Install iptables, or leave out backend: nftables needs no program.",
        )
    return path


def list_rules(family: int, names: Names | None = None) -> Listing:
    """List the rules of all tables."""
    return Listing(_save(family), names)


def list_counted_rules(family: int) -> str:
    """List the rules of table nat with their packet and byte counters."""
    return _save(family, "-c", "-t", "nat")


def save_nat(family: int) -> str:
    """Return table nat as iptables-save lists it, with everybody's rules. CniError(50) if it is not installed."""
    return _save(family, "-t", "nat")


def save(family: int, variant: str) -> str:
    """Return the output of one variant's iptables-save, nft or legacy. CniError(50) if it is not installed."""
    return _save(family, program=f"{variant}-save")


def _save(family: int, *options: str, program: str = "save") -> str:
    done = _run([find_program(family, program), *options])
    if done.returncode:
        raise CniError(KERNEL_REFUSED, f"{PREFIXES[family]}-{program} failed", _one_line(done.stderr))
    return done.stdout


def try_to_restore(family: int, script: Script, *options: str) -> None:
    """Run iptables-restore. DoesNotFit if it rejects the script; CniError(11) if the xtables lock stays taken, (101) if it was killed."""
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
    if done.returncode < 0:  # not a verdict on the rules, so a rebuild must not leave any of them out
        raise CniError(
            KERNEL_REFUSED, f"{PREFIXES[family]}-restore was ended by signal {-done.returncode}", _one_line(done.stderr)
        )
    if done.returncode:
        number = re.search(r"line:? (\d+)", done.stderr)
        line = text.split("\n")[int(number[1]) - 1] if number else ""
        raise DoesNotFit(family, _one_line(done.stderr), line)


def restore(family: int, script: Script) -> None:
    """Run iptables-restore. CniError(101) if it rejects the script."""
    try:
        try_to_restore(family, script)
    except DoesNotFit as error:
        raise error.as_error() from error


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, pass_fds=tuple(held))


def _one_line(complaint: str) -> str:
    return " ".join(complaint.split())[:_MAX_COMPLAINT]
