"""Real clients against a running server: skopeo, containerd, podman and buildah; Docker by what it sends.

Every client works in directories of its own and is over when its test is: nothing of the machine's is touched.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration import layouts
from integration.callers import BLOB, USERS, ask, basic, with_users
from integration.runtimes import containerd_before, pull_and_run
from integration.samples import EMPTY_CONFIG, artifact_of, docker_image, encoded
from sluice.lab.containerd import Containerd
from sluice.lab.images import build_image
from sluice.oci.mediatype import DOCKER_LIST, DOCKER_MANIFEST
from sluice.testing.client import OCI_INDEX, OCTETS, RegistryClient, digest_of
from sluice.testing.server import SluiceServer

CLIENT_S = 120.0
NAME_IN_CLUSTER = "registry.sluice.internal:5001"
SBOM = "application/vnd.example.sbom+json"


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip where a program is missing; ``make test`` installs them all."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def run(*command: object, fails: bool = False) -> str:
    """Run a client to its end; its output."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CLIENT_S,
        check=False,
    )
    assert fails == (done.returncode != 0), f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stderr if fails else done.stdout


@pytest.fixture
def certificates(server: SluiceServer, tmp_path: Path) -> Path:
    """A directory with the CA alone, as these clients want it."""
    return trusted(server, tmp_path / "certificates")


def trusted(server: SluiceServer, directory: Path) -> Path:
    directory.mkdir()
    shutil.copyfile(server.ca, directory / "ca.crt")
    return directory


def name_of(server: SluiceServer, repository: str, tag: str = "v1") -> str:
    """How clients call an image of this server."""
    return f"127.0.0.1:{server.port}/{repository}:{tag}"


@needs("skopeo")
def test_skopeo_keeps_every_digest(server: SluiceServer, repository: str, certificates: Path, tmp_path: Path) -> None:
    """An image of several platforms goes in and comes out again byte for byte, and from repository to repository."""
    digest = layouts.multi_platform(tmp_path / "in", "v1")
    copy = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "-q"]
    certs = ["--src-cert-dir", certificates, "--dest-cert-dir", certificates]
    first, second = name_of(server, repository), name_of(server, f"{repository}/copy")
    run(*copy, *certs, f"oci:{tmp_path / 'in'}:v1", f"docker://{first}")
    run(*copy, *certs, f"docker://{first}", f"docker://{second}")
    run(*copy, *certs, f"docker://{second}", f"oci:{tmp_path / 'out'}:v1")
    assert layouts.contents(tmp_path / "in") == layouts.contents(tmp_path / "out")
    assert [digest] == layouts.named(tmp_path / "out")
    client = RegistryClient(server)
    assert client.request("HEAD", f"/v2/{repository}/manifests/v1").headers["docker-content-digest"] == digest
    client.close()


@needs("skopeo")
def test_skopeo_as_docker_schema_2(server: SluiceServer, repository: str, certificates: Path, tmp_path: Path) -> None:
    """The same image pushed as Docker's format is a list over schema 2 images here."""
    layouts.multi_platform(tmp_path / "in", "v1")
    copy = ["skopeo", "--insecure-policy", "copy", "--all", "-q", "--format", "v2s2", "--dest-cert-dir", certificates]
    run(*copy, f"oci:{tmp_path / 'in'}:v1", f"docker://{name_of(server, repository)}")
    client = RegistryClient(server)
    found = client.request("GET", f"/v2/{repository}/manifests/v1")
    images = [
        client.request("GET", f"/v2/{repository}/manifests/{entry['digest']}") for entry in found.json["manifests"]
    ]
    client.close()
    assert DOCKER_LIST == found.headers["content-type"]
    assert [DOCKER_MANIFEST] * len(layouts.PLATFORMS) == [image.headers["content-type"] for image in images]


@needs("skopeo")
def test_skopeo_looks_and_deletes(server: SluiceServer, repository: str, certificates: Path, tmp_path: Path) -> None:
    """inspect, list-tags and delete find what was pushed, and delete makes it unknown."""
    layouts.multi_platform(tmp_path / "in", "v1")
    image, certs = f"docker://{name_of(server, repository)}", ["--cert-dir", certificates]
    copy = ["skopeo", "--insecure-policy", "copy", "--all", "-q", "--dest-cert-dir", certificates]
    for tag in ("v1", "v2"):
        run(*copy, f"oci:{tmp_path / 'in'}:v1", f"docker://{name_of(server, repository, tag)}")
    inspected = json.loads(run("skopeo", "inspect", *certs, "--override-arch", "arm64", image))
    assert ("arm64", ["v1", "v2"], 3) == (inspected["Architecture"], inspected["RepoTags"], len(inspected["Layers"]))
    untagged = image.removesuffix(":v1")
    assert ["v1", "v2"] == json.loads(run("skopeo", "list-tags", *certs, untagged))["Tags"]
    run("skopeo", "delete", *certs, image)
    run("skopeo", "inspect", *certs, image, fails=True)


