"""How a kubelet comes to the credentials of a pull: it asks its exec plugins, then pulls once for each answer.

KEP-2133 (kubelet credential providers), v1 of ``kubelet.config.k8s.io`` and ``credentialprovider.kubelet.k8s.io``. The
laboratory has no kubelet; this is the part of one that the registry notices, so that a node's configuration is tried
the way it will be used.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from sluice.errors import ConfigInvalid, PullFailed, Unavailable
from sluice.lab.cri import PULL_S, Auth, Runtime

CONFIG_API = "kubelet.config.k8s.io/v1"
PLUGIN_API = "credentialprovider.kubelet.k8s.io/v1"
PLUGIN_S = 60.0
"""How long a plugin may take, in seconds; the kubelet's own limit."""
_CACHE_KEYS = ("Image", "Registry", "Global")


def pull_as_kubelet(socket: Path, reference: str, config: Path, plugins: Path, timeout_s: float = PULL_S) -> str:
    """Ask the plugins of ``config`` (programs in ``plugins``) for credentials, and pull with each until one works.

    Returns the image's id. Without any answer it pulls anonymously; with one, never. Raises PullFailed with the last
    reason, and ConfigInvalid or Unavailable where the kubelet would log an error and go on without the plugin: in a
    laboratory that is what one wants to see.
    """
    logins: list[Auth | None] = [*provided(reference, config, plugins)]
    failure: PullFailed | None = None
    with Runtime(socket) as runtime:
        for auth in logins or [None]:
            try:
                return runtime.pull(reference, auth, timeout_s)
            except PullFailed as error:
                failure = error
    assert failure is not None
    raise failure


def provided(reference: str, config: Path, plugins: Path) -> list[Auth]:
    """What the plugins have for an image, the most specific first. Raises ConfigInvalid, Unavailable."""
    repository = repository_of(reference)
    found: list[Auth] = []
    for provider in _providers(config):
        if any(matches(pattern, repository) for pattern in provider["matchImages"]):
            logins = _ask(provider, plugins / provider["name"], repository)
            keys = sorted((key for key in logins if matches(key, repository)), reverse=True)
            found += [Auth(logins[key]["username"], logins[key]["password"]) for key in keys]
    return found


def repository_of(reference: str) -> str:
    """An image's reference without tag and digest, which is what plugins are asked about."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def matches(pattern: str, repository: str) -> bool:
    """Whether ``matchImages`` or a key of an answer means this repository.

    As many domain parts on both sides, each a glob; the port the same; the path a prefix.
    """
    wanted, given = urlsplit(f"https://{pattern}"), urlsplit(f"https://{repository}")
    ours, theirs = (wanted.hostname or "").split("."), (given.hostname or "").split(".")
    return (
        len(ours) == len(theirs)
        and all(fnmatchcase(part, glob) for part, glob in zip(theirs, ours, strict=True))
        and wanted.port == given.port
        and given.path.startswith(wanted.path)
    )


def _providers(config: Path) -> list[dict[str, Any]]:
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    if (document.get("apiVersion"), document.get("kind")) != (CONFIG_API, "CredentialProviderConfig"):
        raise ConfigInvalid(f"{config} is no CredentialProviderConfig of {CONFIG_API}: no kubelet would start with it")
    providers: list[dict[str, Any]] = document["providers"]
    for provider in providers:
        if provider["apiVersion"] != PLUGIN_API:
            raise ConfigInvalid(f"{config}: apiVersion {provider['apiVersion']!r} of {provider['name']} is not known")
    return providers


def _ask(provider: Mapping[str, Any], program: Path, repository: str) -> dict[str, dict[str, str]]:
    request = {"kind": "CredentialProviderRequest", "apiVersion": PLUGIN_API, "image": repository}
    environment = {**os.environ, **{one["name"]: one["value"] for one in provider.get("env") or ()}}
    try:
        done = subprocess.run(
            [str(program), *(provider.get("args") or ())],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=PLUGIN_S,
            env=environment,
            check=False,
        )
    except OSError as error:
        raise Unavailable(f"the kubelet's plugin {program} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"the kubelet's plugin {program} did not end within {PLUGIN_S:g} s") from error
    if done.returncode != 0:
        raise Unavailable(f"the kubelet's plugin {program} failed: {' / '.join(done.stderr.strip().splitlines()[-3:])}")
    return _answer(program, done.stdout)


def _answer(program: Path, said: str) -> dict[str, dict[str, str]]:
    """Read a response as strictly as the kubelet does; what was said is not repeated, for it may hold a password."""
    try:
        document = json.loads(said)
        right = (document["kind"], document["apiVersion"]) == ("CredentialProviderResponse", PLUGIN_API)
        right = right and document["cacheKeyType"] in _CACHE_KEYS
        right = right and set(document) <= {"kind", "apiVersion", "cacheKeyType", "cacheDuration", "auth"}
        logins: dict[str, dict[str, str]] = document.get("auth") or {}
        right = right and all(set(login) == {"username", "password"} for login in logins.values())
    except (ValueError, LookupError, TypeError, AttributeError):
        right = False
    if not right:
        raise Unavailable(
            f"the kubelet's plugin {program} answers what is no CredentialProviderResponse of {PLUGIN_API}"
        )
    return logins
