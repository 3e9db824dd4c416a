"""What a cache decides, without doing it. PURE: facts and the time come in, a decision goes out.

``cache.pullthrough`` gathers the facts and acts. The rules, in words:

* A blob that is held and that the repository may read needs no upstream, ever.
* Whatever else asks for a blob shares the one fill of its digest, but for a reader that would wait for bytes far ahead.
* A tag that is known is served whatever becomes of the upstream; what is not known is never answered "there is no such
  thing" because the upstream could not be asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Literal


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What an operator can set about a cache.

    Tags: fresh for ``tag_fresh_s`` seconds after the upstream last spoke; then, with ``revalidate="background"``,
    served and asked about in the background until ``tag_stale_max_s``; then, and with ``"first"`` at once, asked about
    before they are served. ``keep_gone``: go on serving a tag that the upstream has deleted. ``negative_s``: seconds
    for which "there is none", a wrong digest and a failed question about a tag are remembered.

    Who asks for what is known waits ``known_wait_s`` seconds for the upstream's word, and ``troubled_wait_s`` where it
    was last asked in vain; then what is known is served, and the question goes on.

    Blobs: ``head_deadline_s`` is how long a reader waits for the upstream's head, ``small_blob_bytes`` the size up to
    which a blob is verified before anything is said about it, ``far_range_bytes`` how far ahead of a fill a reader may
    be and still wait for it. ``fills_max`` fills run at once (``cache.slots`` says which) and ``queue_max`` more wait;
    a reader waits for its fill's turn for ``queue_s`` seconds. ``fill_tries`` times in a row the upstream and its
    mirrors may bring no byte before a fill that has begun gives up, ``fill_pause_s`` seconds (doubling) apart.
    ``prefetch``: fetch what an image manifest names before anybody asks.
    """

    tag_fresh_s: float = 60.0
    tag_stale_max_s: float = 7 * 86_400.0
    revalidate: Literal["background", "first"] = "background"
    keep_gone: bool = True
    negative_s: float = 10.0
    known_wait_s: float = 5.0
    troubled_wait_s: float = 0.1
    head_deadline_s: float = 25.0
    far_range_bytes: int = 32 << 20
    small_blob_bytes: int = 128 << 10
    fills_max: int = 16
    queue_max: int = 1024
    queue_s: float = 1.0
    fill_tries: int = 5
    fill_pause_s: float = 0.2
    prefetch: bool = False


class BlobAction(Enum):
    """Where a blob comes from."""

    LOCAL = "local"
    JOIN = "join"
    START = "start"
    BYPASS = "bypass"


@dataclass(frozen=True, slots=True)
class BlobFacts:
    """``held``: an intact content file is here. ``entitled``: the repository may read the digest: it is linked there,
    its upstream was asked, or a manifest held there names what its upstream brought to whichever repository.
    ``filling``: how many bytes the running fill of the digest has (0 while it waits); None: there is none. ``offset``:
    where the reader begins."""

    held: bool
    entitled: bool
    filling: int | None
    offset: int


def is_far(offset: int, position: int, policy: CachePolicy) -> bool:
    """Whether a reader at ``offset`` would wait too long for a fill that stands at ``position``."""
    return offset > position + policy.far_range_bytes


def needs_proof(facts: BlobFacts) -> bool:
    """Whether the repository's own upstream must be asked before bytes that another repository brought are shared."""
    return not facts.entitled and (facts.held or facts.filling is not None)


def decide_blob(facts: BlobFacts, policy: CachePolicy) -> BlobAction:
    """Where the blob comes from. Without ``entitled`` nothing that is here, or on its way here, is shared."""
    if facts.held and facts.entitled:
        return BlobAction.LOCAL
    shared = facts.filling if facts.entitled else None
    if is_far(facts.offset, shared or 0, policy) or needs_proof(facts):
        return BlobAction.BYPASS
    return BlobAction.START if shared is None else BlobAction.JOIN


class TagAction(Enum):
    """What becomes of a question for a tag."""

    SERVE = "serve"
    SERVE_AND_REVALIDATE = "serve and revalidate"
    ASK_FIRST = "ask first"


@dataclass(frozen=True, slots=True)
class TagFacts:
    """A tag that can be served. ``checked_at``: when the upstream last spoke about it, None: never. ``gone``: it then
    said that there is none. ``failed_at`` and ``trouble``: when it was last asked in vain since, and how that failed
    (``UpstreamError.reason``). Times in seconds."""

    checked_at: float | None = None
    gone: bool = False
    pinned: bool = False
    failed_at: float | None = None
    trouble: str | None = None


def decide_tag(facts: TagFacts | None, now: float, policy: CachePolicy) -> TagAction:
    """Whether to ask the upstream, and when. ``facts`` is None for a tag that is not known here.

    A time of the future (the clock was set back) counts as expired: nothing stays fresh for longer than it says.
    """
    if facts is None:
        return TagAction.ASK_FIRST
    if facts.pinned:
        return TagAction.SERVE
    if facts.gone and not policy.keep_gone:
        return TagAction.ASK_FIRST
    if _within(facts.checked_at, now, policy.tag_fresh_s) or _within(facts.failed_at, now, policy.negative_s):
        return TagAction.SERVE
    if policy.revalidate == "background" and _within(facts.checked_at, now, policy.tag_stale_max_s):
        return TagAction.SERVE_AND_REVALIDATE
    return TagAction.ASK_FIRST


def patience_s(known: bool, trouble: str | None, policy: CachePolicy) -> float:
    """How long who asks waits for the upstream's word. ``known``: there is something else to serve. ``trouble``: how
    the last question failed, None where it did not."""
    if not known:
        return policy.head_deadline_s
    return min(policy.head_deadline_s, policy.known_wait_s if trouble is None else policy.troubled_wait_s)


def fresh_for_s(facts: TagFacts, now: float, policy: CachePolicy) -> float:
    """For how many seconds the tag may be served again without a decision; 0 where it is not fresh."""
    if facts.pinned:
        return math.inf
    if facts.gone or not _within(facts.checked_at, now, policy.tag_fresh_s):
        return 0.0
    return policy.tag_fresh_s - (now - (facts.checked_at or 0.0))  # in this order never above tag_fresh_s


def stale_reason(facts: TagFacts) -> str | None:
    """Why a tag that is served without asking is not what the upstream would say; None where it is, or may be."""
    if facts.pinned:
        return None
    return "gone" if facts.gone else facts.trouble


class Outcome(Enum):
    """What came of asking the upstream."""

    FOUND = "found"
    GONE = "gone"
    FAILED = "failed"


class Verdict(Enum):
    """What to do after asking."""

    FRESH = "fresh"
    STALE = "stale"
    RAISE = "raise"


def after_ask(known: bool, outcome: Outcome, policy: CachePolicy) -> Verdict:
    """What the caller gets: the upstream's answer, what is held, or the upstream's error."""
    if outcome is Outcome.FOUND:
        return Verdict.FRESH
    if not known or (outcome is Outcome.GONE and not policy.keep_gone):
        return Verdict.RAISE
    return Verdict.STALE


def _within(since: float | None, now: float, period_s: float) -> bool:
    return since is not None and 0 <= now - since < period_s
