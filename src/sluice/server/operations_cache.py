"""What an operator can have done to a cache: see what it holds, pin, purge and warm images.

As in ``server.operations``: the running server calls these for a command that came over the admin socket, and the CLI
by itself where no server runs. Only ``warm`` needs a server, for it fetches.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from sluice.cache.answers import CacheCounters, Kind
from sluice.cache.space import Space
from sluice.errors import ConfigInvalid, ImageKept, ManifestUnknown, Unavailable
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag, parse_repository, parse_tag
from sluice.server.admin import Arguments, Handler, Progress
from sluice.server.namespaces import Names
from sluice.server.wiring import Wiring
from sluice.store.images import HeldImage, Holdings
from sluice.store.local import LocalStore

IMAGES_PER_PAGE = 1000
KEPT_NAMED_MAX = 100  # images named in a report that stayed
WARM_BLOBS = 4  # of one image at once
WARM_SLICE_BYTES = 1 << 20
WARM_MANIFESTS_MAX = 200  # of one image
ARGUMENTS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class CacheDesk:
    """What the commands work on. ``wiring`` tells the running server's current one; None: no server runs."""

    store: LocalStore
    space: Space
    names: Callable[[], Names]
    counters: CacheCounters = field(default_factory=CacheCounters)
    wiring: Callable[[], Wiring] | None = None

    def locate(self, text: str) -> tuple[Repository, Reference]:
        """The repository and reference of ``NAME[:TAG][@DIGEST]``; raises NameInvalid or DigestInvalid."""
        name, at, digest = text.partition("@")
        head, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:
            head, tag = name, "latest"
        registry, slash, path = head.partition("/")
        repository = parse_repository(f"{registry.replace(':', '_')}{slash}{path}")
        return self.names().locate(repository, None), Digest.parse(digest) if at else parse_tag(tag)


def cache_handlers(desk: CacheDesk) -> Mapping[str, Handler]:
    """The commands by name."""
    return {
        "cache status": partial(status, desk),
        "cache list": partial(list_images, desk),
        "cache pin": partial(pin, desk),
        "cache unpin": partial(unpin, desk),
        "cache protect": partial(protect, desk),
        "cache purge": partial(purge, desk),
        "cache warm": partial(warm, desk),
    }


async def status(desk: CacheDesk, _: Arguments, __: Progress) -> object:
    """How things stand: a ``SpaceStatus`` with mode, reserve, fills, and whether each upstream can be asked."""
    wiring = None if desk.wiring is None else desk.wiring()
    upstreams = {} if wiring is None else wiring.upstreams
    return {
        **asdict(await desk.space.status()),
        "mode": None if wiring is None else wiring.mode,
        "reserve_bytes": desk.store.settings.reserve_bytes,
        "fills_active": desk.counters.fills_active,
        "fills_queued": desk.counters.fills_queued,
        "upstreams": {name: "unreachable" if remote.is_broken else "reachable" for name, remote in upstreams.items()},
    }


async def list_images(desk: CacheDesk, arguments: Arguments, _: Progress) -> object:
    """One page of images by repository and digest. Takes ``after`` (None, or ``next`` of the page before). Returns
    ``images`` and ``next``. ``bytes`` is all that an image holds, ``own_bytes`` what would come free with it alone."""
    after = arguments.get("after") or ["", ""]
    if not (isinstance(after, list) and len(after) == 2 and all(isinstance(part, str) for part in after)):
        raise ConfigInvalid(f"after is {after!r}: give the next of the page before")
    holdings = await desk.space.holdings()
    rows = [one for one in _described(holdings) if [one["repository"], one["digest"]] > after][:IMAGES_PER_PAGE]
    full = len(rows) == IMAGES_PER_PAGE
    return {"images": rows, "next": [rows[-1]["repository"], rows[-1]["digest"]] if full else None}


