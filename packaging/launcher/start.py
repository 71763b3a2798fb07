"""What the plugin runs: a runtime's call, as far as its own modules go. The full program does what else there is.

A call that needs a module which only the full program has is unwound, which undoes what it changed, as after any failure. The full program then
begins it again, with the same standard input, and under the lock that was had: no other call comes in between.
"""

import posix
import sys

from cni_quantum_nat.cni import entry
from cni_quantum_nat.model.errors import IO_FAILURE, CniError, NeedsFullProgram
from cni_quantum_nat.state.lock import held

PROGRAM = b"quantum-nat-full"


class Finder:
    """Asked last: no other module is here."""

    def find_spec(self, name, path=None, target=None):
        # Whoever unwinds the call closes the lock's descriptor; flock(2) holds as long as one of its duplicates is open.
        raise NeedsFullProgram(name, [posix.dup(descriptor) for descriptor in held])


sys.meta_path[2:] = [
    Finder()
]  # after those of built-in and frozen modules, and in place of the one that looks into directories


def load():
    """Import what a call imports, for the snapshot to have it."""
    import _imp

    for name in _imp._frozen_module_names():
        if name.startswith("cni_quantum_nat"):
            __import__(name)


def run(loader, arguments):
    """Run what the program was started for; does not return."""
    if b"CNI_COMMAND" in posix.environ:
        posix._exit(call(loader, arguments))
    try:
        run_full(loader, arguments)
    except CniError as error:
        posix.write(2, f"quantum-nat: {error.message}\n{error.details}\n".encode())
        posix._exit(1)


def call(loader, arguments):
    """Answer a runtime's call, and return the exit status."""
    from cni_quantum_nat.__main__ import main

    try:
        return main()
    except NeedsFullProgram as needed:
        try:
            hand_on(needed)
            run_full(loader, arguments)
        except CniError as error:
            return entry.refuse(error, needed.version)


def hand_on(needed):
    """Let the program that comes in this one's place have the request on its standard input, and the lock; CniError(5) when it cannot."""
    try:
        request = posix.memfd_create("request")
        left = memoryview(needed.request)
        while left:
            left = left[posix.write(request, left) :]
        posix.lseek(request, 0, 0)
        posix.dup2(request, 0)
    except OSError as error:
        raise CniError(
            IO_FAILURE, f"cannot hand the request on to the full program: {error.strerror}", "Try again."
        ) from None
    for descriptor in needed.locks:
        posix.set_inheritable(descriptor, True)
        posix.putenv(b"QUANTUM_NAT_LOCK", str(descriptor).encode())


def run_full(loader, arguments):
    """Execute the full program in this one's place, by the loader beside it; CniError(5) when it cannot be."""
    own = posix.readlink(b"/proc/self/exe")
    loader = own.rpartition(b"/")[0] + b"/" + loader
    directory = loader.rpartition(b"/")[0]
    for variable in (b"LD_PRELOAD", b"LD_AUDIT"):
        posix.unsetenv(variable)  # libraries for the host's C library
    options = [b"--inhibit-cache", b"--library-path", directory, b"--argv0", arguments[0]]
    try:
        posix.execv(loader, [loader, *options, directory + b"/" + PROGRAM, *arguments[1:]])
    except OSError as error:
        raise CniError(
            IO_FAILURE,
            f"cannot start {loader.decode(errors='replace')}: {error.strerror}",
            "quantum-nat needs the directory that it was installed in. Reinstall it; if this is a copy, replace it by a link: "
            f"ln -sf /usr/lib/quantum-nat/quantum-nat {own.decode(errors='replace')}",
        ) from None
