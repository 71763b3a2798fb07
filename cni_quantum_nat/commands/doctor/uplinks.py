"""Check hosts with several uplinks: replies of published ports leave by the one that a connection arrived at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...model.addresses import Address
from .finding import Finding
from .journeys import OUTSIDE
from .network import read_rule_marks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .network import DefaultRoute, Routing
    from .paths import Path
    from .snapshot import Snapshot

_FIRST_MARK, _FIRST_TABLE = 0x100, 1000
_AND = " && "


def check_uplinks(host: Snapshot) -> Iterator[Finding]:
    """Find uplinks whose connections to published ports are answered by another one."""
    strays: dict[str, list[DefaultRoute]] = {}
    ways_out: dict[str, str] = {}
    with host.paths.routes() as routing:
        for family in (4, 6):
            names = host.external[family]
            path = _published(host, family)
            if len(names) < 2 or path is None or _routes_by_mark(host, family):
                continue
            taken = _interface_of_replies(host, path, family, routing)
            for route in host.default_routes:
                name = host.paths.links[route.number].name
                if route.family == family and taken not in ("", name) and _is_published_on(host, family, name):
                    strays.setdefault(name, []).append(route)
                    ways_out[name] = taken
    for name, routes in strays.items():
        yield Finding(
            f"uplink {name}",
            f"replies to connections that arrive here for published ports leave via {ways_out[name]}; whether the network there lets them "
            "pass is not visible from here",
            _AND.join(_commands(name, routes)),
            certain=False,
        )


def _routes_by_mark(host: Snapshot, family: int) -> bool:
    """Whether packets get marks from filters that routing rules ask for: somebody routes replies by connection, as the remedy does."""
    return any(mark & host.foreign.possible_mark == mark for mark in read_rule_marks(family))


def _published(host: Snapshot, family: int) -> Path | None:
    """Return the path of a container with a port that is reached from outside, None if there is none."""
    found = {a.id for a, mapping, of in host.published() if of == family and not mapping.on_loopback_only}
    return next((path for path in host.paths.all if path.attachment.id in found and path.is_ready), None)


def _is_published_on(host: Snapshot, family: int, name: str) -> bool:
    """Whether any port is reached by an interface, as far as publishOn says."""
    filters = (a.inbound.filters_of(mapping)[0] for a, mapping, of in host.published() if of == family)
    return any(not interfaces or name in interfaces for interfaces in filters)


def _interface_of_replies(host: Snapshot, path: Path, family: int, routing: Routing) -> str:
    """Return where the kernel sends what a container sends to the outside, empty if it refuses."""
    endpoint = path.attachment.published_endpoint(family)
    if endpoint is None or path.home is None:
        return ""
    answer = routing.look_up(Address.parse(OUTSIDE[family]), endpoint.address, path.home.number)
    return host.paths.links[answer.outgoing].name if answer.outgoing in host.paths.links else ""


def _commands(name: str, routes: list[DefaultRoute]) -> Iterator[str]:
    """Yield commands that mark connections that arrive at an uplink, and route their replies there."""
    number = routes[0].number
    mark, table = hex(_FIRST_MARK + number), _FIRST_TABLE + number
    yield (
        "nft 'add table inet uplinks; add chain inet uplinks marks { type filter hook prerouting priority mangle; }; "
        f'add rule inet uplinks marks iifname "{name}" ct state new ct mark set {mark}; '
        f"add rule inet uplinks marks ct direction reply ct mark {mark} meta mark set {mark}'"
    )
    for family, ip in ((4, "ip"), (6, "ip -6")):
        of_family = [route for route in routes if route.family == family]
        if of_family:
            via = f"via {of_family[0].gateway} " if of_family[0].gateway else ""
            yield f"{ip} route replace default {via}dev {name} table {table}"
            yield f"{ip} rule add fwmark {mark} lookup {table}"
