"""What an upstream holds: repositories with blobs, manifests, tags and referrers, changed by a test while it is served.

``answers`` reads it for every request. Nothing is checked on the way in: an upstream that holds nonsense, or tags what
it does not hold, is a test's good right. A huge blob is generated as it is read and costs one pattern of memory.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sluice.oci.content import Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.mediatype import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST

PATTERN_BYTES = 1024 * 1024


class Octets(Protocol):
    """Bytes that can be read anywhere, in memory or not."""

    @property
    def size(self) -> int:
        """Whole length in bytes."""
        ...

    def read(self, offset: int, length: int) -> memoryview:
        """At least one and up to ``length`` bytes from ``offset``, which lies before the end."""
        ...


class HeldBlob(Octets, Protocol):
    """A blob as an upstream holds it."""

    @property
    def digest(self) -> Digest:
        """The name that it is served under."""
        ...


@dataclass(frozen=True, slots=True)
class GivenOctets:
    """Bytes in memory; ``digest`` is computed when it is asked for."""

    data: bytes

    @property
    def size(self) -> int:
        """Whole length in bytes."""
        return len(self.data)

    @property
    def digest(self) -> Digest:
        """Of the bytes."""
        return Digest.of(self.data)

    def read(self, offset: int, length: int) -> memoryview:
        """Up to ``length`` bytes from ``offset``."""
        return memoryview(self.data)[offset : offset + length]


class GeneratedBlob:
    """A blob of any size: a pattern of 1 MiB, made from ``seed``, again and again.

    ``declared`` is the digest to serve it under without computing it, true or not; otherwise it is computed when first
    asked for, which takes seconds for every few gigabytes.
    """

    def __init__(self, size: int, seed: int = 0, declared: Digest | None = None) -> None:
        self.size = size
        self._pattern = memoryview(random.Random(seed).randbytes(PATTERN_BYTES))
        self._digest = declared
        self._lock = threading.Lock()

    @property
    def digest(self) -> Digest:
        """The declared one, or that of the bytes."""
        with self._lock:
            if self._digest is None:
                self._digest = self._computed()
            return self._digest

    def read(self, offset: int, length: int) -> memoryview:
        """Up to ``length`` bytes from ``offset``, at most to the end of the pattern; no copy is made."""
        begin = offset % PATTERN_BYTES
        return self._pattern[begin : begin + min(length, self.size - offset)]

    def _computed(self) -> Digest:
        hasher = Digest.of(b"").hasher()
        whole, rest = divmod(self.size, PATTERN_BYTES)
        for _ in range(whole):
            hasher.update(self._pattern)
        hasher.update(self._pattern[:rest])
        return Digest("sha256", hasher.hexdigest())


@dataclass(frozen=True, slots=True)
class HeldManifest:
    """A manifest's bytes and the type that they are served with."""

    raw: bytes
    media_type: str
    digest: Digest

    @property
    def document(self) -> dict[str, object]:
        """The parsed bytes; empty where they are no JSON object."""
        try:
            document = json.loads(self.raw)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}


@dataclass(slots=True)
class _Repository:
    blobs: dict[str, HeldBlob] = field(default_factory=dict)
    manifests: dict[str, HeldManifest] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)


Layer = bytes | HeldBlob


