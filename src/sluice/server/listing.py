"""Listings: tags, referrers and the catalog, in pages (spec: "Listing Tags", "Listing Referrers")."""

from __future__ import annotations

from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.server.access import Action
from sluice.server.exchange import Exchange, Headers
from sluice.server.registry import Registry
from sluice.wire.link import next_link
from sluice.wire.listing import render_catalog, render_referrers, render_tags

JSON = (b"content-type", b"application/json")
OCI_INDEX = (b"content-type", b"application/vnd.oci.image.index.v1+json")
CATALOG_SCAN = 500


async def tags(_: Registry, x: Exchange) -> None:
    """GET …/tags/list?n=&last=: in byte order, with a Link to the rest where there is one."""
    repository = x.route.repository
    assert repository is not None
    limit, last = x.query.page_size(), x.query.get("last")
    fetched = await x.wiring.fetcher.fetch_tags(repository, limit + 1, last)
    x.marks = x.wiring.marked(fetched.provenance)
    found = fetched.value
    page = found[:limit]
    more = page[-1] if page and len(found) > limit else None
    headers = _headers(JSON, f"/v2/{x.asked}/tags/list", limit, more, **_namespace(x))
    await x.respond(200, headers, render_tags(x.asked, page))


def _namespace(x: Exchange) -> dict[str, str]:
    """The rest of a listing is where its beginning was."""
    namespace = x.query.get("ns")
    return {} if namespace is None or x.asked == x.route.repository else {"ns": namespace}


def _headers(kind: tuple[bytes, bytes], path: str, limit: int, last: str | None, **more: str) -> Headers:
    if last is None:
        return [kind]
    return [kind, (b"link", next_link(path, {"n": str(limit), "last": last, **more}).encode())]


async def catalog(_: Registry, x: Exchange) -> None:
    """GET /v2/_catalog: the repositories that the caller may pull from."""
    limit, last = x.query.page_size(), x.query.get("last")
    found: list[Repository] = []
    scanned = last
    held = x.wiring.held
    while held is not None and len(found) <= limit:
        batch = await held.repositories(CATALOG_SCAN, scanned)
        found += [name for name in batch if x.principal.could(Action.PULL, name)]
        if len(batch) < CATALOG_SCAN:
            break
        scanned = batch[-1]
    page = found[:limit]
    more = page[-1] if page and len(found) > limit else None
    await x.respond(200, _headers(JSON, "/v2/_catalog", limit, more), render_catalog(page))


async def referrers(_: Registry, x: Exchange) -> None:
    """GET …/referrers/<digest>?artifactType=: an index, empty where nothing refers to the digest."""
    repository, subject = x.route.repository, x.route.reference
    assert repository is not None
    assert isinstance(subject, Digest)
    wanted, limit, last = x.query.artifact_type(), x.query.page_size(), x.query.get("last")
    fetched = await x.wiring.fetcher.fetch_referrers(repository, subject)
    x.marks = x.wiring.marked(fetched.provenance)
    found = [
        referrer
        for referrer in fetched.value
        if (wanted is None or referrer.artifact_type == wanted)
        and (last is None or str(referrer.descriptor.digest) > last)
    ]
    page = found[:limit]
    more = str(page[-1].descriptor.digest) if page and len(found) > limit else None
    filters = {} if wanted is None else {"artifactType": wanted}
    headers = _headers(OCI_INDEX, f"/v2/{x.asked}/referrers/{subject}", limit, more, **filters, **_namespace(x))
    if wanted is not None:
        headers.append((b"oci-filters-applied", b"artifactType"))
    await x.respond(200, headers, render_referrers(page))
