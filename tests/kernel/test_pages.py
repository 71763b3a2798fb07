"""Every block of shell commands in the documentation works: it is run here, or by the file named in ELSEWHERE."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from .plugin import publish

if TYPE_CHECKING:
    from .plugin import Plugin
    from .topology import Container, Host

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A block of commands on a page."""

    page: str
    commands: str

    @property
    def beginning(self) -> str:
        return self.commands.partition("\n")[0]


class Elsewhere(NamedTuple):
    """A file that runs a block, or its equivalent, and words that must be in that file."""

    page: str
    beginning: str
    file: str
    words: str


K3S = "/var/lib/rancher/k3s/agent/etc"
BLOCKS = [
    Block(str(page.relative_to(ROOT)), commands)
    for page in PAGES
    for commands in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
]
ELSEWHERE = [
    Elsewhere("README.md", "packaging/quickstart", "tests/run", "packaging/quickstart"),
    Elsewhere("README.md", "tests/run", ".ci/run", "readme_command"),
    Elsewhere("CONTRIBUTING.md", "packaging/check", ".ci/run", "packaging/check"),
    Elsewhere("docs/development/README.md", "tests/run tests/kernel", "tests/run", 'run_pytest "$@"'),
    Elsewhere("docs/getting-started.md", "packaging/build", "tests/run", "packaging/build"),
    Elsewhere("docs/getting-started.md", "export CNI_PATH", "packaging/quickstart", "cni add"),
    Elsewhere("docs/getting-started.md", "kill $(ip netns pids web)", "packaging/quickstart", "cni del"),
    Elsewhere("docs/kubernetes.md", "kubectl apply", "conformance/kubernetes", "build packaging/kubernetes/base"),
    Elsewhere(
        "docs/kubernetes.md", "kubectl -n kube-system", "packaging/kubernetes/base/daemonset.yaml", "name: quantum-nat"
    ),
    Elsewhere("docs/runtimes/k3s.md", "helm install", "conformance/kubernetes", "packaging/kubernetes/chart"),
    Elsewhere(
        "docs/runtimes/containerd.md", "systemctl enable", "tests/unit/project/test_service.py", "quantum-nat-gc"
    ),
    Elsewhere("docs/metrics.md", "quantum-nat metrics --listen", "tests/kernel/test_exporter.py", '"--listen"'),
    Elsewhere("docs/migrating-from-portmap.md", "nft delete table", "conformance/peers/test_migration.py", "```bash"),
    Elsewhere(
        "docs/operations.md", "systemctl enable", "tests/unit/project/test_service.py", 'DIRECTORY.glob("*.service")'
    ),
    Elsewhere(
        "docs/development/performance.md", "conformance/bench", "tests/unit/project/test_benchmark.py", "benchmark"
    ),
    Elsewhere("docs/development/performance.md", "strace -f", "conformance/benchmark/costs.py", "strace"),
    Elsewhere("docs/development/reliability.md", "conformance/faults", "tests/kernel/test_faults.py", "faults_driver"),
]


def elsewhere(block: Block) -> list[Elsewhere]:
    return [place for place in ELSEWHERE if place.page == block.page and block.beginning.startswith(place.beginning)]


@pytest.mark.parametrize("place", ELSEWHERE, ids=lambda place: f"{place.page}: {place.beginning}")
def test_blocks_run_elsewhere_are_on_their_page_and_run_there(place: Elsewhere) -> None:
    assert [block for block in BLOCKS if place in elsewhere(block)]
    assert place.words in (ROOT / place.file).read_text()


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if not elsewhere(block)], ids=lambda block: f"{block.page}: {block.beginning}"
)
def test_commands_on_the_pages_work(
    block: Block, host: Host, container: Container, plugin: Plugin, tmp_path: Path
) -> None:
    plugin.add(container, publish(8080))
    command = shlex.join([*plugin.command, "--state-dir", str(plugin.state_directory)])
    (tmp_path / "quantum-nat").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    (tmp_path / "quantum-nat").chmod(0o755)
    (tmp_path / "layers").mkdir()
    script = f"""
set -euo pipefail
mount -t tmpfs none {tmp_path}/layers
for place in /etc /usr/local /var/lib; do  # changes there are discarded with this mount namespace
    mkdir -p {tmp_path}/layers$place/{{upper,work}}
    mount -t overlay none -o lowerdir=$place,upperdir={tmp_path}/layers$place/upper,workdir={tmp_path}/layers$place/work $place
done
mkdir -p /etc/cni/net.d /etc/bash_completion.d /usr/local/share/zsh/site-functions /etc/fish/completions /var/lib/prometheus/node-exporter
cp {ROOT}/docs/conflists/podman.conflist /etc/cni/net.d/10-containers.conflist
mkdir -p {K3S}/containerd {K3S}/cni/net.d
echo 'bin_dir = "/var/lib/rancher/k3s/data/cni"' >{K3S}/containerd/config.toml
cp {ROOT}/docs/conflists/podman.conflist {K3S}/cni/net.d/10-flannel.conflist
PATH={tmp_path}:$PATH
{block.commands}"""
    line = ["nsenter", f"--net={host.path}", "unshare", "--mount", "bash", "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