class UpstreamContent:
    """The repositories of one or several upstreams. Every method may be called at any time from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._repositories: dict[str, _Repository] = {}

    def hold_blob(self, repository: str, blob: Layer, under: Digest | None = None) -> Digest:
        """Hold a blob, given as bytes or generated, under its digest, or ``under`` another; that is returned."""
        held = GivenOctets(blob) if isinstance(blob, bytes) else blob
        digest = held.digest if under is None else under
        with self._lock:
            self._held(repository).blobs[str(digest)] = held
        return digest

    def hold_manifest(
        self, repository: str, raw: bytes, media_type: str = OCI_MANIFEST, tag: str | None = None
    ) -> Digest:
        """Hold a manifest, whatever its bytes are, under its digest and under ``tag`` if there is one."""
        digest = Digest.of(raw)
        with self._lock:
            held = self._held(repository)
            held.manifests[str(digest)] = HeldManifest(raw, media_type, digest)
            if tag is not None:
                held.tags[tag] = digest
        return digest

    def push_image(
        self, repository: str, tag: str | None = None, layers: Iterable[Layer] = (b"layer",), **members: object
    ) -> Digest:
        """Hold a whole image: a config, ``layers`` and a manifest, whose digest is returned.

        ``members`` go into the manifest as they are (``subject``, ``artifactType``, ``annotations``).
        """
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}})
        described = [_descriptor(OCI_CONFIG, self.hold_blob(repository, config.encode()), len(config))]
        for layer in layers:
            size = len(layer) if isinstance(layer, bytes) else layer.size
            described.append(_descriptor(OCI_LAYER, self.hold_blob(repository, layer), size))
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": described[0],
            "layers": described[1:],
            **members,
        }
        return self.hold_manifest(repository, json.dumps(document).encode(), OCI_MANIFEST, tag)

    def push_index(self, repository: str, tag: str | None, images: Iterable[Digest]) -> Digest:
        """Hold an index of ``images`` that the repository holds; its digest."""
        children = [one for digest in images if (one := self.manifest(repository, str(digest))) is not None]
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [_descriptor(one.media_type, one.digest, len(one.raw)) for one in children],
        }
        return self.hold_manifest(repository, json.dumps(document).encode(), OCI_INDEX, tag)

    def move_tag(self, repository: str, tag: str, digest: Digest) -> None:
        """Let ``tag`` name ``digest``, new or not."""
        with self._lock:
            self._held(repository).tags[tag] = digest

    def delete_tag(self, repository: str, tag: str) -> None:
        """Let ``tag`` vanish; what it named stays."""
        with self._lock:
            self._held(repository).tags.pop(tag, None)

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        """Let a manifest vanish, and every tag on it."""
        with self._lock:
            held = self._held(repository)
            held.manifests.pop(str(digest), None)
            held.tags = {tag: named for tag, named in held.tags.items() if named != digest}

    def delete_blob(self, repository: str, digest: Digest) -> None:
        """Let a blob vanish, as a garbage collection that was too eager does."""
        with self._lock:
            self._held(repository).blobs.pop(str(digest), None)

    def manifest(self, repository: str, reference: str) -> HeldManifest | None:
        """By tag or digest."""
        with self._lock:
            held = self._repositories.get(repository, _Repository())
            return held.manifests.get(str(held.tags.get(reference, reference)))

    def blob(self, repository: str, digest: str) -> HeldBlob | None:
        """By digest."""
        with self._lock:
            return self._repositories.get(repository, _Repository()).blobs.get(digest)

    def tags(self, repository: str) -> Sequence[str] | None:
        """All tags in byte order; None where there is no such repository."""
        with self._lock:
            held = self._repositories.get(repository)
            return None if held is None else sorted(held.tags)

    def referrers(self, repository: str, subject: str) -> list[Referrer]:
        """Manifests that name ``subject`` as theirs, in digest order."""
        with self._lock:
            found = [*self._repositories.get(repository, _Repository()).manifests.values()]
        referring = [one for one in found if _digest_in(one.document.get("subject")) == subject]
        return [_referrer(one) for one in sorted(referring, key=lambda one: one.digest)]

    def _held(self, repository: str) -> _Repository:
        return self._repositories.setdefault(repository, _Repository())


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _digest_in(descriptor: object) -> object:
    return descriptor.get("digest") if isinstance(descriptor, dict) else None


def _referrer(manifest: HeldManifest) -> Referrer:
    document = manifest.document
    config = document.get("config")
    kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    annotations = document.get("annotations")
    return Referrer(
        Descriptor(manifest.media_type, manifest.digest, len(manifest.raw)),
        str(kind) if kind else None,
        annotations if isinstance(annotations, dict) else {},
    )
