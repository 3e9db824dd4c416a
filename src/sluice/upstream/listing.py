"""Lists of one address: tags and referrers, page by page (OCI Distribution Specification 1.1, "Listing Tags")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar
from urllib.parse import urlencode, urljoin

from sluice.errors import ManifestInvalid, ManifestUnknown, NameUnknown, UpstreamInvalid
from sluice.oci.content import Referrer
from sluice.oci.digest import Digest
from sluice.oci.mediatype import OCI_INDEX
from sluice.oci.reference import Repository, Tag
from sluice.upstream.endpoint import Endpoint
from sluice.upstream.exchange import Request, Response
from sluice.upstream.manifests import fetch, pull_scope
from sluice.upstream.redirect import Target, parse_target
from sluice.wire.link import parse_next_link
from sluice.wire.listing import parse_referrers, parse_tags

PAGES_MAX = 1000
REFERRERS_MAX = 10_000
SCHEMA_REFERENCE_LENGTH = 64

T = TypeVar("T")


async def tags(endpoint: Endpoint, repository: Repository, limit: int, last: str | None) -> Sequence[Tag]:
    """Up to ``limit`` tags after ``last`` in byte order; raises NameUnknown or an UpstreamError.

    Not every registry knows ``n`` and ``last``, and not every one sorts by bytes: so what comes is put right here.
    """
    name = endpoint.address.repository(repository)
    query = urlencode({"n": str(limit), **({} if last is None else {"last": last})})
    listing = _Listing(endpoint, name, parse_tags, frozenset({404}))
    found: set[Tag] = set()
    page: Target | None = endpoint.transport.target(f"/v2/{name}/tags/list", query)
    while page is not None and len(found) < limit:
        entries, page = await listing.page(page)
        if entries is None:
            raise NameUnknown(f"repository {name} is unknown to the upstream {endpoint.address}")
        found.update(tag for tag in entries if last is None or tag > last)
    return sorted(found)[:limit]  # all characters of a tag are ASCII


async def referrers(endpoint: Endpoint, repository: Repository, subject: Digest) -> Sequence[Referrer]:
    """In digest order; where the upstream has no such list, from the tag that stands in for it."""
    name = endpoint.address.repository(repository)
    listing = _Listing(endpoint, name, parse_referrers, frozenset({404, 405}))
    found: dict[Digest, Referrer] = {}
    page: Target | None = endpoint.transport.target(f"/v2/{name}/referrers/{subject}")
    while page is not None and len(found) < REFERRERS_MAX:
        entries, page = await listing.page(page)
        if entries is None:
            entries = await _by_tag(endpoint, repository, subject)
        found |= {entry.descriptor.digest: entry for entry in entries}
    return [found[digest] for digest in sorted(found)][:REFERRERS_MAX]


async def _by_tag(endpoint: Endpoint, repository: Repository, subject: Digest) -> Sequence[Referrer]:
    """Spec: "Referrers Tag Schema"."""
    try:
        manifest = await fetch(
            endpoint, repository, Tag(f"{subject.algorithm}-{subject.hex[:SCHEMA_REFERENCE_LENGTH]}")
        )
    except (ManifestUnknown, NameUnknown):
        return ()
    try:
        return parse_referrers(manifest.raw)
    except ManifestInvalid:
        return ()  # somebody's tag that only looks like one


class _Listing(Generic[T]):
    """The pages of one list, bounded in number and in bytes. Answers with a status of ``absent`` are no list."""

    def __init__(
        self, endpoint: Endpoint, name: Repository, parse: Callable[[bytes], Sequence[T]], absent: frozenset[int]
    ) -> None:
        self._endpoint = endpoint
        self._scope = pull_scope(name)
        self._parse = parse
        self._absent = absent
        self._bytes_left = endpoint.transport.limits.listing_bytes
        self._seen: set[str] = set()

    async def page(self, target: Target) -> tuple[Sequence[T] | None, Target | None]:
        """The entries of one page, None where there is no list; and where it goes on."""
        self._seen.add(target.url)
        if len(self._seen) > PAGES_MAX:
            raise UpstreamInvalid(f"{target.shown} has more than {PAGES_MAX} pages")
        request = Request("GET", target, {"Accept": f"{OCI_INDEX}, application/json"})
        response = await self._endpoint.send(request, self._scope, self._absent)
        with response:
            if response.status in self._absent:
                await response.discard()
                return None, None
            following = self._next(response)
            body = await response.whole(self._bytes_left)
        self._bytes_left -= len(body)
        try:
            return self._parse(body), following
        except ManifestInvalid as error:
            raise UpstreamInvalid(f"{target.shown} answers with what is no list: {error.message}") from None

    def _next(self, response: Response) -> Target | None:
        link = parse_next_link(response.headers("link"))
        if link is None:
            return None
        try:
            target = parse_target(urljoin(response.target.url, link))
        except ValueError:
            raise UpstreamInvalid(f"{response.target.shown} goes on at what is no URL") from None
        # A registry behind a proxy may call itself by another name, or by http: only the path and query are its word.
        home = self._endpoint.transport
        path = target.url.partition("://")[2].partition("/")[2]
        target = parse_target(f"{home.address.origin}/{path}")
        if target.url in self._seen:
            raise UpstreamInvalid(f"{response.target.shown} goes on where it has been already")
        return target
