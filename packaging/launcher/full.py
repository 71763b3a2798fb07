"""What the full program runs first: PyInstaller's importer, and then the plugin's call or a person's command.

PyInstaller's own bootstrap also patches ctypes and looks for .egg directories, which nothing here needs.
"""

import posix
import sys

sys._MEIPASS = sys.prefix
sys._pyinstaller_pyz = f"{sys.prefix}/modules.pyz"
sys.frozen = True

import pyimod02_importers  # noqa: E402 - it looks at these

pyimod02_importers.install()
if b"QUANTUM_NAT_CHILD" in posix.environ:
    from cni_quantum_nat.backends.nftables.programs import run_as_child

    run_as_child()
    sys.exit()
is_call = b"CNI_COMMAND" in posix.environ
if is_call:
    import gc

    gc.disable()  # nothing lives long enough

from cni_quantum_nat.__main__ import main  # noqa: E402 - it cannot be found before
from cni_quantum_nat.state import lock  # noqa: E402

if inherited := posix.environ.pop(b"QUANTUM_NAT_LOCK", b""):
    posix.unsetenv(b"QUANTUM_NAT_LOCK")
    lock.inherited = int(inherited)
status = main()
if is_call:
    # The answer is written. To take the interpreter down in order costs a fifth of the whole call.
    posix._exit(status)
sys.exit(status)
