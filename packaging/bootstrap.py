"""Replaces PyInstaller's own bootstrap script: what every start of the frozen program runs first.

The hot path's modules come out of one file, already compiled and uncompressed (`quantum-nat.spec` makes it):
the archive's importer opens, seeks and inflates for each module, and importing it costs as much as all of them.
The first module that the hot path does not have brings that importer in, from a file of its own, and everything
works as PyInstaller means it to. Its own bootstrap also patches ctypes and looks for .egg directories, which nothing here needs.
"""

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

HOTPATH = "hotpath.marshal"
ARCHIVE_IMPORTER = "importer.marshal"


class BundleImporter:
    """Finds and loads the modules of a bundle: name -> (whether it is a package, its code)."""

    def __init__(self, bundle):
        descriptor = posix.open(sys._MEIPASS + "/" + bundle, posix.O_RDONLY | posix.O_CLOEXEC)
        content = posix.read(descriptor, posix.fstat(descriptor).st_size)
        posix.close(descriptor)
        self.code = marshal.loads(content)

    def find_spec(self, name, path=None, target=None):
        if name not in self.code:
            return None
        spec = ModuleSpec(name, self, is_package=self.code[name][0])
        if spec.submodule_search_locations is not None:
            # Where the archive's importer looks for what is not here.
            spec.submodule_search_locations.append(sys._MEIPASS + "/" + name.replace(".", "/"))
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self.code[module.__name__][1], module.__dict__)


class LastResort:
    """Asked last: makes way for PyInstaller's importer at the first module that nobody else has."""

    def find_spec(self, name, path=None, target=None):
        sys.meta_path.remove(self)
        install_archive()
        return next((spec for finder in sys.meta_path if (spec := finder.find_spec(name, path, target))), None)


def install_archive():
    sys.meta_path.insert(0, BundleImporter(ARCHIVE_IMPORTER))
    import pyimod02_importers

    pyimod02_importers.install()
    sys.path_importer_cache.clear()  # directories that were looked at without it
    sys.frozen = True


if b"CNI_COMMAND" in posix.environ:
    sys.meta_path.insert(0, BundleImporter(HOTPATH))
    sys.meta_path.append(LastResort())
else:
    install_archive()
