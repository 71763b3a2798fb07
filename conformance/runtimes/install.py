"""Install what the runtimes need, as their tests run without a network: python -m conformance.runtimes.install [--runtime NAME]..."""

from __future__ import annotations

import argparse

from . import RUNTIMES
from .runtime import CACHE, CNI_PLUGINS, shell


def main() -> None:
    """Install for the runtimes that are named, or for all; arguments that are pytest's do not matter here."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--runtime", action="append", choices=sorted(RUNTIMES))
    names = parser.parse_known_args()[0].runtime or list(RUNTIMES)
    shell("cni_plugins", str(CACHE / "cni"), *CNI_PLUGINS)
    shell("pip_command")
    for name in names:
        RUNTIMES[name].install()


if __name__ == "__main__":
    main()
