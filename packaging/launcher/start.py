"""What every start of the frozen program runs first.

A runtime's call finds its modules in the program itself. The first module that is not there brings PyInstaller's importer in, and
everything works as PyInstaller means it to. Its own bootstrap also patches ctypes and looks for .egg directories, which nothing here needs.
"""

import posix
import sys


class LastResort:
    """Asked last: makes way for PyInstaller's importer at the first module that nobody else has."""

    def find_spec(self, name, path=None, target=None):
        sys.meta_path.remove(self)
        install_archive()
        return next((spec for finder in sys.meta_path if (spec := finder.find_spec(name, path, target))), None)


def install_archive():
    import pyimod02_importers

    pyimod02_importers.install()
    sys.path_importer_cache.clear()  # directories that were looked at without it
    # The program has a part of these packages; the archive's importer, or the zip file's, finds the rest.
    for name, module in tuple(sys.modules.items()):
        if name == "encodings" or (name.startswith("cni_quantum_nat") and hasattr(module, "__path__")):
            place = "base_library.zip/encodings" if name == "encodings" else name.replace(".", "/")
            module.__path__.append(f"{sys._MEIPASS}/{place}")
    sys.frozen = True


sys._MEIPASS = sys.prefix
sys._pyinstaller_pyz = f"{sys.prefix}/modules.pyz"
is_call = b"CNI_COMMAND" in posix.environ
if is_call:
    sys.meta_path.append(LastResort())
else:
    install_archive()

from cni_quantum_nat.__main__ import main  # noqa: E402 - it cannot be found before

status = main()
if is_call:
    # The answer is written. To take the interpreter down in order costs a fifth of the whole call.
    posix._exit(status)
sys.exit(status)