async def pin(desk: CacheDesk, arguments: Arguments, _: Progress) -> object:
    """Nail ``image``, a tag, to what it names now; it is fetched where a running cache does not hold it."""
    repository, tag = _tag(desk, arguments)
    wiring = None if desk.wiring is None else desk.wiring()
    if wiring is not None and wiring.mode == "proxy":
        await wiring.fetcher.fetch_named(repository, tag)
    store = None if wiring is None else wiring.held  # where only what its upstream said is there to be pinned
    await (store or desk.store).pin_tag(repository, tag, True)
    return {"image": f"{repository}:{tag}", "digest": str((await desk.store.resolve(repository, tag)).digest)}


async def unpin(desk: CacheDesk, arguments: Arguments, _: Progress) -> object:
    """Let ``image`` go; raises NameUnknown or ManifestUnknown."""
    repository, tag = _tag(desk, arguments)
    await desk.store.pin_tag(repository, tag, False)
    return {"image": f"{repository}:{tag}"}


async def protect(desk: CacheDesk, arguments: Arguments, _: Progress) -> object:
    """Never evict what ``references`` name, and let go what an earlier call named (``Space.protect``)."""
    references = arguments.get("references")
    if not (isinstance(references, list) and all(isinstance(one, str) for one in references)):
        raise ConfigInvalid(f"references is {str(references)[:100]}: give a list of texts")
    await desk.space.protect(references)
    return {"references": len(set(references))}


async def purge(desk: CacheDesk, arguments: Arguments, progress: Progress) -> object:
    """Evict ``image``, or with ``all`` everything that can go, however lately it was used. Returns how many ``purged``
    of how many ``bytes``, and up to ``KEPT_NAMED_MAX`` that were ``kept``, with the reason. One that is named and has
    to stay raises ImageKept, one that is not held ManifestUnknown."""
    images = (await desk.space.holdings()).images
    everything = arguments.get("all", False) is True
    if not everything:
        repository, reference = desk.locate(_text(arguments, "image"))
        images = [one for one in images if _is(one, repository, reference)]
        if not images:
            raise ManifestUnknown(f"{repository} has no image {reference} in the cache: see sluice cache list")
    purged, freed, kept = 0, 0, list[Mapping[str, str]]()
    for image in images:
        try:
            freed += await desk.space.purge(image)
            purged += 1
        except ImageKept as error:
            if not everything:
                raise
            kept.append({"image": image.name, "reason": error.message})
        progress({"purged": purged, "kept": len(kept)})
    return {"purged": purged, "bytes": freed, "kept": kept[:KEPT_NAMED_MAX], "kept_count": len(kept)}


async def warm(desk: CacheDesk, arguments: Arguments, progress: Progress) -> object:
    """Pull ``image`` for ``platforms`` (``linux/amd64``; empty: all) through the cache. Returns how many ``manifests``
    and ``blobs`` of how many ``bytes`` it has, and how many blobs were not ``kept`` for want of room."""
    wiring = None if desk.wiring is None else desk.wiring()
    if wiring is None or wiring.mode != "proxy":
        raise Unavailable("warming needs a running server in proxy mode: start one with sluice serve --mode proxy")
    platforms = arguments.get("platforms", [])
    if not (isinstance(platforms, list) and all(isinstance(one, str) for one in platforms)):
        raise ConfigInvalid(f"platforms is {platforms!r}: give a list like linux/amd64")
    repository, reference = desk.locate(_text(arguments, "image"))
    wiring.enter()  # a switch of the mode waits for it
    try:
        return await _Warming(wiring, repository, progress).run(reference, platforms)
    finally:
        wiring.leave()


