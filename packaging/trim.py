"""Copies libraries without what this program does not use of them, for PyInstaller to find before those in the environment.

prometheus_client and pyroute2 import OpenSSL and SQLite whether or not they are used: seven megabytes.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

_NO_TLS = (r"^import ssl$", "ssl = None")
_PYROUTE2 = """\
from pyroute2.config import log
from pyroute2.config.version import __version__
from pyroute2.iproute import IPRoute
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket
"""
TRIMS: dict[str, tuple[tuple[str, str], ...]] = {
    "prometheus_client/exposition.py": (
        (r"\A", "from __future__ import annotations\n"),
        _NO_TLS,
        (r", HTTPSHandler,$", ","),
        (r"= ssl\.PROTOCOL_TLS_SERVER", "= None"),
        (r"= ssl\.PROTOCOL_TLS_CLIENT", "= None"),
    ),
    "pyroute2/__init__.py": ((r"(?s)\A.*\Z", _PYROUTE2),),
    "pyroute2/netlink/rtnl/probe_msg.py": (_NO_TLS,),
}


class NotAsExpected(Exception):
    """A library has changed: what is to be left out of it is not there, or more than once."""


def trim(text: str, substitutions: tuple[tuple[str, str], ...], name: str) -> str:
    """Return the module's text with each pattern replaced, which must be there exactly once."""
    for pattern, replacement in substitutions:
        text, count = re.subn(pattern, replacement, text, count=0, flags=re.MULTILINE)
        if count != 1:
            raise NotAsExpected(f"{name}: {pattern!r} is there {count} times and not once; see packaging/trim.py")
    return text


def copy_trimmed(target: Path) -> None:
    """Make `target` anew, with the packages of TRIMS in it."""
    shutil.rmtree(target, ignore_errors=True)
    for package in sorted({name.partition("/")[0] for name in TRIMS}):
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise NotAsExpected(f"the package {package} is not installed")
        shutil.copytree(Path(found.origin).parent, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, substitutions in TRIMS.items():
        module = target / name
        module.write_text(trim(module.read_text(), substitutions, name))


if __name__ == "__main__":
    copy_trimmed(Path(sys.argv[1]))