@needs("skopeo")
def test_skopeo_logs_in(tmp_path: Path) -> None:
    """Where users are configured, skopeo gets tokens with --creds or after login, and nothing without."""
    data = with_users(tmp_path / "data", USERS)
    with SluiceServer(data) as server:
        certs = trusted(server, tmp_path / "certificates")
        layouts.multi_platform(tmp_path / "in", "v1")
        image, login = f"docker://{name_of(server, 'team/app')}", f"127.0.0.1:{server.port}"
        copy = ["skopeo", "--insecure-policy", "copy", "--all", "-q", "--dest-cert-dir", certs]
        refused = run(*copy, f"oci:{tmp_path / 'in'}:v1", image, fails=True)
        assert "unauthorized" in refused.lower() or "authentication required" in refused.lower()
        run(*copy, "--dest-creds", "reader:secret", f"oci:{tmp_path / 'in'}:v1", image, fails=True)
        run(*copy, "--dest-creds", "team:secret", f"oci:{tmp_path / 'in'}:v1", image)
        state = ["--authfile", tmp_path / "auth.json"]
        run("skopeo", "login", *state, "--cert-dir", certs, "-u", "app", "-p", "wrong", login, fails=True)
        run("skopeo", "login", *state, "--cert-dir", certs, "-u", "app", "-p", "secret", login)
        assert "v1" in run("skopeo", "list-tags", *state, "--cert-dir", certs, image.removesuffix(":v1"))


@pytest.fixture(scope="module")
def containerd(server: SluiceServer) -> Iterator[Containerd]:
    """An unpatched containerd that finds the constant name at this server; nothing of it is left."""
    with containerd_before(server, NAME_IN_CLUSTER) as running:
        yield running


@needs_root
@needs("skopeo", "containerd", "ctr", "runc", "busybox")
def test_containerd_pulls_by_tag_and_digest_and_runs(
    server: SluiceServer, containerd: Containerd, repository: str, certificates: Path, tmp_path: Path
) -> None:
    """What skopeo pushed is pulled under the constant name by tag and by digest, and runs."""
    digest = build_image(tmp_path / "image", Path(shutil.which("busybox") or ""), "v1")
    copy = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "-q", "--dest-cert-dir", certificates]
    run(*copy, f"oci:{tmp_path / 'image'}:v1", f"docker://{name_of(server, repository)}")
    for reference in (":v1", f"@{digest}"):
        said = pull_and_run(containerd, f"{NAME_IN_CLUSTER}/{repository}{reference}")
        assert "every byte came out of Sluice" in said


@pytest.fixture
def storage() -> Iterator[list[str]]:
    """Options for podman and buildah: storage of one's own, which needs no mounts and is gone afterwards."""
    # podman takes no runroot of more than 50 characters, so the directory has a short name.
    home = tempfile.mkdtemp(prefix="sluice-")
    yield ["--root", f"{home}/root", "--runroot", f"{home}/run", "--storage-driver", "vfs"]
    shutil.rmtree(home)


@needs_root
@needs("skopeo", "podman")
def test_podman_pulls(
    server: SluiceServer, repository: str, certificates: Path, storage: list[str], tmp_path: Path
) -> None:
    """podman pulls by tag and by digest, and has the image's layers afterwards."""
    digest = layouts.multi_platform(tmp_path / "in", "v1")
    copy = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "-q", "--dest-cert-dir", certificates]
    run(*copy, f"oci:{tmp_path / 'in'}:v1", f"docker://{name_of(server, repository)}")
    podman = ["podman", *storage, "--tmpdir", tmp_path / "podman"]
    names = [name_of(server, repository), f"127.0.0.1:{server.port}/{repository}@{digest}"]
    for name in names:
        run(*podman, "pull", "-q", "--arch", "amd64", "--cert-dir", certificates, name)
    found = json.loads(run(*podman, "inspect", "--type", "image", names[0]))[0]
    assert ("amd64", layouts.LAYERS) == (found["Architecture"], len(found["RootFS"]["Layers"]))


