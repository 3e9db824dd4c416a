"""``sluice-credential-provider``: tells the kubelet the upstream's login for images of the virtual address.

The kubelet runs it for each pull (credentialprovider.kubelet.k8s.io/v1): a request as JSON on standard input, the
answer on standard output. ``secret_files`` writes the login, ``kubelet`` the configuration with its path. No login,
or an image of another registry, is an answer without credentials; what cannot be read is a sentence and exit code 1,
after which the kubelet pulls without. Only the standard library is imported: each pull waits for the start of this
program.
"""

from __future__ import annotations

import json
import sys
from typing import BinaryIO

PROTOCOL_VERSION = "credentialprovider.kubelet.k8s.io/v1"
INPUT_BYTES_MAX = 1 << 20
"""Bytes of a request, which may hold a service account's token, and of the login's file."""
USAGE = (
    "usage: sluice-credential-provider FILE: the upstream's login, as `sluice node apply` writes it; run by the kubelet"
)


class Refused(Exception):
    """The sentence for standard error. It never shows what a file or a request holds: both have secrets."""


def main() -> int:
    """Entry point: exit code 0, 1 (something is wrong with the request or the login) or 2 (usage)."""
    arguments = sys.argv[1:]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(USAGE, file=sys.stdout if arguments == ["--help"] else sys.stderr)
        return 0 if arguments == ["--help"] else 2
    try:
        image = read_image(_read(sys.stdin.buffer, "the request"))
        login = _load(arguments[0])
        print(json.dumps(answer(image, login)), flush=True)
    except Refused as refused:
        print(f"sluice-credential-provider: {refused}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"sluice-credential-provider: cannot answer: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def read_image(raw: bytes) -> str:
    """The image that the kubelet asks about; raises Refused."""
    request = _parse(raw, "the request")
    for key, wanted in (("apiVersion", PROTOCOL_VERSION), ("kind", "CredentialProviderRequest")):
        if request.get(key) != wanted:
            raise Refused(f"the request's {key} is {ascii(request.get(key))[:80]}: only {wanted} is understood")
    image = request.get("image")
    if not isinstance(image, str) or not image:
        raise Refused("the request names no image")
    return image


def answer(image: str, login: dict[str, str] | None) -> dict[str, object]:
    """The response: credentials where the image is the virtual address's, and none to be kept in any case."""
    auth: dict[str, object] = {}
    if login is not None and image.partition("/")[0] == login["virtual"]:
        auth[login["virtual"]] = {"username": login["user"], "password": login["password"]}
    return {
        "apiVersion": PROTOCOL_VERSION,
        "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry",
        "cacheDuration": "0s",
        "auth": auth,
    }


def _load(path: str) -> dict[str, str] | None:
    """The login; None where there is none, which is so in every mode but Direct. Raises Refused."""
    try:
        with open(path, "rb") as file:
            document = _parse(_read(file, path), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(
            f"{path} cannot be read: {error.strerror}: it belongs to root, whom the kubelet runs as"
        ) from None
    keys = ("virtual", "user", "password")
    login = {key: value for key in keys if isinstance(value := document.get(key), str) and value}
    if len(login) != len(keys):
        raise Refused(f"{path} has no {', '.join(key for key in keys if key not in login)}: run sluice node apply")
    return login


def _read(file: BinaryIO, name: str) -> bytes:
    raw = file.read(INPUT_BYTES_MAX + 1)
    if len(raw) > INPUT_BYTES_MAX:
        raise Refused(f"{name} has more than {INPUT_BYTES_MAX} bytes")
    return raw


def _parse(raw: bytes, name: str) -> dict[str, object]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused(f"{name} is no JSON") from None
    if not isinstance(document, dict):
        raise Refused(f"{name} is no JSON object")
    return document


if __name__ == "__main__":
    sys.exit(main())
