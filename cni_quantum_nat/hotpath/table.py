"""The layout of table `inet quantum`: its name, its sets and maps, and the chains that packets enter by.

Everything that speaks of a set (the plan, the netlink encoding, the ruleset text) reads its fields here.
"""

from __future__ import annotations

TABLE = "quantum"

# Kinds of fields. Values in Python: Address, str (tcp), int, str (eth0), str (the chain jumped to).
ADDRESS4 = "ipv4_addr"
ADDRESS6 = "ipv6_addr"
PROTOCOL = "inet_proto"
PORT = "inet_service"
INTERFACE = "ifname"
CHAIN = "verdict"


class SetLayout:
    """A set, or with `data` a map. `purpose` is its comment in the ruleset."""

    __slots__ = ("counter", "data", "key", "name", "purpose")

    def __init__(
        self, name: str, key: tuple[str, ...], data: tuple[str, ...] = (), *, counter: bool = False, purpose: str
    ) -> None:
        self.name = name
        self.key = key
        self.data = data
        self.counter = counter
        self.purpose = purpose


def _layouts_of(family: int) -> list[SetLayout]:
    address = ADDRESS4 if family == 4 else ADDRESS6
    published = (address, PROTOCOL, PORT)
    endpoint = (address, PORT)
    return [
        SetLayout(
            f"host_ip_ports{family}",
            published,
            endpoint,
            counter=True,
            purpose="host address, protocol, host port -> container",
        ),
        SetLayout(
            f"host_ports{family}",
            (PROTOCOL, PORT),
            endpoint,
            counter=True,
            purpose="protocol, host port on any local address -> container",
        ),
        SetLayout(f"networks{family}", (address,), (CHAIN,), purpose="container -> the chain of its prefix length"),
        SetLayout(f"subnets{family}", (address, address), purpose="container, first address of its own subnet"),
        SetLayout(
            f"published{family}",
            published,
            purpose="container, protocol, host port whose neighbours and localhost are masqueraded",
        ),
        SetLayout(
            f"masquerade_all{family}",
            published,
            purpose="container, protocol, host port whose every client is masqueraded",
        ),
        SetLayout(
            f"loopback_only{family}", published, purpose="container, protocol, container port for this host alone"
        ),
        SetLayout(f"home{family}", (address, INTERFACE), purpose="container, interface that its neighbours come by"),
        SetLayout(
            f"masquerade{family}", (address,), counter=True, purpose="container, whatever interface it leaves by"
        ),
        SetLayout(
            f"masquerade_via{family}", (address, INTERFACE), counter=True, purpose="container, interface it leaves by"
        ),
        SetLayout(
            f"snat{family}",
            (address,),
            (address,),
            counter=True,
            purpose="container -> its source address outside",
        ),
        SetLayout(
            f"snat_via{family}",
            (address, INTERFACE),
            (address,),
            counter=True,
            purpose="container, interface it leaves by -> its source address there",
        ),
    ]


SETS = {layout.name: layout for family in (4, 6) for layout in _layouts_of(family)}

# The chains that CHECK looks at, with the number of rules in each and of jumps to it: what the kernel
# reports as `use`. A chain per prefix length has one user more for each container, so those are not here;
# they all jump to `own`, which counts them.
CHAIN_USE = {
    "guard": 2,
    "guard_forward": 1,
    "guard_new": 5,
    "prerouting": 1,
    "output": 1,
    "host_ports": 7,
    "postrouting": 2,
    "inbound": 12,
    "outbound4": 7,
    "outbound6": 7,
    "own": 327,
}


def prefix_chain(family: int, prefix_length: int) -> str:
    """Name the chain that compares with a subnet of this prefix length."""
    return f"subnet{family}_{prefix_length}"
