"""The listeners for nodes, peers and operators: a certificate instead of a password, and a CA for each."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from integration.callers import BLOB, USERS, ask, basic, with_users
from sluice.pki.material import client_authority, client_certificate
from sluice.testing.client import RegistryClient, digest_of
from sluice.testing.server import SluiceServer, free_port

DOORS = ("nodes", "peers", "operators")
AUTHORIZATIONS = (None, basic("root"), basic("root", "wrong"), basic("nobody"), "Bearer x.y.z", "Bearer", "Basic ?")


class House:
    """A server with every door, and certificates for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        now = datetime.now(UTC)
        flags = []
        self.urls = {}
        for name in DOORS:
            leaf = client_certificate(client_authority(folder / name, now), f"one-of-{name}", now)
            (folder / name / "client.crt").write_bytes(leaf.chain_pem)
            (folder / name / "client.key").write_bytes(leaf.key_pem)
            address = f"127.0.0.1:{free_port()}"
            self.urls[name] = f"https://{address}"
            flags += [f"--{name}-listen", address, f"--{name}-ca", str(folder / name / "client-ca.crt")]
        self.server = SluiceServer(with_users(folder / "data", USERS), *flags)

    def context(self, name: str | None) -> ssl.SSLContext:
        """A client's, strict, with the certificate for a door."""
        context = self.server.ssl_context()
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if name is not None:
            context.load_cert_chain(self.folder / name / "client.crt", self.folder / name / "client.key")
        return context

    def client(self, door: str, name: str | None = None) -> httpx.Client:
        """A client of ``door`` with the certificate of ``name``, by default the right one."""
        return httpx.Client(verify=self.context(name or door), base_url=self.urls[door])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A running one, with an image in it."""
    house = House(tmp_path_factory.mktemp("house"))
    with house.server as server:
        client = RegistryClient(server, basic("root"))
        client.push_image("shared", "v1", [BLOB])
        client.close()
        yield house


@pytest.mark.parametrize("door", DOORS)
def test_a_certificate_is_enough(house: House, door: str) -> None:
    """A client of the right CA reads everything without a password."""
    with house.client(door) as client:
        found = [
            client.get(f"/v2/{path}").status_code
            for path in ("", "_catalog", "shared/manifests/v1", "shared/manifests/v1", "shared/tags/list")
        ]
        assert [200] * 5 == found
        assert client.get(f"/v2/shared/blobs/{digest_of(BLOB)}").content == BLOB


@pytest.mark.parametrize(("door", "status"), [("nodes", 403), ("peers", 403), ("operators", 202)])
def test_only_operators_write(house: House, door: str, status: int) -> None:
    """Nodes and peers are refused without being challenged; operators push."""
    with house.client(door) as client:
        answer = client.post("/v2/shared/blobs/uploads/")
        assert (status, None) == (answer.status_code, answer.headers.get("www-authenticate"))


@pytest.mark.parametrize("authorization", AUTHORIZATIONS)
def test_nobody_is_challenged_behind_a_door(house: House, authorization: str | None) -> None:
    """Whatever ``Authorization`` comes along, a node reads the same; there is no 401, on no path and for no method."""
    headers = {} if authorization is None else {"Authorization": authorization}
    paths = ("/v2/", "/v2/shared/manifests/v1", "/v2/absent/manifests/v1", "/v2/shared/blobs/uploads/", "/token", "/x")
    with house.client("nodes") as client:
        found = {
            (method, path): client.request(method, path, headers=headers)
            for path in paths
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE")
        }
    assert {} == {key: one.status_code for key, one in found.items() if one.status_code == 401}
    assert {} == {key: one.status_code for key, one in found.items() if "www-authenticate" in one.headers}
    assert [200, 200] == [found["GET", path].status_code for path in paths[:2]]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("shown", [*DOORS, None])
def test_each_certificate_opens_its_own_door_only(house: House, door: str, shown: str | None) -> None:
    """Behind a door nobody is spoken to without a certificate of its CA, not even with a password."""
    context = house.context(shown)
    with httpx.Client(verify=context, base_url=house.urls[door]) as client:
        if shown == door:
            assert client.get("/v2/").status_code == 200
            return
        with pytest.raises(httpx.TransportError):
            client.get("/v2/", headers={"Authorization": basic("root")})


@pytest.mark.parametrize("protocol", ["-tls1_2", "-tls1_3"])
def test_a_session_of_one_door_opens_no_other(house: House, tmp_path: Path, protocol: str) -> None:
    """TLS resumption skips the certificate: a session begun behind the nodes' door is nothing at the operators'."""
    session = tmp_path / "session"
    folder = house.folder / "nodes"

    def speak(door: str, *options: str) -> str:
        command = [
            "openssl", "s_client", "-connect", house.urls[door].removeprefix("https://"), protocol, "-quiet",
            "-x509_strict", "-verify_return_error", "-CAfile", str(house.server.ca), *options,
        ]  # fmt: skip
        request = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        found = subprocess.run(command, input=request, capture_output=True, timeout=30, check=False)
        return found.stdout.decode().partition("\r\n")[0]

    shown = ["-cert", str(folder / "client.crt"), "-key", str(folder / "client.key")]
    assert speak("nodes", *shown, "-sess_out", str(session)) == "HTTP/1.1 200 OK"
    assert speak("operators", *shown, "-sess_in", str(session)) == ""


def test_curl_passes_with_the_right_certificate(house: House) -> None:
    """Another TLS client than Python's gets in by the same rules."""
    command = ["curl", "-sS", "--cacert", str(house.server.ca), "-o", "/dev/null", "-w", "%{http_code}"]
    found = {}
    for name in DOORS:
        shown = ["--cert", str(house.folder / name / "client.crt"), "--key", str(house.folder / name / "client.key")]
        done = subprocess.run([*command, *shown, f"{house.urls['nodes']}/v2/"], capture_output=True, check=False)
        found[name] = (done.returncode == 0, done.stdout.decode())
    assert {"nodes": (True, "200"), "peers": (False, "000"), "operators": (False, "000")} == found


