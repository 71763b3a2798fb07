"""SCTP through the kernel's own sockets. Elsewhere the tests send INITs by hand, since few kernels have SCTP, and all track it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from .peer import inside
from .plugin import Plugin, publish
from .topology import CLIENT, HOST, Container, Namespace

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.frozen, pytest.mark.behaviour, pytest.mark.parametrize("family", [4, 6])]
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_TIMEOUT_S = 5


def sctp_socket(namespace: Path, family: int) -> socket.socket:
    try:
        with inside(namespace):
            opened = socket.socket(_FAMILIES[family], socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    except OSError:
        pytest.skip("the kernel has no SCTP sockets")
    opened.settimeout(_TIMEOUT_S)
    return opened


def test_an_association_with_a_published_port(
    client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    with sctp_socket(container.path, family) as server, sctp_socket(client.path, family) as caller:
        server.bind((container.address[family], 3868))
        server.listen()
        attachment = plugin.add(container, publish(3868, 3868, protocol="sctp"))
        caller.connect((HOST[family], 3868))
        accepted, peer = server.accept()
        with accepted:
            assert peer[0] == caller.getsockname()[0]
            for text in (b"there", b"again"):
                caller.sendall(text)
                assert accepted.recv(64) == text
                accepted.sendall(text)
                assert caller.recv(64) == text
        attachment.delete()
    with sctp_socket(client.path, family) as late, pytest.raises(OSError, match=r"refused|timed out"):
        late.connect((HOST[family], 3868))


def test_an_association_of_a_container_is_masqueraded(
    client: Namespace, container: Container, plugin: Plugin, family: int
) -> None:
    with sctp_socket(client.path, family) as server, sctp_socket(container.path, family) as caller:
        server.bind(("::" if family == 6 else "0.0.0.0", 3868))
        server.listen()
        plugin.add(container)
        caller.bind((container.address[family], 0))
        caller.connect((CLIENT[family], 3868))
        accepted, peer = server.accept()
        with accepted:
            assert peer[0] == HOST[family]
            caller.sendall(b"out")
            assert accepted.recv(64) == b"out"
