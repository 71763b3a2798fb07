"""Install what the runtimes need, as their tests run without a network: python -m conformance.runtimes.install."""

from __future__ import annotations

from . import RUNTIMES
from .runtime import CACHE, CNI_PLUGINS, shell


def main() -> None:
    """Install for every runtime."""
    shell("cni_plugins", str(CACHE / "cni"), *CNI_PLUGINS)
    shell("pip_command")
    for runtime in RUNTIMES.values():
        runtime.install()


if __name__ == "__main__":
    main()
