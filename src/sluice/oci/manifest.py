"""Manifests: the exact bytes, and a view of what they name. PURE.

OCI Image Specification 1.1 (manifest.md, image-index.md) and Docker Image Manifest Version 2, Schema 2. A Manifest
keeps the bytes as they came, because their digest is their name; the view is read-only and bounded: a manifest comes
from anybody who may push.

What two readers could understand differently is refused, because GC keeps what *we* read and a client pulls what *it*
reads: duplicate keys, keys that differ from a known field only in case (Go's decoder takes them for the field), and
documents that are an image and an index at once (CVE-2021-41190).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sluice.errors import DigestInvalid, ManifestInvalid
from sluice.oci.digest import Digest
from sluice.oci.mediatype import ACCEPTED, INDEXES, MANIFESTS, SCHEMA1, essence, is_foreign, is_manifest

CHILDREN_MAX = 10_000
"""Entries in ``layers`` or ``manifests``."""
DEPTH_MAX = 64
"""Objects and arrays inside each other."""
VALUES_MAX = 150_000
"""Values in the whole document; bounds the memory of parsing to some tens of MiB whatever the bytes."""
NUMBER_LENGTH_MAX = 32
"""Characters of a JSON number."""
SIZE_MAX = 2**53 - 1
"""Bytes; the largest integer that every JSON reader takes exactly (RFC 8259 section 6)."""
MEDIA_TYPE_LENGTH_MAX = 255
"""Characters: 127 for type and for subtype (RFC 6838 section 4.2) and the slash."""
SHOWN_LENGTH = 80

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MEDIA_TYPE = re.compile(r"[!-~](?:[ -~]*[!-~])?", re.ASCII)
_STRING_WITHOUT_ESCAPES = re.compile(rb'"[^"]*+"?+')
_QUOTES_PER_VALUE = 4  # its own and its key's
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))
_BRACES_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")
_FIELDS = {
    name.casefold(): name
    for name in (
        *("schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations"),
        *("digest", "size", "urls"),
    )
}


@dataclass(frozen=True, slots=True)
class Child:
    """Content that a manifest names. ``kind`` is ``blob`` or ``manifest``; ``required`` is False for a
    non-distributable layer, which is accepted as a reference only."""

    digest: Digest
    size: int
    media_type: str
    kind: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Manifest:
    """``raw`` are the bytes as pushed, ``media_type`` the content type as pushed; the rest is the parsed view.

    ``children`` come in the document's order, the config first; one that is named twice is there twice.
    """

    raw: bytes
    media_type: str
    digest: Digest
    children: tuple[Child, ...] = ()
    subject: Digest | None = None
    artifact_type: str | None = None
    annotations: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: bytes, media_type: str, algorithm: str = "sha256") -> Manifest:
        """Parse and check; raises ManifestInvalid naming the field.

        ``media_type`` is the content type as sent, with parameters if it has any. ``algorithm`` is that of the digest
        by which the manifest is to be known. The time is linear in ``raw``, whose length is the caller's to limit.
        """
        kind = _accepted_kind(media_type)
        document = _document(raw)
        _check_identity(document, kind)
        children = _index_children(document) if kind in INDEXES else _image_children(document)
        artifact_type = _media_type(document, "artifactType", "")
        if artifact_type is None and kind in MANIFESTS:
            artifact_type = children[0].media_type  # spec: "Listing Referrers", the config's type stands in
        return cls(
            raw=raw,
            media_type=media_type,
            digest=Digest.of(raw, algorithm),
            children=children,
            subject=_subject(document),
            artifact_type=artifact_type,
            annotations=_annotations(document, ""),
        )


def _accepted_kind(media_type: str) -> str:
    kind = essence(media_type)
    if kind in SCHEMA1:
        raise ManifestInvalid(
            f"media type {kind} is Docker image manifest schema 1, which is not supported; push the image again with"
            " a current client, which sends schema 2 or OCI"
        )
    if kind not in MANIFESTS and kind not in INDEXES:
        raise ManifestInvalid(
            f"media type {_shown(media_type)} is not that of a manifest; use one of {', '.join(ACCEPTED)}"
        )
    if len(media_type) > MEDIA_TYPE_LENGTH_MAX or _MEDIA_TYPE.fullmatch(media_type) is None:
        raise ManifestInvalid(
            f"media type {_shown(media_type)} is invalid: up to {MEDIA_TYPE_LENGTH_MAX} printable ASCII characters are"
            " allowed"
        )
    return kind


def _document(raw: bytes) -> dict[str, Any]:
    _check_structure(raw)
    try:
        document = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_members,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_fraction,
        )
    except UnicodeDecodeError as error:
        raise ManifestInvalid(f"the manifest is not UTF-8: byte {error.start} begins no character") from None
    except json.JSONDecodeError as error:
        raise ManifestInvalid(f"the manifest is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ManifestInvalid(f"the manifest is {_json_name(document)}; it must be a JSON object")
    _check_field_names(document, "")
    return document


def _check_structure(raw: bytes) -> None:
    """Refuse what would cost the JSON parser its stack or much memory, before it sees it.

    With strings and scalars gone, each pass takes away the innermost pairs, so a document of depth n is empty after n.
    """
    unescaped = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if unescaped.count(b'"') > VALUES_MAX * _QUOTES_PER_VALUE:
        _refuse_values()
    structure = _STRING_WITHOUT_ESCAPES.sub(b"", unescaped).translate(_BRACES_AS_BRACKETS, _NOT_STRUCTURE)
    if structure.count(b"[") + structure.count(b",") > VALUES_MAX:
        _refuse_values()
    brackets = structure.replace(b",", b"")
    for _ in range(DEPTH_MAX):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise ManifestInvalid(f"the manifest is nested deeper than {DEPTH_MAX} levels, or its brackets do not match")


def _refuse_values() -> NoReturn:
    raise ManifestInvalid(f"the manifest has more than {VALUES_MAX} values; make it smaller")


def _unique_members(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) != len(members):
        seen: set[str] = set()
        twice = next(name for name, _ in members if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ManifestInvalid(f"key {_shown(twice)} is there twice in one object; readers would disagree on its value")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ManifestInvalid(f"{name} is not a JSON value (RFC 8259 section 6)")


def _check_number(text: str) -> str:
    if len(text) > NUMBER_LENGTH_MAX:
        raise ManifestInvalid(f"number {text[:NUMBER_LENGTH_MAX]}… has more than {NUMBER_LENGTH_MAX} characters")
    return text


def _integer(text: str) -> int:
    return int(_check_number(text))


def _fraction(text: str) -> float:
    return float(_check_number(text))


def _check_field_names(value: dict[str, Any], path: str) -> None:
    for name in value:
        known = _FIELDS.get(name.casefold())
        if known is not None and known != name:
            raise ManifestInvalid(
                f"{_at(path, name)} is written differently from {known}; some readers would take it for that"
            )


def _check_identity(document: dict[str, Any], kind: str) -> None:
    """The document is what its content type says, and nothing else besides."""
    version = document.get("schemaVersion")
    if type(version) is not int or version != 2:  # True and 2.0 equal integers too
        raise ManifestInvalid(f"schemaVersion is {_shown(version)}; it must be 2")
    inner = _media_type(document, "mediaType", "")
    if inner is not None and essence(inner) != kind:
        raise ManifestInvalid(f"mediaType {_shown(inner)} contradicts the content type {kind}; they must be the same")
    strangers = ("config", "layers") if kind in INDEXES else ("manifests",)
    for name in strangers:
        if document.get(name) is not None:
            raise ManifestInvalid(f"{name} does not belong into a manifest of type {kind}; leave it out")


def _index_children(document: dict[str, Any]) -> tuple[Child, ...]:
    return tuple(_child(entry, path, _index_entry_kind(entry, path)) for path, entry in _objects(document, "manifests"))


def _index_entry_kind(entry: dict[str, Any], path: str) -> str:
    return "manifest" if is_manifest(_required_media_type(entry, path)) else "blob"


def _image_children(document: dict[str, Any]) -> tuple[Child, ...]:
    config = _object(document.get("config"), "config")
    layers = (_child(entry, path, "blob", layer=True) for path, entry in _objects(document, "layers"))
    return (_child(config, "config", "blob"), *layers)


def _objects(document: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """The array of objects under ``name``, each with its path."""
    value = document.get(name)
    if not isinstance(value, list):
        raise ManifestInvalid(f"{name} is {_json_name(value)}; it must be an array of descriptors")
    if len(value) > CHILDREN_MAX:
        raise ManifestInvalid(f"{name} has {len(value)} entries; at most {CHILDREN_MAX} are allowed")
    paths = [f"{name}[{position}]" for position in range(len(value))]
    return [(path, _object(entry, path)) for path, entry in zip(paths, value, strict=True)]


def _object(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestInvalid(f"{path} is {_json_name(value)}; it must be an object")
    return value


def _child(entry: dict[str, Any], path: str, kind: str, *, layer: bool = False) -> Child:
    """A descriptor (descriptor.md, "Properties")."""
    _check_field_names(entry, path)
    media_type = _required_media_type(entry, path)
    _annotations(entry, path)
    return Child(
        digest=_digest(entry.get("digest"), _at(path, "digest")),
        size=_size(entry.get("size"), _at(path, "size")),
        media_type=media_type,
        kind=kind,
        required=not (layer and is_foreign(media_type, has_urls=_has_urls(entry, path))),
    )


def _subject(document: dict[str, Any]) -> Digest | None:
    value = document.get("subject")
    return None if value is None else _child(_object(value, "subject"), "subject", "manifest").digest


def _digest(value: object, path: str) -> Digest:
    if not isinstance(value, str):
        raise ManifestInvalid(f"{path} is {_json_name(value)}; it must be a digest")
    try:
        return Digest.parse(value)
    except DigestInvalid as error:
        raise ManifestInvalid(f"{path}: {error.message}") from None


def _size(value: object, path: str) -> int:
    if type(value) is not int or not 0 <= value <= SIZE_MAX:
        raise ManifestInvalid(f"{path} is {_shown(value)}; it must be a whole number of bytes from 0 to {SIZE_MAX}")
    return value


def _required_media_type(entry: dict[str, Any], path: str) -> str:
    value = _media_type(entry, "mediaType", path)
    if value is None:
        raise ManifestInvalid(f"{_at(path, 'mediaType')} is missing; name the content's media type")
    return value


def _media_type(value: dict[str, Any], name: str, path: str) -> str | None:
    """None where it is absent, null or empty: Go's encoders write either for a field that is not set."""
    text = value.get(name)
    if text is None or text == "":
        return None
    if not isinstance(text, str) or len(text) > MEDIA_TYPE_LENGTH_MAX or _MEDIA_TYPE.fullmatch(text) is None:
        raise ManifestInvalid(
            f"{_at(path, name)} is {_shown(text)}; it must be a media type of up to {MEDIA_TYPE_LENGTH_MAX} printable"
            " ASCII characters"
        )
    return text


