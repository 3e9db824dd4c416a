"""Manifests: what is read out of the four accepted kinds, and what is refused, by field."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import ManifestInvalid
from sluice.oci import manifest as limits
from sluice.oci.digest import Digest
from sluice.oci.manifest import Child, Manifest
from sluice.oci.mediatype import (
    ACCEPTED,
    DOCKER_CONFIG,
    DOCKER_FOREIGN_LAYER,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    is_index,
)

A, B, C = (Digest("sha256", letter * 64) for letter in "abc")
Document = dict[str, Any]


def descriptor(media_type: str = OCI_LAYER_GZIP, digest: Digest = B, size: int = 5, **more: object) -> Document:
    return {"mediaType": media_type, "digest": str(digest), "size": size, **more}


def image(**changes: object) -> Document:
    whole = {"schemaVersion": 2, "config": descriptor(OCI_CONFIG, A, 2), "layers": [descriptor()], **changes}
    return {name: value for name, value in whole.items() if value is not ...}


def index(*entries: object, **changes: object) -> Document:
    return {"schemaVersion": 2, "manifests": list(entries), **changes}


def parse(document: object, media_type: str = OCI_MANIFEST) -> Manifest:
    return Manifest.parse(json.dumps(document).encode(), media_type)


def refusal(raw: bytes, media_type: str = OCI_MANIFEST) -> str:
    with pytest.raises(ManifestInvalid) as caught:
        Manifest.parse(raw, media_type)
    return caught.value.message


@pytest.mark.parametrize(
    ("media_type", "config", "layer"),
    [(OCI_MANIFEST, OCI_CONFIG, OCI_LAYER_GZIP), (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER)],
)
def test_an_image_names_its_config_and_layers(media_type: str, config: str, layer: str) -> None:
    """Children are blobs, the config first; the artifact type is the config's where none is given."""
    document = image(
        mediaType=media_type, config=descriptor(config, A, 2), layers=[descriptor(layer), descriptor(layer, C)]
    )
    found = parse(document, media_type)
    children = (Child(A, 2, config, "blob"), Child(B, 5, layer, "blob"), Child(C, 5, layer, "blob"))
    assert (children, config, None) == (found.children, found.artifact_type, found.subject)


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_an_index_names_manifests_and_whatever_else_as_blobs(media_type: str) -> None:
    """An entry of a manifest's type is a manifest, nested indexes too; any other entry is a blob."""
    entries = [
        descriptor(OCI_MANIFEST, A),
        descriptor(DOCKER_LIST, B),
        descriptor("application/vnd.buildkit.cache.v0", C),
    ]
    found = parse(index(*entries), media_type)
    assert [child.kind for child in found.children] == ["manifest", "manifest", "blob"]
    assert found.artifact_type is None


def test_raw_bytes_and_content_type_are_kept_as_they_came() -> None:
    """The digest is of the bytes as sent, and parameters of the content type are not lost."""
    raw = json.dumps(image(mediaType=OCI_MANIFEST), indent=3).encode() + b"\n"
    media_type = OCI_MANIFEST.replace("vnd", "VND") + "; charset=utf-8"
    found = Manifest.parse(raw, media_type, "sha512")
    assert (raw, media_type, Digest.of(raw, "sha512")) == (found.raw, found.media_type, found.digest)


def test_an_artifact_has_type_subject_and_annotations() -> None:
    """artifactType wins over the config's type; the empty config is a blob like any other; the subject is no child."""
    document = image(
        config=descriptor(OCI_EMPTY, A, 2),
        layers=[],
        artifactType="application/vnd.example+json",
        subject=descriptor(OCI_MANIFEST, C, 7),
        annotations={"org.example/k": "ü", "": ""},
    )
    found = parse(document)
    assert (Child(A, 2, OCI_EMPTY, "blob"),) == found.children
    assert (found.artifact_type, found.subject) == ("application/vnd.example+json", C)
    assert found.annotations == {"org.example/k": "ü", "": ""}


