"""The error tree: what can go wrong, what the client is told, and whether trying again can help.

Lowest layer; everything may import it. A class knows its code from the OCI Distribution Specification 1.1
("Error Codes") and its HTTP status; ``server.app`` is the only place that turns an instance into a response
(through ``wire.problem``), ``cli`` the only place that turns one into a line on stderr and an exit code.
"""

from __future__ import annotations

from typing import ClassVar


class SluiceError(Exception):
    """Superclass of everything Sluice raises on purpose. Never raised itself.

    ``message`` names the thing, its value and the remedy in one sentence fit for a person.
    ``detail`` is JSON-serialisable material for a program (the spec's ``detail`` member).
    """

    code: ClassVar[str] = "UNKNOWN"
    status: ClassVar[int] = 500
    temporary: ClassVar[bool] = False
    retry_after_s: int | None = None

    def __init__(self, message: str, *, detail: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class ConfigInvalid(SluiceError):
    """A configuration value, flag or environment variable is wrong. CLI exit code 2."""

    code = "CONFIG_INVALID"
    status = 400


class DataDirectoryBusy(SluiceError):
    """Another process holds the data directory; the message names its PID."""

    code = "DATA_DIRECTORY_BUSY"
    status = 503


class DataDirectoryTooNew(SluiceError):
    """The data directory was written by a newer version of Sluice; the message says how to go on."""

    code = "DATA_DIRECTORY_TOO_NEW"
    status = 503


class RotationUnsafe(SluiceError):
    """A step of an authority's rotation would make somebody be refused; the message names who, and what to do first."""

    code = "ROTATION_UNSAFE"
    status = 409


class StoreDamaged(SluiceError):
    """Held content turned out missing or wrong on disk. The reader gets an error, never other bytes."""

    code = "UNKNOWN"
    status = 500


class BlobUnknown(SluiceError):
    """The blob is not held, or not readable in this repository."""

    code = "BLOB_UNKNOWN"
    status = 404


class UploadInvalid(SluiceError):
    """The upload request makes no sense in the session's state."""

    code = "BLOB_UPLOAD_INVALID"
    status = 400


class UploadRangeInvalid(SluiceError):
    """A chunk does not start where the session stands. ``offset`` is where it stands, in bytes."""

    code = "BLOB_UPLOAD_INVALID"
    status = 416

    def __init__(self, message: str, *, offset: int, detail: object = None) -> None:
        super().__init__(message, detail=detail)
        self.offset = offset


class UploadUnknown(SluiceError):
    """No such upload session in this repository."""

    code = "BLOB_UPLOAD_UNKNOWN"
    status = 404


class TooManyUploads(SluiceError):
    """``limits.uploads`` sessions are open already."""

    code = "TOOMANYREQUESTS"
    status = 429
    temporary = True
    retry_after_s = 5


class DigestInvalid(SluiceError):
    """A digest is malformed, of an unknown algorithm, or not that of the bytes."""

    code = "DIGEST_INVALID"
    status = 400


class ManifestBlobUnknown(SluiceError):
    """A manifest names content that this repository does not hold. ``detail`` lists the digests."""

    code = "MANIFEST_BLOB_UNKNOWN"
    status = 404


class ManifestInvalid(SluiceError):
    """The manifest cannot be understood, or contradicts itself or its media type."""

    code = "MANIFEST_INVALID"
    status = 400


class ManifestUnknown(SluiceError):
    """No such manifest or tag in this repository."""

    code = "MANIFEST_UNKNOWN"
    status = 404


class NameInvalid(SluiceError):
    """A repository name or tag breaks the spec's grammar or our length limit."""

    code = "NAME_INVALID"
    status = 400


class NameUnknown(SluiceError):
    """No such repository."""

    code = "NAME_UNKNOWN"
    status = 404


class RouteUnknown(SluiceError):
    """The path is none of the API's."""

    code = "UNSUPPORTED"
    status = 404


class MethodNotAllowed(SluiceError):
    """The path exists, the method does not. ``allow`` is the value for the ``Allow`` header."""

    code = "UNSUPPORTED"
    status = 405

    def __init__(self, message: str, *, allow: str, detail: object = None) -> None:
        super().__init__(message, detail=detail)
        self.allow = allow


class RequestInvalid(SluiceError):
    """A header or query parameter is malformed."""

    code = "UNSUPPORTED"
    status = 400


class SizeInvalid(SluiceError):
    """A length is wrong or contradicts the bytes that came."""

    code = "SIZE_INVALID"
    status = 400


class BodyTooLarge(SluiceError):
    """A body exceeds its named limit."""

    code = "SIZE_INVALID"
    status = 413


class HeadTooLarge(SluiceError):
    """A request's header fields exceed their named limit (RFC 6585 section 5)."""

    code = "SIZE_INVALID"
    status = 431


class RangeNotSatisfiable(SluiceError):
    """RFC 9110 section 14.4. ``size`` is the whole length in bytes, for ``Content-Range: bytes */size``."""

    code = "SIZE_INVALID"
    status = 416

    def __init__(self, message: str, *, size: int, detail: object = None) -> None:
        super().__init__(message, detail=detail)
        self.size = size


class RequestTimeout(SluiceError):
    """The client stopped sending for longer than ``limits.body_idle_s``."""

    code = "UNSUPPORTED"
    status = 408


class Unauthorized(SluiceError):
    """Who is asking is unknown or unproven. ``challenge`` is the value for ``WWW-Authenticate``."""

    code = "UNAUTHORIZED"
    status = 401

    def __init__(self, message: str, *, challenge: str, detail: object = None) -> None:
        super().__init__(message, detail=detail)
        self.challenge = challenge


class Denied(SluiceError):
    """Who is asking is known, and may not."""

    code = "DENIED"
    status = 403


class TooManyRequests(SluiceError):
    """A named limit on requests is reached (password checks waiting, for one)."""

    code = "TOOMANYREQUESTS"
    status = 429
    temporary = True
    retry_after_s = 1


class StorageFull(SluiceError):
    """No room for the write: the disk is full or at ``storage.reserve``. Reads go on."""

    code = "UNAVAILABLE"
    status = 507
    temporary = True
    retry_after_s = 30


class ImageKept(SluiceError):
    """An image cannot be taken out of the cache now: it is pinned, protected, in use or was pushed here."""

    code = "DENIED"
    status = 409


class Unavailable(SluiceError):
    """The server is stopping or cannot serve just now."""

    code = "UNAVAILABLE"
    status = 503
    temporary = True
    retry_after_s = 5


class PullFailed(SluiceError):
    """A node's runtime could not pull an image. ``detail["reason"]`` is what the runtime said."""

    code = "UNAVAILABLE"
    status = 502
    temporary = True


class GcRunning(SluiceError):
    """Garbage collection of this store runs already; one at a time."""

    code = "DENIED"
    status = 409


class NodeRefused(SluiceError):
    """Something stands in the way of changing a node's files; nothing was changed. ``detail`` lists what and where."""

    code = "DENIED"
    status = 409


class NodeHalfway(SluiceError):
    """A change of a node's files broke off, and could not be taken back either. The next start ends it."""

    status = 500


class UpstreamError(SluiceError):
    """The upstream could not be asked, or its answer is no good. Superclass of what follows; never raised itself.

    It says nothing about whether the content exists: an upstream's true 404 is NameUnknown, ManifestUnknown or
    BlobUnknown. ``reason`` is one word for metrics and for the caller that may serve what it holds instead.
    ``connected``: a connection stood when it happened. ``elsewhere``: it happened at a host that the upstream had sent
    us to.
    """

    code = "UNAVAILABLE"
    status = 502
    temporary = True
    reason: ClassVar[str] = "failed"
    connected = False
    elsewhere = False


class UpstreamUnreachable(UpstreamError):
    """No connection: name resolution failed, refused, no route, or it broke before the answer's head."""

    reason = "unreachable"


class UpstreamTlsFailed(UpstreamError):
    """Its certificate is not trusted, or the handshake failed. Trying again does not help."""

    temporary = False
    reason = "tls"


class UpstreamTimeout(UpstreamError):
    """It did not connect, answer or go on within its named limit."""

    status = 504
    reason = "timeout"


class UpstreamFailed(UpstreamError):
    """It answered 5xx, or broke off in the middle of a body."""

    reason = "failed"


class UpstreamUnauthorized(UpstreamError):
    """It does not accept our credentials (401 or 403), or its token endpoint does not."""

    temporary = False
    reason = "unauthorized"


class UpstreamRateLimited(UpstreamError):
    """It answered 429. ``retry_after_s`` is what it asked for, in seconds."""

    code = "TOOMANYREQUESTS"
    status = 503
    reason = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: int | None = None, detail: object = None) -> None:
        super().__init__(message, detail=detail)
        self.retry_after_s = retry_after_s


class UpstreamInvalid(UpstreamError):
    """Its answer cannot be right: other bytes than the digest says, a wrong length, a page instead of a manifest, a
    redirect that must not be followed."""

    temporary = False
    reason = "invalid"


class UpstreamLoop(UpstreamError):
    """The upstream is this very server, directly or through others. 508 tells the one before us so, too."""

    status = 508
    temporary = False
    reason = "loop"