def test_health_where_the_traffic_is(house: House) -> None:
    """Every listener of the registry says whether it lives and can be read, and nothing else of the operations."""
    with httpx.Client(verify=house.context("nodes")) as client:
        for url in (house.server.url, house.urls["nodes"]):
            found = {path: client.get(f"{url}{path}") for path in ("/livez", "/readyz", "/metrics", "/readyz/")}
            assert {"/livez": 200, "/readyz": 200, "/metrics": 404, "/readyz/": 404} == {
                path: one.status_code for path, one in found.items()
            }
            assert found["/readyz"].text == "ok\n"


def test_main_listener_asks_for_no_certificate(house: House) -> None:
    """On the main listener nothing has changed: a password is needed, and a certificate is none."""
    assert ask(house.server, "GET", "shared/manifests/v1", basic("reader")).status == 200
    with httpx.Client(verify=house.context("operators"), base_url=house.server.url) as client:
        assert client.get("/v2/shared/manifests/v1").status_code == 401


def test_doors_with_the_same_authority_are_refused(tmp_path: Path) -> None:
    """One CA for two doors would let each one's clients through both: the server does not start, and says why."""
    ca = client_authority(tmp_path / "ca", datetime.now(UTC)).path
    again = shutil.copy(ca, tmp_path / "again.crt")
    server = SluiceServer(
        tmp_path / "data",
        *("--nodes-listen", f"127.0.0.1:{free_port()}", "--nodes-ca", str(ca)),
        *("--operators-listen", f"127.0.0.1:{free_port()}", "--operators-ca", str(again)),
    )
    with pytest.raises(AssertionError, match=r"operators\.ca .* has a CA that nodes\.ca has too"), server:
        pass
