"""Which images leave a cache. PURE: what is held, what is wanted and the time come in, the images to evict go out.

``cache.space`` asks and acts. The rules, in words:

* An image leaves as a whole, the least recently used one first.
* One that is pinned, protected, in use (read, or being filled) or pushed here by a client never leaves.
* One that nobody has used for ``ttl_s`` leaves, and the time in which its upstream could not be asked does not count.
  While it cannot be asked, none leaves for its age.
* Room comes free when the last image that has a content leaves. Where even all of them would not make the room that is
  needed, none leaves for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum

from sluice.store.eviction import Outage
from sluice.store.images import HeldImage
from sluice.store.leases import Use


class Keep(Enum):
    """Why an image cannot leave."""

    PINNED = "pinned"
    PROTECTED = "protected"
    IN_USE = "in use"
    PUSHED = "pushed here"


@dataclass(frozen=True, slots=True)
class Wish:
    """``need_bytes`` must come free, or nothing leaves for it; ``spare_bytes`` more should. ``in_use``: repositories
    and digests that are read or filled there. ``outages``: by repository. ``silent``: the repositories whose upstream
    cannot be asked now. Times in seconds since the epoch."""

    now: float
    need_bytes: int = 0
    spare_bytes: int = 0
    ttl_s: float = math.inf
    in_use: AbstractSet[Use] = frozenset()
    outages: Mapping[str, Sequence[Outage]] = field(default_factory=dict)
    silent: AbstractSet[str] = frozenset()


def find_busy(images: Iterable[HeldImage], in_use: AbstractSet[Use]) -> frozenset[Use]:
    """The images that are read or filled, by repository and digest. Of those that share what is in use it is the one
    used last: whoever pulls an image has asked for its manifest just before."""
    busy: dict[Use, tuple[float, str]] = {}
    wanted: dict[str, set[str]] = {}
    for repository, digest in in_use:
        wanted.setdefault(repository, set()).add(digest)
    for image in images:
        for digest in image.digests & wanted.get(image.repository, set()):
            key = (image.repository, digest)
            busy[key] = max(busy.get(key, (-math.inf, "")), (image.used_at, image.digest))
    return frozenset((repository, digest) for (repository, _), (_, digest) in busy.items())


def why_kept(image: HeldImage, busy: AbstractSet[Use]) -> Keep | None:
    """Why it cannot leave; None where it can. ``busy`` is what ``find_busy`` found."""
    if image.pinned:
        return Keep.PINNED
    if image.protected:
        return Keep.PROTECTED
    if image.pushed:
        return Keep.PUSHED
    return Keep.IN_USE if (image.repository, image.digest) in busy else None


def idle_s(used_at: float, now: float, outages: Iterable[Outage]) -> float:
    """For how long nobody used it although its upstream could be asked."""
    idle, counted_to = 0.0, used_at
    for outage in sorted(outages, key=lambda one: one.began_at):
        idle += max(0.0, min(outage.began_at, now) - counted_to)
        counted_to = max(counted_to, outage.ended_at)
    return idle + max(0.0, now - counted_to)


def plan_eviction(images: Sequence[HeldImage], sizes: Mapping[str, int], wish: Wish) -> tuple[HeldImage, ...]:
    """The images to evict, in order. ``images`` are all that are held, ``sizes`` those of their contents in bytes."""
    busy = find_busy(images, wish.in_use)
    able = [image for image in images if why_kept(image, busy) is None]
    able.sort(key=lambda image: (image.used_at, image.repository, image.digest))
    expired = [image for image in able if _is_expired(image, wish)]
    gone = {(image.repository, image.digest) for image in expired}
    rest = [image for image in able if (image.repository, image.digest) not in gone]
    holders = Counter(digest for image in images for digest in image.held)
    leaving, freed = list(expired), sum(_take(image, holders, sizes) for image in expired)
    for image in rest:
        if freed >= wish.need_bytes + wish.spare_bytes:
            break
        leaving.append(image)
        freed += _take(image, holders, sizes)
    return tuple(leaving if freed >= wish.need_bytes else expired)


def _is_expired(image: HeldImage, wish: Wish) -> bool:
    if wish.ttl_s <= 0 or image.repository in wish.silent:
        return False
    outages = wish.outages.get(image.repository, ())
    return idle_s(image.used_at, wish.now, outages) > wish.ttl_s


def _take(image: HeldImage, holders: Counter[str], sizes: Mapping[str, int]) -> int:
    """Take an image from the ``holders``; returns the bytes of what nobody holds any more."""
    holders.subtract(image.held)
    return sum(sizes.get(digest, 0) for digest in image.held if holders[digest] == 0)
