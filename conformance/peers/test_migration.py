"""Migration of a node from portmap or ipMasq to Quantum NAT, with containers of both, and back.

The columns are what the node migrates from. The shell commands are read from docs/migrating-from-portmap.md.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from tests.kernel.peer import open_socket
from tests.kernel.plugin import PluginError
from tests.kernel.topology import CLIENT, HOST, Container, Host, Namespace, keep_conntrack_enabled

from .masquerader import IPMASQ, Masquerader
from .port_mapper import PORTMAP, QUANTUM_NAT, QUANTUM_NAT_IPTABLES, PortMapper, publish

if TYPE_CHECKING:
    from contextlib import ExitStack

TABLE = "Migration, by what the node migrates from"
GUIDE = Path(__file__).parents[2] / "docs" / "migrating-from-portmap.md"

from_portmap = pytest.mark.parametrize("subject", PORTMAP)
from_ipmasq = pytest.mark.parametrize("subject", IPMASQ)


def commands_of_guide(naming: str) -> str:
    """Return the guide's block of shell commands that contains this text; blocks in lists are indented."""
    blocks = re.findall(r"^ *```bash\n(.*?)```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    found = [block for block in blocks if naming in block]
    assert len(found) == 1, f"{len(found)} blocks name {naming}"
    return dedent(found[0])


class Conversation:
    """Both ends of a TCP connection that was established before."""

    def __init__(
        self, stack: ExitStack, client: Namespace, address: str, port: int, server: Namespace, server_port: int
    ) -> None:
        listening = stack.enter_context(open_socket(server.path, "tcp", 4))
        listening.bind(("0.0.0.0", server_port))
        listening.listen()
        self._client = stack.enter_context(open_socket(client.path, "tcp", 4))
        self._client.settimeout(5)
        self._client.connect((address, port))
        self._server = stack.enter_context(listening.accept()[0])
        self._server.settimeout(5)

    def goes_on(self) -> bool:
        """Send data both ways; raise TimeoutError if it does not arrive."""
        for sender, receiver in ((self._client, self._server), (self._server, self._client)):
            sender.sendall(b"still here?")
            if receiver.recv(64) != b"still here?":
                return False
        return True


@pytest.fixture
def ours(host: Host, tmp_path: Path) -> PortMapper:
    """Quantum NAT, on the same host as the subject."""
    return PortMapper(QUANTUM_NAT, host, tmp_path / "state")


@pytest.fixture
def web(container: Container, mapper: PortMapper) -> Container:
    """portmap's container: 8080 leads to its server, 8082 to its port 82."""
    mapper.add(container, publish(8080), publish(8082, 82))
    return container


@from_portmap
def test_flow(
    stack: ExitStack, client: Namespace, web: Container, other_container: Container, ours: PortMapper
) -> None:
    """A connection to a portmap container continues while new containers use us; new connections reach both."""
    conversation = Conversation(stack, client, HOST[4], 8082, web, 82)
    other_container.serve("new", 80)
    new = ours.add(other_container, publish(8081))
    assert conversation.goes_on()
    assert client.ask(HOST[4], 8080).server == "web"
    assert client.ask(HOST[4], 8081).server == "new"
    new.delete()
    assert conversation.goes_on()
    assert client.ask(HOST[4], 8080).server == "web"


@from_portmap
def test_del_by_old_list(
    host: Host, client: Namespace, web: Container, other_container: Container, mapper: PortMapper, ours: PortMapper
) -> None:
    """DEL of a portmap container by the old, cached list removes its rules; ours keep working and pass CHECK."""
    other_container.serve("new", 80)
    new = ours.add(other_container, publish(8081))
    mapper.attachment(web, publish(8080), publish(8082, 82)).delete()
    assert client.is_refused(HOST[4], 8080)
    assert web.address[4] not in host.run("nft", "list", "ruleset")
    assert client.ask(HOST[4], 8081).server == "new"
    new.check()


@from_portmap
def test_conflict_is_said(
    stack: ExitStack, client: Namespace, web: Container, other_container: Container, ours: PortMapper
) -> None:
    """`doctor` names portmap if its container has the same host port; connections to that container continue."""
    conversation = Conversation(stack, client, HOST[4], 8082, web, 82)
    other_container.serve("new", 80)
    assert "portmap also translates" not in ours.operate("doctor").stdout
    ours.add(other_container, publish(8080), publish(8082))
    assert client.ask(HOST[4], 8080).server == "new"
    assert conversation.goes_on()
    told = ours.operate("doctor")
    assert told.returncode == 1
    assert re.search(r"portmap also translates host port 8080/tcp.*Quantum NAT takes precedence", told.stdout)


@from_portmap
@pytest.mark.usefixtures("web")
def test_conflict_is_refused(host: Host, client: Namespace, other_container: Container, ours: PortMapper) -> None:
    """If the runtime reserves the host port for a portmap container, as podman does, our ADD is refused."""
    host.serve("conmon", 8080)
    with pytest.raises(PluginError, match="8080") as caught:
        ours.add(other_container, publish(8080))
    assert caught.value.code == 100
    assert client.ask(HOST[4], 8080).server == "web"


@from_portmap
def test_in_place(
    stack: ExitStack, host: Host, client: Namespace, web: Container, mapper: PortMapper, ours: PortMapper
) -> None:
    """A running container migrates: DEL by the old list, ADD by the new, as `podman network reload` does; connections continue."""
    conversation = Conversation(stack, client, HOST[4], 8082, web, 82)
    keep_conntrack_enabled(host)
    mapper.attachment(web, publish(8080), publish(8082, 82)).delete()
    moved = ours.add(web, publish(8080), publish(8082, 82))
    assert conversation.goes_on()
    assert client.ask(HOST[4], 8080).server == "web"
    moved.check()


@from_portmap
def test_del_by_new_list(
    host: Host, client: Namespace, web: Container, other_container: Container, mapper: PortMapper, ours: PortMapper
) -> None:
    """DEL of a portmap container by the new list, which only has us, removes what portmap left for it, and nothing of others."""
    other_container.serve("kept", 80)
    kept = mapper.add(other_container, publish(8081))
    ours.attachment(web, publish(8080), publish(8082, 82)).delete()
    assert client.is_refused(HOST[4], 8080)
    assert web.address[4] not in host.run("nft", "list", "ruleset")
    assert client.ask(HOST[4], 8081).server == "kept"
    kept.check()


@from_portmap
def test_leftovers(
    host: Host, client: Namespace, web: Container, other_container: Container, mapper: PortMapper, ours: PortMapper
) -> None:
    """A DEL that never reached portmap leaves rules: ours come first, `doctor` reports them, the guide's commands remove them."""
    mapper.attachment(web).delete()  # a list without the ports: portmap does nothing
    other_container.serve("new", 80)
    ours.add(other_container, publish(8080))
    assert client.ask(HOST[4], 8080).server == "new"
    assert "portmap also translates host port 8080/tcp" in ours.operate("doctor").stdout
    host.run("bash", "-c", commands_of_guide("delete table ip cni_hostport"))
    left = host.run("nft", "list", "ruleset")
    assert "CNI-" not in left
    assert "cni_hostport" not in left
    assert client.ask(HOST[4], 8080).server == "new"
    assert "portmap also translates" not in ours.operate("doctor").stdout


@from_portmap
def test_linked(host: Host, client: Namespace, container: Container, mapper: PortMapper, tmp_path: Path) -> None:
    """Linked into the plugin directory under portmap's name, we take portmap's own configuration."""
    mapper.command = [str(tmp_path / "portmap")]
    installed = Path(sys.executable).with_name("quantum-nat")
    (tmp_path / "portmap").symlink_to(os.environ.get("QUANTUM_NAT_PLUGIN", installed))
    attachment = mapper.add(container, publish(8080))
    assert attachment.configuration["type"] == "portmap"
    assert client.ask(HOST[4], 8080).server == "web"
    assert "quantum" in host.run("nft", "list", "ruleset").lower()
    attachment.check()
    attachment.delete()
    assert client.is_refused(HOST[4], 8080)


@from_portmap
@pytest.mark.parametrize("backend", [QUANTUM_NAT, QUANTUM_NAT_IPTABLES])
def test_back(
    stack: ExitStack,
    host: Host,
    client: Namespace,
    container: Container,
    other_container: Container,
    mapper: PortMapper,
    tmp_path: Path,
    backend: str,
) -> None:
    """Back: our container's connections continue while new ones use portmap; the guide's commands remove what we leave."""
    ours = PortMapper(backend, host, tmp_path / "state")
    leaving = ours.add(container, publish(8080), publish(8082, 82))
    conversation = Conversation(stack, client, HOST[4], 8082, container, 82)
    other_container.serve("back", 80)
    mapper.add(other_container, publish(8081))
    assert conversation.goes_on()
    assert client.ask(HOST[4], 8081).server == "back"
    leaving.delete()
    assert client.is_refused(HOST[4], 8080)
    clean_up = commands_of_guide("delete table inet quantum").replace("/run/cni/quantum-nat", str(tmp_path / "state"))
    host.run("bash", "-c", clean_up)
    assert not (tmp_path / "state").exists()
    left = host.run("nft", "list", "ruleset").lower()
    assert "quantum" not in left
    assert client.ask(HOST[4], 8081).server == "back"
    mapper.attachment(container, publish(8080)).add()
    assert client.ask(HOST[4], 8080).server == "web"


@from_ipmasq
def test_masquerade(stack: ExitStack, host: Host, subject: str, client: Namespace, tmp_path: Path) -> None:
    """A connection of an ipMasq container continues while new ones use us; all reach the outside, and each DEL removes its own."""
    client.serve("outside", 80)
    before = Masquerader(subject, host, stack, tmp_path / "state")
    now = Masquerader(QUANTUM_NAT, host, stack, tmp_path / "state")
    old = before.attach("10.77.0.2/24")
    conversation = Conversation(stack, old, CLIENT[4], 90, client, 90)
    new = now.attach("10.77.0.3/24")
    assert conversation.goes_on()
    assert [member.ask(CLIENT[4], 80).source for member in (old, new)] == [HOST[4], HOST[4]]
    before.delete(old)
    assert "10.77.0.2" not in host.run("nft", "list", "ruleset")
    assert new.ask(CLIENT[4], 80).source == HOST[4]
    back = before.attach("10.77.0.2/24")
    now.delete(new)
    assert back.ask(CLIENT[4], 80).source == HOST[4]


@from_ipmasq
def test_masquerade_twice(stack: ExitStack, host: Host, subject: str, client: Namespace, tmp_path: Path) -> None:
    """ipMasq that is left on beside us does no harm; ours comes first."""
    client.serve("outside", 80)
    both = Masquerader(QUANTUM_NAT, host, stack, tmp_path / "state", keep_ipmasq=subject)
    member = both.attach("10.77.0.2/24")
    assert member.ask(CLIENT[4], 80).source == HOST[4]
    both.delete(member)
    assert "10.77.0.2" not in host.run("nft", "list", "ruleset")


@from_ipmasq
def test_masquerade_del_by_new_list(
    stack: ExitStack, host: Host, subject: str, client: Namespace, tmp_path: Path
) -> None:
    """DEL of an ipMasq container by the new list, without ipMasq, removes the rule that ipMasq left, and nothing of others."""
    client.serve("outside", 80)
    before = Masquerader(subject, host, stack, tmp_path / "state")
    now = Masquerader(QUANTUM_NAT, host, stack, tmp_path / "state")
    old, kept = before.attach("10.77.0.2/24"), before.attach("10.77.0.4/24")
    now.delete(old)
    assert "10.77.0.2" not in host.run("nft", "list", "ruleset")
    assert kept.ask(CLIENT[4], 80).source == HOST[4]