def test_an_index_has_only_an_artifact_type_of_its_own() -> None:
    """An index refers to a subject too; its artifact type is its own or none."""
    found = parse(index(artifactType="application/vnd.x", subject=descriptor(OCI_MANIFEST, C)), OCI_INDEX)
    assert (found.artifact_type, found.subject, found.children) == ("application/vnd.x", C, ())


def test_fields_that_are_null_or_empty_count_as_absent() -> None:
    """As the Go decoders of every client have it."""
    layer = descriptor(annotations=None, urls=None)
    found = parse(
        image(layers=[layer], annotations=None, subject=None, artifactType="", mediaType=None, manifests=None)
    )
    assert (found.artifact_type, found.annotations, found.subject) == (OCI_CONFIG, {}, None)


@pytest.mark.parametrize(
    ("layer", "required"),
    [
        (descriptor(DOCKER_FOREIGN_LAYER, urls=["https://example.test/layer"]), False),
        (descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"), False),
        (descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar", urls=["https://example.test/"]), False),
        (descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar", urls=[]), True),
        (descriptor(OCI_LAYER_GZIP, urls=["https://example.test/layer"]), True),
    ],
)
def test_only_foreign_layers_may_be_missing(layer: Document, required: bool) -> None:
    """A layer with urls alone is still held by us: only its type says that it may not be handed out."""
    assert required == parse(image(layers=[layer])).children[1].required


def test_a_config_is_required_whatever_its_type() -> None:
    """Non-distributable is a property of layers."""
    assert parse(image(config=descriptor(DOCKER_FOREIGN_LAYER))).children[0].required


BAD_DESCRIPTORS = [
    ({"size": -1}, "size"),
    ({"size": True}, "size"),
    ({"size": 5.0}, "size"),
    ({"size": "5"}, "size"),
    ({"size": None}, "size"),
    ({"size": limits.SIZE_MAX + 1}, "size"),
    ({"digest": "sha256:abc"}, "digest"),
    ({"digest": "md5:" + "a" * 32}, "digest"),
    ({"digest": 7}, "digest"),
    ({"digest": None}, "digest"),
    ({"mediaType": None}, "mediaType"),
    ({"mediaType": ""}, "mediaType"),
    ({"mediaType": ["a"]}, "mediaType"),
    ({"mediaType": "a/b\r\nx: y"}, "mediaType"),
    ({"mediaType": "a/\ud800"}, "mediaType"),
    ({"mediaType": "a/" + "b" * 254}, "mediaType"),
    ({"annotations": []}, "annotations"),
    ({"annotations": {"k": 1}}, "annotations"),
    ({"Digest": str(C)}, "Digest"),
    ({"\u017fize": 4}, "\u017fize"),
]


@pytest.mark.parametrize(("change", "name"), BAD_DESCRIPTORS)
@pytest.mark.parametrize(
    ("path", "media_type"),
    [("config", OCI_MANIFEST), ("layers[1]", OCI_MANIFEST), ("subject", OCI_MANIFEST), ("manifests[1]", DOCKER_LIST)],
)
def test_a_bad_descriptor_is_named_by_its_path(path: str, media_type: str, change: Document, name: str) -> None:
    """Wherever a descriptor stands, the message begins with the path of the field that is wrong."""
    good, bad = descriptor(), {**descriptor(), **change}
    documents = {
        "config": image(config=bad),
        "layers[1]": image(layers=[good, bad]),
        "subject": image(subject=bad),
        "manifests[1]": index(good, bad),
    }
    message = refusal(json.dumps(documents[path]).encode(), media_type)
    assert f"{path}.{name}" == message[: len(f"{path}.{name}")]


@pytest.mark.parametrize(
    ("document", "start"),
    [
        (image(schemaVersion=1), "schemaVersion is 1"),
        (image(schemaVersion=True), "schemaVersion is True"),
        (image(schemaVersion=2.0), "schemaVersion is 2.0"),
        (image(schemaVersion="2"), "schemaVersion is '2'"),
        (image(schemaVersion=...), "schemaVersion is missing"),
        (image(schemaVersion={}), "schemaVersion is an object"),
        (image(config=...), "config is missing"),
        (image(config="x"), "config is a string"),
        (image(layers=...), "layers is missing"),
        (image(layers=None), "layers is missing"),
        (image(layers={}), "layers is an object"),
        (image(layers=[1]), "layers[0] is a number"),
        (image(layers=[[]]), "layers[0] is an array"),
        (image(layers=[descriptor()] * 10_001), "layers has 10001 entries"),
        (image(layers=[descriptor(urls="x")]), "layers[0].urls is a string"),
        (image(layers=[descriptor(urls=[1])]), "layers[0].urls is an array"),
        (image(manifests=[]), "manifests does not belong"),
        (image(mediaType=OCI_INDEX), f"mediaType '{OCI_INDEX}' contradicts"),
        (image(mediaType=2), "mediaType is 2"),
        (image(artifactType=[]), "artifactType is an array"),
        (image(subject=[]), "subject is an array"),
        (image(annotations="x"), "annotations is a string"),
        (image(annotations={"k": None}), "annotations['k'] is missing"),
        (image(annotations={"k": "\udc00"}), "annotations['k'] is '\\udc00'"),
        (image(annotations={"\ud800": "v"}), "annotations['\\ud800'] is 'v'"),
        (image(annotations={"k" * 100: False}), f"annotations['{'k' * 80}'…] is False"),
        (image(Layers=[]), "Layers is written differently from layers"),
        (image(SCHEMAVERSION=2), "SCHEMAVERSION is written differently from schemaVersion"),
        ([], "the manifest is an array"),
        (None, "the manifest is missing"),
        (True, "the manifest is a boolean"),
        (7, "the manifest is a number"),
    ],
)
def test_a_bad_image_is_refused_by_field(document: object, start: str) -> None:
    """The message begins with the field and its value."""
    assert start == refusal(json.dumps(document).encode())[: len(start)]


@pytest.mark.parametrize("name", ["config", "layers"])
def test_an_index_that_is_an_image_too_is_refused(name: str) -> None:
    """CVE-2021-41190: two readers must not be able to take one document for two things."""
    message = refusal(json.dumps(index(**{name: []})).encode(), OCI_INDEX)
    assert message.startswith(f"{name} does not belong")


def test_as_many_children_as_the_limit_are_taken() -> None:
    """The limit itself is allowed."""
    assert len(parse(index(*[descriptor()] * limits.CHILDREN_MAX), OCI_INDEX).children) == limits.CHILDREN_MAX


@pytest.mark.parametrize(
    ("media_type", "words"),
    [
        ("application/vnd.docker.distribution.manifest.v1+json", "schema 1"),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws; x=y", "schema 1"),
        ("application/json", "is not that of a manifest"),
        ("", "is not that of a manifest"),
        (OCI_CONFIG, "is not that of a manifest"),
        (OCI_MANIFEST + ";\u20ac", "is invalid"),
        (OCI_MANIFEST + "; a\r\nb", "is invalid"),
        (OCI_MANIFEST + ";" + "x" * 255, "is invalid"),
    ],
)
def test_a_content_type_that_is_none_of_ours_is_refused(media_type: str, words: str) -> None:
    """Schema 1 is refused with a remedy; what could not be sent back as a header is refused too."""
    assert words in refusal(json.dumps(image()).encode(), media_type)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is not JSON"),
        (b"blablabla", "is not JSON"),
        (b"{} {}", "is not JSON"),
        (b"{", "brackets do not match"),
        (b'{"a":"', "brackets do not match"),
        (b'"\\', "is not JSON"),
        (b'{"a":[}]', "is not JSON"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (json.dumps(image()).encode("utf-16"), "is not UTF-8"),
        (b'{"a":"\xff"}', "is not UTF-8: byte 6"),
        (b'{"a":NaN}', "NaN is not a JSON value"),
        (b'{"a":-Infinity}', "-Infinity is not a JSON value"),
        (b'{"a":' + b"9" * 10_000 + b"}", "more than 32 characters"),
        (b'{"a":1.' + b"9" * 10_000 + b"}", "more than 32 characters"),
        (b'{"a":1,"b":{"a":1,"a":1}}', "key 'a' is there twice"),
        (b'{"a":1,"\\u0061":1}', "key 'a' is there twice"),
        (b"[" * 10_000, "nested deeper than 64 levels"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested deeper than 64 levels"),
        (b"[" + b"[]," * 150_000 + b"[]]", "more than 150000 values"),
        (b'["' + b'"",' * 300_000, "more than 150000 values"),
    ],
)
def test_bytes_that_are_no_plain_json_are_refused(raw: bytes, words: str) -> None:
    """Each is a ManifestInvalid that says what is wrong, never an error of the parser's own."""
    assert words in refusal(raw)


def test_depth_counts_structure_only() -> None:
    """Brackets in strings, escaped quotes among them, are no depth; DEPTH_MAX levels are allowed."""
    nested: object = "[" * 100 + '\\"' + "{" * 100
    for _ in range(limits.DEPTH_MAX - 1):
        nested = [nested]
    assert len(parse(image(x=nested)).children) == 2
    assert "nested deeper" in refusal(json.dumps(image(x=[nested])).encode())


@pytest.mark.parametrize(
    "unit",
    [b"[", b"[]", b'"', b'"\\', b'"\\\\"', b'{"', b"1,", b'"",', b"9", b"\xff", b"[[[[{}]]]],", b'"            ",'],
    ids=lambda unit: unit.decode("latin-1"),
)
def test_four_mebibytes_of_anything_cost_bounded_memory(unit: bytes) -> None:
    """Refusing the largest body that is usually allowed takes some tens of MiB, whatever it is made of."""
    raw = b"[" + unit * (4 * 1024 * 1024 // len(unit))
    tracemalloc.start()
    try:
        refusal(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024 * 1024


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([str(A), OCI_CONFIG, 2]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["mediaType", "size", "digest", "x"]), inner)
    ),
    max_leaves=12,
)
fields = ["schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "annotations", "artifactType"]


@given(st.sampled_from(fields), json_values, st.sampled_from(ACCEPTED))
def test_any_value_in_any_field_is_parsed_or_refused(name: str, value: object, media_type: str) -> None:
    """There is no third outcome; and what is parsed has the document's digest."""
    document = index(descriptor()) if is_index(media_type) else image()
    raw = json.dumps({**document, name: value}).encode()
    try:
        found: Digest | str = Manifest.parse(raw, media_type).digest
    except ManifestInvalid as error:
        found = error.code
    assert found in {Digest.of(raw), "MANIFEST_INVALID"}


@given(st.binary(max_size=200) | st.text('[]{}",:\\ 12ea', max_size=60).map(str.encode))
def test_any_bytes_are_refused_calmly(raw: bytes) -> None:
    """No bytes that short are a manifest, and none make the parser fail otherwise."""
    assert refusal(raw)


@given(
    st.lists(st.tuples(st.binary(max_size=4), st.integers(0, limits.SIZE_MAX)), max_size=8),
    st.dictionaries(st.text(), st.text(), max_size=4),
)
def test_what_is_written_is_what_is_read(layers: list[tuple[bytes, int]], annotations: dict[str, str]) -> None:
    """Layers keep their order, repetitions and sizes; annotations every character that UTF-8 can hold."""
    document = image(
        layers=[descriptor(digest=Digest.of(data), size=size) for data, size in layers], annotations=annotations
    )
    found = parse(document)
    assert [(Digest.of(data), size) for data, size in layers] == [(c.digest, c.size) for c in found.children[1:]]
    assert annotations == found.annotations
