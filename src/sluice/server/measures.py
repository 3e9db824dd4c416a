"""What a server tells about its upstreams and its cache: gauges and counters that follow the wiring."""

from __future__ import annotations

from collections.abc import Mapping

from sluice.cache.answers import CacheCounters, Kind
from sluice.cache.space import Space
from sluice.server.registry import Registry
from sluice.telemetry import Metrics

MODES = ("local", "proxy", "direct")


def measure_wiring(metrics: Metrics, registry: Registry, counters: CacheCounters) -> None:
    """Register everything. ``counters`` outlives the wirings, so that what it counts only grows."""

    def answers() -> Mapping[str, float]:
        # Answers from memory are counted where they are given; in Proxy and Direct mode only hits are given from there.
        found: dict[str, float] = {kind.value: counters.answers[kind.value] for kind in Kind if kind is not Kind.LOCAL}
        found[Kind.HIT.value] += registry.cache_hits_in_memory
        return found

    metrics.family(
        "mode", "1 for the mode in force", "mode", lambda: {mode: mode == registry.wiring.mode for mode in MODES}
    )
    metrics.family(
        "upstream_broken",
        "1 for an upstream that is taken for dead just now",
        "registry",
        lambda: {name: float(remote.is_broken) for name, remote in registry.wiring.upstreams.items()},
    )
    metrics.family(
        "upstream_rate_remaining",
        "Requests that an upstream said it still allows",
        "registry",
        lambda: {
            name: float(remote.rate_limit.remaining)
            for name, remote in registry.wiring.upstreams.items()
            if remote.rate_limit is not None
        },
    )
    counter = metrics.counter_family
    counter("cache_answers", "Answers in Proxy and Direct mode by where they came from", "kind", answers)
    counter("cache_stale", "Answers that the upstream would not give now", "reason", lambda: dict(counters.stale))
    counter("cache_bypass", "Blobs that came past the cache", "reason", lambda: dict(counters.bypassed))
    for name, text in _COUNTED.items():
        metrics.counter(f"cache_{name}", text, lambda name=name: getattr(counters, name))  # type: ignore[misc]
    metrics.gauge("cache_fills_active", "Blobs that come from upstreams now", lambda: counters.fills_active)
    metrics.gauge("cache_fills_queued", "Blobs that wait for a fill to end", lambda: counters.fills_queued)


def measure_space(metrics: Metrics, space: Space) -> None:
    """Register what the cache takes, and what left it."""
    metrics.gauge("cache_bytes", "Bytes that count against cache.max_bytes", lambda: space.used_bytes)
    metrics.gauge("cache_max_bytes", "cache.max_bytes; 0: no bound", lambda: space.settings.max_bytes)
    metrics.counter("cache_evicted_images", "Images that left the cache, ever", lambda: space.totals.evicted_images)
    metrics.counter("cache_evicted_bytes", "Bytes that came free with them", lambda: space.totals.evicted_bytes)


_COUNTED = {
    "fills_begun": "Blobs that began to come from an upstream",
    "fills_done": "Blobs that came whole and were kept",
    "fills_failed": "Blobs that did not come whole",
    "fills_given_way": "Blobs that nobody waited for, given up for one that somebody waits for",
    "fills_prefetched": "Blobs that began to come before anybody asked",
    "upstream_bytes": "Bytes that came from upstreams",
    "resumes": "Bodies that went on after an upstream broke off",
    "diverted": "Readers of a fill that went on straight from the upstream",
    "invalid": "Bodies that were not what their digest says",
    "unkept": "Contents that there was no room for",
    "revalidations": "Tags that were asked about in the background",
    "absent": "Answers from memory that there is no such thing",
}