@needs_root
@needs("buildah")
def test_buildah_pushes_what_it_built(
    server: SluiceServer, repository: str, certificates: Path, storage: list[str], tmp_path: Path
) -> None:
    """An image that buildah builds is pushed, and its layer can be read and holds the file."""
    (tmp_path / "hello").write_text("built here")
    buildah, image = ["buildah", *storage], name_of(server, repository)
    container = run(*buildah, "from", "scratch").strip()
    run(*buildah, "copy", "-q", container, tmp_path / "hello", "/hello")
    run(*buildah, "commit", "-q", container, image)
    run(*buildah, "push", "-q", "--cert-dir", certificates, image, f"docker://{image}")
    run(*buildah, "rm", container)
    client = RegistryClient(server)
    layers = client.request("GET", f"/v2/{repository}/manifests/v1").json["layers"]
    pulled = [client.request("GET", f"/v2/{repository}/blobs/{layer['digest']}").body for layer in layers]
    client.close()
    assert [layer["digest"] for layer in layers] == [digest_of(data) for data in pulled]
    with tarfile.open(fileobj=io.BytesIO(pulled[0])) as tar:
        file = tar.extractfile("hello")
        assert file is not None
        assert (1, b"built here") == (len(pulled), file.read())


@needs("skopeo")
def test_artifact_is_listed_for_what_skopeo_pushed(
    server: SluiceServer, client: RegistryClient, repository: str, certificates: Path, tmp_path: Path
) -> None:
    """An artifact pushed for an index that a client pushed is found by the index's digest and type."""
    digest = layouts.multi_platform(tmp_path / "in", "v1")
    copy = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "-q", "--dest-cert-dir", certificates]
    run(*copy, f"oci:{tmp_path / 'in'}:v1", f"docker://{name_of(server, repository)}")
    client.push_blob(repository, EMPTY_CONFIG)
    size = len(client.request("GET", f"/v2/{repository}/manifests/v1").body)
    document = {**artifact_of(None, SBOM), "subject": {"mediaType": OCI_INDEX, "digest": digest, "size": size}}
    pushed = client.push_manifest(repository, digest_of(encoded(document)), document)
    found = client.request("GET", f"/v2/{repository}/referrers/{digest}?artifactType={SBOM}").json["manifests"]
    assert [(pushed, SBOM)] == [(entry["digest"], entry["artifactType"]) for entry in found]


def docker_token(server: SluiceServer, user: str, repository: str, actions: str) -> str:
    """What docker does after ``docker login``: challenge, then a token with Basic credentials; ``Authorization``."""
    refused = ask(server, "GET", "")
    realm = re.search(r'realm="https://127\.0\.0\.1:\d+(/[^"]*)"', refused.headers["www-authenticate"])
    assert realm is not None
    query = (
        f"account={user}&client_id=docker&offline_token=true&service=sluice&scope=repository%3A{repository}%3A{actions}"
    )
    client = RegistryClient(server, basic(user))
    answer = client.request("GET", f"{realm[1]}?{query}")
    client.close()
    return f"Bearer {answer.json['token']}"


def test_docker_pushes_and_pulls_by_its_protocol(tmp_path: Path) -> None:
    """The requests of docker push and docker pull: token, HEAD, POST, chunked PATCH, PUT, schema 2, GETs."""
    data = with_users(tmp_path / "data", USERS)
    accept = {"Accept": ", ".join((DOCKER_MANIFEST, DOCKER_LIST, OCI_INDEX, "*/*")), "User-Agent": "docker/27.0"}
    with SluiceServer(data) as server:
        pusher = RegistryClient(server, docker_token(server, "writer", "app", "push%2Cpull"))
        assert pusher.request("HEAD", f"/v2/app/blobs/{digest_of(BLOB)}").status == 404
        started = pusher.request("POST", "/v2/app/blobs/uploads/", headers={"Content-Length": "0"})
        path = started.headers["location"]
        patched = pusher.request("PATCH", path, iter([BLOB[:3], BLOB[3:]]), {"Content-Type": OCTETS})
        assert (202, f"0-{len(BLOB) - 1}") == (patched.status, patched.headers["range"])
        put = pusher.request("PUT", f"{patched.headers['location']}?digest=sha256%3A{digest_of(BLOB)[7:]}", b"")
        assert (201, digest_of(BLOB)) == (put.status, put.headers["docker-content-digest"])
        manifest = docker_image(pusher, "app")
        digest = pusher.push_manifest("app", "v1", manifest, DOCKER_MANIFEST)
        pusher.close()
        puller = RegistryClient(server, docker_token(server, "reader", "app", "pull"))
        head = puller.request("HEAD", "/v2/app/manifests/v1", headers=accept)
        assert (DOCKER_MANIFEST, digest) == (head.headers["content-type"], head.headers["docker-content-digest"])
        assert manifest == puller.request("GET", f"/v2/app/manifests/{digest}", headers=accept).json
        for entry in (manifest["config"], *manifest["layers"]):
            assert digest_of(puller.request("GET", f"/v2/app/blobs/{entry['digest']}").body) == entry["digest"]
        puller.close()
