"""Bad manifests against a running server: refused by name, in bounded memory, and without a trace.

The server's directory is looked over at the end (``registry`` in conftest).
"""

from __future__ import annotations

import json

import pytest

from integration.samples import HELD, files_of, outcome
from sluice.testing.client import OCI_INDEX, OCI_MANIFEST, RegistryClient, descriptor, digest_of
from sluice.testing.server import SluiceServer

MIB = 1 << 20
NESTING = 10_000
DIGEST = digest_of(HELD).encode()


def manifest(**changes: object) -> bytes:
    """A manifest over held content, with changes that make it wrong."""
    held = descriptor(HELD, "application/octet-stream")
    return json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": held, "layers": [held], **changes}
    ).encode()


def layer(**changes: object) -> bytes:
    """The same with one wrong layer."""
    return manifest(layers=[{**descriptor(HELD, "application/octet-stream"), **changes}])


def padding(size: int) -> bytes:
    """A well-formed manifest of ``size`` bytes."""
    return manifest(annotations={"p": "x" * (size - len(manifest(annotations={"p": ""})))})


WRONG_MANIFESTS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"hello",
    "half": manifest()[:-1],
    "two": manifest() * 2,
    "array": b"[]",
    "null": b"null",
    "number": b"2",
    "NaN": manifest().replace(b'"schemaVersion": 2', b'"schemaVersion": NaN'),
    "bad UTF-8": manifest().replace(b"octet", b"oct\xff"),
    "UTF-16": manifest().decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + manifest(),
    "half a surrogate pair": manifest(annotations={"a": "\ud800"}),
    "duplicate key": manifest().replace(b'"schemaVersion": 2', b'"schemaVersion": 2, "schemaVersion": 2'),
    "duplicate config": manifest()[:-1] + b', "config": {}}',
    "other case": manifest()[:-1] + b', "Layers": []}',
    "nested arrays": b"[" * NESTING + b"]" * NESTING,
    "nested objects": b'{"a":' * NESTING + b"1" + b"}" * NESTING,
    "nested in a field": manifest()[:-1] + b', "x": ' + b"[" * NESTING + b"]" * NESTING + b"}",
    "unclosed": b"[" * NESTING,
    "many values": b'{"a":[' + b"1," * 500_000 + b"1]}",
    "huge number": manifest(schemaVersion=2)[:-1] + b', "x": ' + b"9" * 100_000 + b"}",
    "wrong version": manifest(schemaVersion=1),
    "version text": manifest(schemaVersion="2"),
    "other media type inside": manifest(mediaType=OCI_INDEX),
    "image and index": manifest(manifests=[]),
    "no config": manifest(config=None),
    "layers no array": manifest(layers={}),
    "layers of text": manifest(layers=["x"]),
    "negative size": layer(size=-1),
    "size text": layer(size="4"),
    "size true": layer(size=True),
    "size fraction": layer(size=4.5),
    "size huge": layer(size=2**63),
    "bad digest": layer(digest="sha256:0"),
    "digest number": layer(digest=0),
    "digest with path": layer(digest="sha256:../../../secret"),
    "no media type": layer(mediaType=""),
    "annotations no strings": manifest(annotations={"a": 1}),
    "subject text": manifest(subject="sha256:0"),
    "subject without size": manifest(subject={"digest": DIGEST.decode(), "mediaType": OCI_MANIFEST}),
}


@pytest.mark.parametrize("raw", WRONG_MANIFESTS.values(), ids=WRONG_MANIFESTS.keys())
def test_manifest_that_is_none(registry: SluiceServer, rude: RegistryClient, raw: bytes) -> None:
    """What is no manifest is refused as MANIFEST_INVALID with a reason, and neither a tag nor a file is left."""
    before = files_of(registry)
    answer = rude.raw_path("PUT", b"/v2/app/manifests/wrong", raw, b"Content-Type: " + OCI_MANIFEST.encode())
    assert (400, ["MANIFEST_INVALID"]) == outcome(answer)
    assert len(answer.json["errors"][0]["message"]) < 1000
    assert rude.raw_path("GET", b"/v2/app/manifests/wrong").status == 404
    assert before == files_of(registry)


@pytest.mark.parametrize(
    "kind",
    [b"", b"text/plain", b"application/json", b"application/vnd.oci.image.manifest.v1+json\xff", b"*/*", b"a" * 5000],
)
def test_manifest_of_another_type(rude: RegistryClient, kind: bytes) -> None:
    """A good manifest under a content type that is not a manifest's is refused."""
    answer = rude.raw_path("PUT", b"/v2/app/manifests/wrong", manifest(), b"Content-Type: " + kind)
    assert (400, ["MANIFEST_INVALID"]) == outcome(answer)


def test_manifest_without_a_type(rude: RegistryClient) -> None:
    """Content-Type is required: bytes alone do not say what they are."""
    assert (400, ["MANIFEST_INVALID"]) == outcome(rude.raw_path("PUT", b"/v2/app/manifests/wrong", manifest()))


def test_largest_manifest(rude: RegistryClient) -> None:
    """A manifest of exactly limits.manifest_bytes is accepted and one byte more is not."""
    found = [
        rude.request("PUT", "/v2/app/manifests/large", padding(size), {"Content-Type": OCI_MANIFEST})
        for size in (4 * MIB, 4 * MIB + 1)
    ]
    assert [201, 413] == [answer.status for answer in found]
    assert ["SIZE_INVALID"] == found[1].codes


@pytest.mark.parametrize("announced", [True, False])
def test_manifest_of_100_mib(registry: SluiceServer, rude: RegistryClient, announced: bool) -> None:
    """100 MiB, with or without their length told, are refused with 413, and the server's memory does not take them."""
    before = registry.resident_bytes("VmHWM")
    kind = b"Content-Type: " + OCI_MANIFEST.encode()
    if announced:
        answer = rude.raw_path("PUT", b"/v2/app/manifests/huge", b" " * (100 * MIB), kind)
    else:
        lines = [b"PUT /v2/app/manifests/huge HTTP/1.1", b"Host: x", kind, b"Transfer-Encoding: chunked", b"", b""]
        chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
        answer = rude.raw(b"\r\n".join(lines) + chunk * 100 + b"0\r\n\r\n")
    assert (413, ["SIZE_INVALID"]) == outcome(answer)
    assert registry.resident_bytes("VmHWM") - before < 32 * MIB


def test_hostile_manifests_cost_bounded_memory(registry: SluiceServer, rude: RegistryClient) -> None:
    """Manifests of the largest size that are made to cost a parser dear do not make the server large."""
    size = 4 * MIB - 100
    hostile = [
        b"[" * size,
        b'{"a":' * (size // 5),
        b'[""' + b',""' * (size // 3 - 2) + b"]",
        b"[0" + b",0" * (size // 2 - 2) + b"]",
        b'"' + b"\\u0000" * (size // 6) + b'"',
        b"[" + b"{}," * (size // 3 - 2) + b"{}]",
    ]
    found = [rude.request("PUT", "/v2/app/manifests/x", raw, {"Content-Type": OCI_MANIFEST}) for raw in hostile]
    assert [(400, ["MANIFEST_INVALID"])] * len(hostile) == [outcome(answer) for answer in found]
    assert registry.resident_bytes("VmHWM") < 200 * MIB
