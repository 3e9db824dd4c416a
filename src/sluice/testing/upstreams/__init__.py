"""Scripted upstream registries for tests of a pull-through cache: each a real server that misbehaves on demand.

``content`` is what an upstream holds, ``server`` serves it correctly, ``faults`` spoil chosen answers, ``dead`` has the
addresses at which nobody answers, and ``shaped`` is a link of limited speed in front of any server. Sockets and threads
of the standard library only: an HTTP library would not let a test decide which byte is the last, and whether a FIN or a
RST comes after it.
"""

from __future__ import annotations

from sluice.testing.upstreams.content import GeneratedBlob, UpstreamContent
from sluice.testing.upstreams.dead import blackhole, refused_address, silent, unresolvable_address, wrong_ca
from sluice.testing.upstreams.faults import (
    Cut,
    Failing,
    Fault,
    Liar,
    Lie,
    NoHead,
    RateLimited,
    Redirect,
    Slow,
    Stall,
)
from sluice.testing.upstreams.matching import (
    all_of,
    anything,
    blobs,
    content_requests,
    gets,
    manifests,
    of_digest,
    of_kind,
    tokens,
)
from sluice.testing.upstreams.seen import Kind, SeenRequest
from sluice.testing.upstreams.server import UpstreamServer
from sluice.testing.upstreams.shaped import Relay, Shape
from sluice.testing.upstreams.tls import UpstreamTls, make_tls
from sluice.testing.upstreams.unauthorized import Scheme, Unauthorized

__all__ = [
    "Cut",
    "Failing",
    "Fault",
    "GeneratedBlob",
    "Kind",
    "Liar",
    "Lie",
    "NoHead",
    "RateLimited",
    "Redirect",
    "Relay",
    "Scheme",
    "SeenRequest",
    "Shape",
    "Slow",
    "Stall",
    "Unauthorized",
    "UpstreamContent",
    "UpstreamServer",
    "UpstreamTls",
    "all_of",
    "anything",
    "blackhole",
    "blobs",
    "content_requests",
    "gets",
    "make_tls",
    "manifests",
    "of_digest",
    "of_kind",
    "refused_address",
    "silent",
    "tokens",
    "unresolvable_address",
    "wrong_ca",
]
