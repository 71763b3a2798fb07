"""One program, two uses: a runtime sets CNI_COMMAND, a person gives arguments."""

from __future__ import annotations

import posix
import sys


def main() -> int:
    """Run the plugin or the command line, and return the exit status."""
    if b"CNI_COMMAND" in posix.environ:
        from .cni.entry import run
    else:
        from .commands.cli import run  # never loaded while a runtime waits
    return run()


if __name__ == "__main__":
    sys.exit(main())