def _annotations(value: dict[str, Any], path: str) -> dict[str, str]:
    where = _at(path, "annotations")
    found = value.get("annotations")
    if found is None:
        return {}
    for key, text in _object(found, where).items():
        if not _is_text(key) or not _is_text(text):
            raise ManifestInvalid(f"{where}[{_shown(key)}] is {_shown(text)}; keys and values must be Unicode strings")
    return dict(found)


def _is_text(value: object) -> bool:
    """A string that UTF-8 can hold: JSON's escapes can spell half a surrogate pair, which the index could not store."""
    return isinstance(value, str) and _SURROGATE.search(value) is None


def _has_urls(entry: dict[str, Any], path: str) -> bool:
    urls = entry.get("urls")
    if urls is None:
        return False
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise ManifestInvalid(f"{_at(path, 'urls')} is {_json_name(urls)}; it must be an array of strings")
    return bool(urls)


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: object) -> str:
    """A value from the document, short enough for a message and safe in any encoding."""
    if isinstance(value, dict | list) or value is None:
        return _json_name(value)
    if isinstance(value, str) and len(value) > SHOWN_LENGTH:
        return f"{value[:SHOWN_LENGTH]!a}…"
    return ascii(value)


def _json_name(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "missing" if value is None else names.get(type(value), "a number")
