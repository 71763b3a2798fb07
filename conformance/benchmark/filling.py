"""Fill a host with containers in bulk, with the same rules that the contender would make.

The contender attaches one container. Its rules are the pattern for copies with other names, addresses and ports, which are
loaded in bulk. To check the copies, the contender must remove one of them completely.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from tests.kernel.topology import Namespace

from .contenders import (
    INTERFACE,
    NETAVARK_IPTABLES,
    NETAVARK_NFTABLES,
    NETAVARKS,
    NETWORK,
    PLAIN_BRIDGE,
    CallFailed,
    Contender,
    Invocation,
    Mapping,
    Plugin,
    Request,
    masquerade_of,
    portmap_of,
    run_in,
)
from .hosts import SAMPLE_PORT, Host, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_IPTABLES = (portmap_of("iptables"), masquerade_of("iptables"), NETAVARK_IPTABLES)
_NFTABLES = (portmap_of("nftables"), masquerade_of("nftables"), NETAVARK_NFTABLES)
_AT_ONCE = 1000  # iptables-restore's time grows with the square of the number of chains in a transaction
_ATTACHMENTS = "state/attachments"
_PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def fill(host: Host) -> None:
    """Add the host's number of containers; raise CallFailed if the contender does not accept them as its own."""
    if host.containers == 0 or host.contender.name == PLAIN_BRIDGE:
        return
    kind, sample = _kind_of(host.contender), host.sample()
    if host.contender.name in NETAVARKS:
        _add_resident(host)
    host.call("ADD", sample)
    pattern = [line for line in kind.read(host) if mentions(line, sample)]
    host.call("DEL", sample)
    requests = [host.filled(number) for number in range(host.containers + 1)]
    kind.load(host, pattern, requests)
    _try_one(host, requests[-1])


def tokens(request: Request) -> list[str]:
    """Return what identifies a container's rules: its ID, address and port, and names derived from them.

    Names of chains and comments contain parts of SHA-512 sums, as in containernetworking/plugins v1.9.1.
    """
    of_network = hashlib.sha512((NETWORK + request.container_id).encode()).hexdigest()
    of_interface = hashlib.sha512(f"{INTERFACE}:{request.container_id}".encode()).hexdigest()
    port = str(request.mappings[0].host_port)
    return [request.container_id, request.address, port, of_network[:24], of_network[:21], of_interface[:16]]


def mentions(line: str, request: Request) -> bool:
    """Return whether a line belongs to a container."""
    return bool(_any_of(tokens(request)).search(line))


def copy(pattern: list[str], sample: Request, requests: Iterable[Request]) -> Iterator[str]:
    """Yield the pattern's lines for each of the requests."""
    expression = _any_of(tokens(sample))
    text = "\n".join(pattern)
    for request in requests:
        words = dict(zip(tokens(sample), tokens(request), strict=True))
        yield expression.sub(lambda found, words=words: words[found[0]], text)  # type: ignore[misc]


def _any_of(words: list[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![0-9A-Za-z.])(?:{'|'.join(map(re.escape, words))})(?![0-9A-Za-z.])")


class _Iptables:
    """Rules and chains of the nat table, as iptables-save prints them."""

    def read(self, host: Host) -> list[str]:
        return host.namespace.run("iptables-save", "-t", "nat").splitlines()

    def load(self, host: Host, pattern: list[str], requests: list[Request]) -> None:
        for at in range(0, len(requests), _AT_ONCE):
            self._load_some(host, pattern, requests[at : at + _AT_ONCE])

    def _load_some(self, host: Host, pattern: list[str], requests: list[Request]) -> None:
        lines = "\n".join(copy(pattern, host.sample(), requests)).splitlines()
        chains = [line for line in lines if line.startswith(":")]
        rules = [line for line in lines if line.startswith("-A")]
        text = "\n".join(["*nat", *chains, *rules, "COMMIT", ""])
        run_in(host.namespace.path, Invocation(("iptables-restore", "--noflush"), text, _PATH))

    trace = read


class _Nftables:
    """Rules with their table and chain, as commands for `nft -f`."""

    def read(self, host: Host) -> list[str]:
        return list(rules_of(host.namespace.run("nft", "list", "ruleset")))

    def load(self, host: Host, pattern: list[str], requests: list[Request]) -> None:
        text = "\n".join(copy(pattern, host.sample(), requests)) + "\n"
        run_in(host.namespace.path, Invocation(("nft", "-f", "-"), text, _PATH))

    trace = read


class _Records:
    """Our records, one for each container, from which `reconcile` makes the elements."""

    def read(self, host: Host) -> list[str]:
        return [path.read_text() for path in (host.private / _ATTACHMENTS).glob("*/*.json")]

    def load(self, host: Host, pattern: list[str], requests: list[Request]) -> None:
        for request, record in zip(requests, copy(pattern, host.sample(), requests), strict=True):
            directory = host.private / _ATTACHMENTS / request.container_id
            directory.mkdir(mode=0o700)
            (directory / f"{NETWORK}:{INTERFACE}.json").write_text(record)
        reconcile(host)

    def trace(self, host: Host) -> list[str]:
        return [*host.namespace.run("nft", "list", "table", "inet", "quantum").splitlines(), *self.read(host)]


def _kind_of(contender: Contender) -> _Iptables | _Nftables | _Records:
    if contender.name in _IPTABLES:
        return _Iptables()
    return _Nftables() if contender.name in _NFTABLES else _Records()


def reconcile(host: Host) -> float:
    """Run `quantum-nat reconcile`; return the milliseconds."""
    assert isinstance(host.contender, Plugin)
    command = (host.contender.program, "--state-dir", str(host.private / "state"), "reconcile", "--json")
    return run_in(host.namespace.path, Invocation(command, "", _PATH))


def rules_of(listing: str) -> Iterator[str]:
    """Yield the rules of `nft list ruleset`, as commands that add them."""
    table = chain = ""
    for line in map(str.strip, listing.splitlines()):
        words = line.split()
        if line.startswith("table "):
            table = f"{words[1]} {words[2]}"
        elif line.startswith("chain "):
            chain = words[1]
        elif line == "}":
            chain = ""
        elif chain and not line.startswith(("type ", "comment ")) and line:
            yield f"add rule {table} {chain} {line}"


def _try_one(host: Host, request: Request) -> None:
    """Let the contender remove a copy; raise CallFailed if anything of it remains."""
    kind = _kind_of(host.contender)
    if not any(mentions(line, request) for line in kind.trace(host)):
        raise CallFailed(f"{host.contender.name}: container {request.container_id} was not loaded")
    if host.contender.makes_interface:
        host.container.ip(
            f"link add {INTERFACE} type bridge",
            f"address add {request.network} dev {INTERFACE}",
            f"link set {INTERFACE} up",
        )
    host.call("DEL", request)
    left = [line for line in kind.trace(host) if mentions(line, request)]
    if left:
        raise CallFailed(f"{host.contender.name} does not accept the loaded copies; DEL left {left[0]}")


def _add_resident(host: Host) -> None:
    """Attach a container that stays: netavark removes the whole network with its last container."""
    resident = Namespace("resident", host.stack)
    mapping = Mapping(SAMPLE_PORT - 1)
    host.call("ADD", Request(name_of("resident"), "10.88.0.8", (mapping,), resident.path))
