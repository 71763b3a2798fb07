"""What the frozen program runs: the package's `__main__`, imported so that its relative imports work."""

import posix
import sys

from cni_quantum_nat.__main__ import main

status = main()
if b"CNI_COMMAND" in posix.environ:
    # The answer is written. To take the interpreter down in order costs a fifth of the whole call.
    posix._exit(status)
sys.exit(status)
