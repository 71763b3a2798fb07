"""The entry point: a runtime sets CNI_COMMAND, an operator gives arguments.

A pod's start waits for this module.
"""

from __future__ import annotations

import posix
import sys


def main() -> int:
    """Run the plugin or the command line, and return the exit status."""
    if b"CNI_COMMAND" in posix.environ:
        from .cni.entry import run
    else:
        from .commands.cli import run  # never loaded for a runtime's call
    return run()


if __name__ == "__main__":
    sys.exit(main())
