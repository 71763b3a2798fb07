"""Sysctls below /proc/sys/net, with undo.

A pod's start waits for this module.
"""

from __future__ import annotations

import posix

from ..model.errors import HOST_SETTING_REFUSED, CniError
from .routes import add_loopback_address, container_interface_or_none, remove_loopback_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..model.addresses import Address

_NET = "/proc/sys/net"
_FORWARDING = {4: f"{_NET}/ipv4/ip_forward", 6: f"{_NET}/ipv6/conf/all/forwarding"}


class Sysctls:
    """Changes sysctls and remembers their previous values, so that a failed ADD can restore them."""

    __slots__ = ("_undo",)

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def forwards(self, family: int) -> bool:
        """Return whether the host forwards packets of this family."""
        return _read(_FORWARDING[family]) == "1"

    def enable_forwarding(self, family: int, container_addresses: list[Address]) -> None:
        """Enable forwarding for this family.

        With forwarding on, an interface with `accept_ra` 1 ignores router advertisements, and the host would lose its default
        route; 2 keeps it. Interfaces towards containers keep 1: a container must not become the host's router.
        """
        if family == 6:
            towards_containers = {container_interface_or_none(address) for address in container_addresses}
            for interface in set(posix.listdir(f"{_NET}/ipv6/conf")) - towards_containers - {"all", "default", "lo"}:
                accept_ra = f"{_NET}/ipv6/conf/{interface}/accept_ra"
                try:
                    if _read(accept_ra) == "1":
                        self._set(accept_ra, "2")
                except _NoSuchSysctl:
                    pass  # the interface has gone since they were listed
        self._set(_FORWARDING[family], "1")

    def enable_route_localnet(self, interface: str) -> None:
        """Allow packets from 127.0.0.0/8 to be routed to this interface; the `guard` chain drops those from outside."""
        self._set(f"{_NET}/ipv4/conf/{interface}/route_localnet", "1")

    def enable_ipv6_localhost(self, alias: Address) -> None:
        """Add the alias of ::1 to the host's addresses; the `guard` chain keeps it private to the host."""
        if add_loopback_address(alias):
            self._undo.append(lambda: remove_loopback_address(alias))

    def restore(self) -> None:
        """Restore the previous values, in reverse order."""
        while self._undo:
            try:
                self._undo.pop()()
            except _NoSuchSysctl:
                pass  # the interface has gone, and its sysctls with it

    def _set(self, path: str, value: str) -> None:
        before = _read(path)
        if before == value:
            return
        _write(path, value)
        self._undo.append(lambda: _write(path, before))


class _NoSuchSysctl(CniError):
    """The sysctl does not exist: of an interface that has gone, or of a module that is not loaded."""


def _failure(error: OSError) -> type[CniError]:
    return _NoSuchSysctl if isinstance(error, FileNotFoundError) else CniError


def _read(path: str, most_bytes: int = 64) -> str:
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        raise _failure(error)(
            HOST_SETTING_REFUSED,
            f"cannot read {path}: {posix.strerror(error.errno or 0)}",
            "Make /proc/sys/net readable for the plugin.",
        ) from error
    try:
        return posix.read(descriptor, most_bytes).decode().strip()
    finally:
        posix.close(descriptor)


def read_number(path: str) -> int:
    """Read a number from a sysctl or counter; 0 if the kernel lacks it."""
    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return int(posix.read(descriptor, 64))
    finally:
        posix.close(descriptor)


def read_port_list(path: str) -> set[int]:
    """Read a sysctl with a list of ports and port ranges, such as 8080,9148-9150."""
    ports: set[int] = set()
    for part in filter(None, _read(path, 1 << 16).split(",")):
        first, _, last = part.partition("-")
        ports.update(range(int(first), int(last or first) + 1))
    return ports


def _write(path: str, value: str) -> None:
    try:
        descriptor = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(descriptor, value.encode())
        finally:
            posix.close(descriptor)
    except OSError as error:
        raise _failure(error)(
            HOST_SETTING_REFUSED,
            f"cannot set {path} to {value}: {posix.strerror(error.errno or 0)}",
            f"Run `sysctl -w {path.removeprefix('/proc/sys/')}={value}` on the host first, or make /proc/sys/net writable for "
            'the plugin. With "ipForwarding": false it leaves forwarding alone.',
        ) from error
