"""Writes an image as an archive in the OCI layout, without a daemon: oci.py TARGET NAME CONFIGURATION ARCHITECTURE=LAYER[,LAYER...]...

CONFIGURATION is JSON, the specification's "config" (entry point, labels). A LAYER is a tar archive. Of several architectures, the image is an
index. The bytes depend on the arguments, on the layers, and on SOURCE_DATE_EPOCH alone.
"""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

_TYPE = "application/vnd.oci.image"
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")  # what ctr and podman read


class Archive:
    """A tar archive in the OCI layout, to which blobs are added; a blob that is there already is not added again."""

    def __init__(self, tar: tarfile.TarFile, seconds: int) -> None:
        self._tar = tar
        self._seconds = seconds
        self._there: set[str] = set()

    def add_blob(self, kind: str, content: bytes) -> dict[str, Any]:
        """Add a blob, named by its digest, and return its descriptor."""
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._there:
            self._there.add(digest)
            self.add(f"blobs/sha256/{digest}", content)
        return {"mediaType": f"{_TYPE}.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    def add(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        entry.mtime = self._seconds
        self._tar.addfile(entry, io.BytesIO(content))

    def add_image(self, architecture: str, layers: list[Path], config: dict[str, Any]) -> dict[str, Any]:
        """Add the manifest, configuration and layers for one architecture, and return the manifest's descriptor."""
        contents = [layer.read_bytes() for layer in layers]
        configuration = {
            "created": dt.datetime.fromtimestamp(self._seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in contents],
            },
        }
        manifest = _document(
            "manifest",
            config=self.add_blob("config.v1+json", _json(configuration)),
            layers=[self.add_blob("layer.v1.tar+gzip", gzip.compress(content, 9, mtime=0)) for content in contents],
        )
        descriptor = self.add_blob("manifest.v1+json", _json(manifest))
        return {**descriptor, "platform": {"architecture": architecture, "os": "linux"}}


def _document(kind: str, **content: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": f"{_TYPE}.{kind}.v1+json", **content}


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()


def main(target: str, name: str, configuration: str, *images: str) -> None:
    """Write the archive."""
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        archive = Archive(tar, int(os.environ.get("SOURCE_DATE_EPOCH", "0")))
        manifests = []
        for image in images:
            architecture, layers = image.split("=")
            paths = [Path(layer) for layer in layers.split(",")]
            manifests.append(archive.add_image(architecture, paths, json.loads(configuration)))
        if len(manifests) == 1:
            described = manifests[0]
        else:
            described = archive.add_blob("index.v1+json", _json(_document("index", manifests=manifests)))
        described["annotations"] = dict.fromkeys(_NAMES, name)
        archive.add("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        archive.add("index.json", _json(_document("index", manifests=[described])))


if __name__ == "__main__":
    main(*sys.argv[1:])
