"""What the frozen program has in it that others wrote: Debian's libraries, Python's packages, and what those have in them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PyInstaller.archive.readers import ZlibArchiveReader

if TYPE_CHECKING:
    from collections.abc import Iterable

OURS = "cni-quantum-nat"
# In the program itself: the interpreter, the libraries that are linked into it, PyInstaller's importer.
LINKED_IN = ("libpython3.11-dev", "libexpat1-dev", "zlib1g-dev", "libc6-dev")
IMPORTER = "pyinstaller"
_COMMON_LICENCE = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9][A-Za-z0-9.-]*[A-Za-z0-9])")
_DEP5_LICENCE = re.compile(r"^License: *(\S.*)$", re.MULTILINE)


class NoLicence(Exception):
    """A component's licence cannot be found, and so it must not be shipped."""


@dataclass
class Component:
    """Something bundled, its licence, and the files that it is in; `parts` are in the form of CycloneDX."""

    name: str
    version: str
    purl: str
    licence: str
    texts: list[Path]
    is_expression: bool = False
    files: dict[str, str] = field(default_factory=dict)  # name: SHA-256
    parts: list[dict[str, Any]] = field(default_factory=list)


def components(frozen: Path) -> list[Component]:
    """Return all that is bundled in dist/quantum-nat, in order of their names."""
    (internal,) = frozen.glob("_internal-*")
    found = [*_of_debian(internal), *_of_python(internal)]
    return sorted(found, key=lambda component: component.name)


def _of_debian(internal: Path) -> Iterable[Component]:
    packages: dict[str, dict[str, str]] = {package: {} for package in LINKED_IN}
    for library in sorted((*internal.glob("lib*.so*"), *internal.glob("ld-*.so*"))):
        packages.setdefault(_owner(library.name), {})[library.name] = hashlib.sha256(library.read_bytes()).hexdigest()
    for package, files in packages.items():
        shown = _printed("dpkg-query", "-W", "-f", "${Version} ${Architecture}\n", package)
        version, architecture = shown.splitlines()[0].split()
        text = Path("/usr/share/doc", package, "copyright")
        if not text.is_file():
            raise NoLicence(f"Debian's package {package} has no {text}")
        purl = f"pkg:deb/debian/{package}@{version}?arch={architecture}"
        licences = dict.fromkeys(_DEP5_LICENCE.findall(text.read_text()))
        yield Component(package, version, purl, ", ".join(licences), [text], files=files)


def _owner(library: str) -> str:
    """Return the installed package that a library comes from."""
    lines = _printed("dpkg-query", "-S", f"*/{library}").splitlines()
    owners = {line.partition(":")[0] for line in lines if line.rpartition("/")[2] == library}
    if len(owners) != 1:
        raise NoLicence(f"{library} is of {len(owners)} packages: {', '.join(sorted(owners))}")
    return owners.pop()


def _of_python(internal: Path) -> Iterable[Component]:
    modules = {name.partition(".")[0] for name in ZlibArchiveReader(str(internal / "modules.pyz")).toc}
    names = importlib.metadata.packages_distributions()
    found = {_normalised(names[module][0]) for module in modules if module in names}
    for name in sorted((found | {IMPORTER}) - {OURS}):
        distribution = importlib.metadata.distribution(name)
        texts = [
            Path(str(distribution.locate_file(file))) for file in distribution.files or () if _is_licence(file.name)
        ]
        if not texts:
            raise NoLicence(f"{name} {distribution.version} brings no licence's text")
        texts.sort()
        expression = distribution.metadata.get("License-Expression", "")
        yield Component(
            name,
            distribution.version,
            f"pkg:pypi/{name}@{distribution.version}",
            expression or distribution.metadata.get("License", "").partition("\n")[0],
            texts,
            is_expression=bool(expression),
            parts=_parts(distribution),
        )


def _parts(distribution: importlib.metadata.Distribution) -> list[dict[str, Any]]:
    """Return what a wheel says that it has in it, as pydantic_core does of Rust's crates."""
    boms = [file for file in distribution.files or () if file.parent.name == "sboms" and file.suffix == ".json"]
    return [
        {key: part[key] for key in ("type", "name", "version", "purl", "licenses", "hashes") if key in part}
        for bom in boms
        for part in json.loads(Path(str(distribution.locate_file(bom))).read_text()).get("components", [])
    ]


def _is_licence(name: str) -> bool:
    return name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS"))


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def write_licences(found: list[Component], target: Path) -> None:
    """Write the licences' texts: a file for each component, and those that Debian's files refer to."""
    target.mkdir(parents=True)
    common: set[str] = set()
    for component in found:
        content = "\n\n".join(text.read_text(errors="replace").strip() for text in component.texts)
        common.update(_COMMON_LICENCE.findall(content))
        (target / f"{component.name}.txt").write_text(f"{component.name} {component.version}\n\n{content}\n")
    for name in sorted(common):
        source = Path("/usr/share/common-licenses", name)
        if not source.is_file():
            raise NoLicence(f"{source} is referred to, and is not there")
        (target / f"common-{name}.txt").write_text(source.read_text())