class _Warming:
    """One image on its way into the cache."""

    def __init__(self, wiring: Wiring, repository: Repository, progress: Progress) -> None:
        self._fetcher = wiring.fetcher
        self._finish = wiring.finish
        self._repository = repository
        self._progress = progress
        self._slots = asyncio.Semaphore(WARM_BLOBS)
        self._counts = {"manifests": 0, "blobs": 0, "bytes": 0, "unkept": 0}

    async def run(self, reference: Reference, platforms: Sequence[str]) -> object:
        root = (await self._fetcher.fetch_named(self._repository, reference)).value
        manifests = [root]
        for manifest in manifests:
            for digest in _chosen(manifest, platforms):
                if len(manifests) >= WARM_MANIFESTS_MAX:
                    raise ConfigInvalid(f"{reference} has more than {WARM_MANIFESTS_MAX} manifests: name a platform")
                manifests.append((await self._fetcher.fetch_manifest(self._repository, digest)).value)
        self._counts["manifests"] = len(manifests)
        blobs = {one.digest: None for each in manifests for one in each.children if one.kind == "blob" and one.required}
        reading = [asyncio.ensure_future(self._read(digest)) for digest in blobs]
        try:
            await asyncio.gather(*reading)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        await self._finish(blobs.keys())  # who has read the last byte is not the last: the blob is put in its place
        return {"image": f"{self._repository}", "digest": str(root.digest), **self._counts}

    async def _read(self, digest: Digest) -> None:
        async with self._slots:
            fetched = await self._fetcher.fetch_blob(self._repository, digest)
            reader, position = fetched.value, 0
            try:
                while reader.size is None or position < reader.size:
                    want = WARM_SLICE_BYTES if reader.size is None else min(WARM_SLICE_BYTES, reader.size - position)
                    data = await reader.read(position, want)
                    position += len(data)
                    self._counts["bytes"] += len(data)
                    self._progress(dict(self._counts))
                    if not data:
                        break
            finally:
                reader.close()
            self._counts["blobs"] += 1
            self._counts["unkept"] += fetched.provenance.kind is Kind.BYPASS


def _chosen(manifest: Manifest, platforms: Sequence[str]) -> Iterator[Digest]:
    """The manifests of an index for these platforms, and those without one; raises ManifestUnknown where none is."""
    children = [child.digest for child in manifest.children if child.kind == "manifest"]
    if not children:
        return
    entries = {entry.get("digest"): _platform(entry) for entry in json.loads(manifest.raw)["manifests"]}
    chosen = [one for one in children if not platforms or _fits(entries.get(str(one)), platforms)]
    if not chosen:
        there = ", ".join(sorted({platform for platform in entries.values() if platform})) or "none"
        raise ManifestUnknown(f"{manifest.digest} has nothing for {', '.join(platforms)}; it has {there}")
    yield from dict.fromkeys(chosen)


def _platform(entry: Mapping[str, Any]) -> str | None:
    found = entry.get("platform")
    if not isinstance(found, dict):
        return None
    return "/".join(str(found[part]) for part in ("os", "architecture", "variant") if found.get(part))


def _fits(platform: str | None, platforms: Sequence[str]) -> bool:
    return platform is None or any(f"{platform}/".startswith(f"{one}/") for one in platforms)


def _described(holdings: Holdings) -> list[dict[str, Any]]:
    held: dict[str, int] = {}
    for image in holdings.images:
        for digest in image.held:
            held[digest] = held.get(digest, 0) + 1
    rows = []
    for image in sorted(holdings.images, key=lambda one: (one.repository, one.digest)):
        own = sum(holdings.sizes.get(digest, 0) for digest in image.held if held[digest] == 1)
        rows.append(
            {
                "image": image.name,
                "repository": image.repository,
                "digest": image.digest,
                "tags": list(image.tags),
                "bytes": sum(holdings.sizes.get(digest, 0) for digest in image.held),
                "own_bytes": own,
                "used_at": image.used_at,
                "pinned": image.pinned,
                "protected": image.protected,
                "pushed": image.pushed,
                "complete": image.complete and not image.blob,
            }
        )
    return rows


def _is(image: HeldImage, repository: Repository, reference: Reference) -> bool:
    if image.repository != repository:
        return False
    return image.digest == str(reference) if isinstance(reference, Digest) else reference in image.tags


def _tag(desk: CacheDesk, arguments: Arguments) -> tuple[Repository, Tag]:
    repository, reference = desk.locate(_text(arguments, "image"))
    if isinstance(reference, Digest):
        raise ConfigInvalid(f"image is '{repository}@{reference}': name a tag, a digest never moves")
    return repository, reference


def _text(arguments: Arguments, name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise ConfigInvalid(f"{name} is {value!r}: give text")
    return value
