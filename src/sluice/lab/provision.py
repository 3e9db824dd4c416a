"""What each machine of a laboratory is given before it starts: certificates, configuration, layout and secrets.

Files only, written below the laboratory's directory; nothing runs yet. The upstream, which is somebody else's, has an
authority of its own.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

import bcrypt
import yaml

from sluice.cluster.documents import validate_document
from sluice.cluster.layout import REPLICA_PORT, Login
from sluice.cluster.values import read_certificates
from sluice.config import RegistryConfig
from sluice.config.reading import PIPE_S
from sluice.errors import ConfigInvalid
from sluice.lab.credentials import TLS_FOLDER, cluster_pki, hand_to_node, hand_to_replica, tls_files
from sluice.lab.layouts import node_layout, upstream_address
from sluice.lab.mounts import data_of
from sluice.lab.state import LabDirectory
from sluice.lab.topology import OPERATIONS_PORT, PUBLIC_PORT, UPSTREAM_PORT, Machine, Topology
from sluice.pki.authority import PEM_BYTES_MAX, Authority, open_authority
from sluice.pki.cluster import Purpose
from sluice.pki.durable import make_directory, read_bounded, write_durably
from sluice.pki.leaf import issue_server, parse_names
from sluice.pki.placing import AUTHORITY, place
from sluice.server.users import Role, Users

UPSTREAM_USER = "puller"
PUSHER = "pusher"
"""Who may write to replicas at their public door; everybody may read there."""
REGISTRY_NAME = "registry.yaml"
PASSWORD_NAME, USERS_NAME, UPSTREAM_CA_NAME = "upstream-password", "htpasswd", "upstream-ca.crt"
PUSHER_NAME = "pusher-password"
HASH_COST = 4
"""Of passwords that nobody guesses: the fewest rounds there are, since each is checked again and again."""
RESERVE_BYTES = 16 << 20
"""What a replica never fills of its disk; small, since the disk is."""


def provision(directory: LabDirectory, topology: Topology) -> None:
    """Write everything. Raises StorageFull or ConfigInvalid."""
    now = datetime.now(UTC)
    pki, upstream_pki = cluster_pki(directory, now), _upstream_authority(directory, now)
    login, upstream_ca = _login(topology), _upstream_ca(topology, upstream_pki)
    for machine in topology.machines:
        make_directory(directory.machine(machine))
    if topology.shape.outside is None:
        _provision_upstream(directory.machine(topology.upstream), topology, upstream_pki, login, now)
    for machine in topology.control_planes:
        if upstream_ca is not None:
            (directory.machine(machine) / UPSTREAM_CA_NAME).write_text(upstream_ca, encoding="ascii")
        hand_to_replica(directory, machine, pki, now)
        _provision_replica(directory.machine(machine), machine, topology)
        _provision_users(directory.machine(machine))
    for machine in topology.nodes:
        home = directory.machine(machine)
        layout = node_layout(topology, machine, pki.bundle(Purpose.SERVERS), upstream_ca)
        hand_to_node(home, pki, layout, login, now)
        if login is not None:
            write_durably(home / PASSWORD_NAME, f"{login.password}\n".encode())


def read_pusher(directory: LabDirectory, machine: Machine) -> Login:
    """Who may push to a replica."""
    return Login(user=PUSHER, password=(directory.machine(machine) / PUSHER_NAME).read_text(encoding="utf-8").strip())


def _login(topology: Topology) -> Login | None:
    """A user of the upstream: the one that was given, or one that is made; None where nobody is asked for one."""
    outside = topology.shape.outside
    if outside is not None and outside.user is not None and outside.password_file is not None:
        lines = (
            (read_bounded(outside.password_file, PEM_BYTES_MAX, pipe_s=PIPE_S) or b"")
            .decode("utf-8", "replace")
            .splitlines()
        )
        return validate_document(
            Login, {"user": outside.user, "password": lines[0] if lines else ""}, str(outside.password_file)
        )
    if topology.shape.upstream == "anonymous":
        return None
    return Login(user=UPSTREAM_USER, password=secrets.token_urlsafe(18))


def _upstream_authority(directory: LabDirectory, now: datetime) -> Authority:
    return open_authority(directory.pki / "upstream", "ca", "Sluice laboratory: upstream", now)


def _upstream_ca(topology: Topology, authority: Authority) -> str | None:
    """Who vouches for the upstream beside the system's authorities; PEM."""
    outside = topology.shape.outside
    if outside is None:
        return authority.path.read_text(encoding="ascii")
    if outside.ca is None:
        return None
    pem = read_bounded(outside.ca, PEM_BYTES_MAX, pipe_s=PIPE_S)
    if pem is None:
        raise ConfigInvalid(f"--upstream-ca {outside.ca} does not exist: name the PEM file with the upstream's CA")
    try:
        return read_certificates(pem.decode("ascii", "replace"))
    except ValueError as error:
        raise ConfigInvalid(f"--upstream-ca {outside.ca} {error}") from None


def read_login(directory: LabDirectory, topology: Topology) -> Login | None:
    """The upstream's user, as it was written."""
    if topology.shape.upstream == "anonymous":
        return _login(topology)
    password = (directory.machine(topology.upstream) / PASSWORD_NAME).read_text(encoding="utf-8").strip()
    return Login(user=UPSTREAM_USER, password=password)


def _provision_upstream(
    home: Path, topology: Topology, authority: Authority, login: Login | None, now: datetime
) -> None:
    machine = topology.upstream
    leaf = issue_server(authority, parse_names((machine.address, "localhost")), now)
    place(home / TLS_FOLDER, leaf.chain_pem.decode(), leaf.key_pem.decode(), authority.path.read_text(encoding="ascii"))
    make_directory(home / "data")
    if login is not None:
        write_durably(home / PASSWORD_NAME, f"{login.password}\n".encode())
    if topology.shape.upstream == "bearer":
        assert login is not None
        Users(home / "data", cost=HASH_COST).add(login.user, login.password, Role.WRITE)
        _write_registry(
            home,
            RegistryConfig.model_validate(
                {
                    "mode": "local",
                    "data": f"{machine.home}/data",
                    "listen": f"{machine.address}:{UPSTREAM_PORT}",
                    "operations_listen": f"127.0.0.1:{OPERATIONS_PORT}",
                    "tls": tls_files(machine),
                }
            ),
        )
    else:
        write_durably(home / REGISTRY_NAME, yaml.safe_dump(_distribution(machine, login)).encode())
        if login is not None:
            write_durably(home / USERS_NAME, _htpasswd(login))


def _provision_users(home: Path) -> None:
    """The replica's users, which are copied to its disk as soon as it has one."""
    password = secrets.token_urlsafe(18)
    make_directory(home / "users")
    Users(home / "users", cost=HASH_COST).add(PUSHER, password, Role.WRITE)
    write_durably(home / PUSHER_NAME, f"{password}\n".encode())


def _provision_replica(home: Path, machine: Machine, topology: Topology) -> None:
    document: dict[str, object] = {
        "mode": topology.shape.mode,
        "data": data_of(machine),
        "listen": f"{machine.address}:{PUBLIC_PORT}",
        "nodes": {"listen": f"{machine.address}:{REPLICA_PORT}", "ca": f"{machine.home}/{TLS_FOLDER}/{AUTHORITY}"},
        "operations_listen": f"127.0.0.1:{OPERATIONS_PORT}",
        "tls": tls_files(machine),
        "access": {"anonymous_pull": True},
        "storage": {"reserve_bytes": RESERVE_BYTES},
    }
    if topology.shape.mode != "local":
        document["upstream"] = _upstream_section(home, machine, topology)
    _write_registry(home, RegistryConfig.model_validate(document))


def _upstream_section(home: Path, machine: Machine, topology: Topology) -> dict[str, object]:
    outside, section = topology.shape.outside, {"address": upstream_address(topology)}
    if (home / UPSTREAM_CA_NAME).exists():
        section["ca"] = f"{machine.home}/{UPSTREAM_CA_NAME}"
    user = UPSTREAM_USER if outside is None else outside.user
    if user is not None and (outside is not None or topology.shape.upstream != "anonymous"):
        section |= {"user": user, "password_file": f"{machine.home}/{PASSWORD_NAME}"}
    return {**section, "proxy": topology.relay_url} if outside is not None else {**section}


def _write_registry(home: Path, config: RegistryConfig) -> None:
    value = config.model_dump(mode="json", exclude_defaults=True)
    write_durably(home / REGISTRY_NAME, yaml.safe_dump(value, sort_keys=False).encode())


def _distribution(machine: Machine, login: Login | None) -> dict[str, object]:
    """The configuration of Debian's docker-registry (distribution 2.8, ``docs/configuration.md``)."""
    secret = secrets.token_hex(16)
    document: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": f"{machine.home}/data"}, "delete": {"enabled": True}},
        "http": {
            "addr": f"{machine.address}:{UPSTREAM_PORT}",
            "tls": tls_files(machine),
            "secret": secret,
        },
    }
    if login is not None:
        document["auth"] = {"htpasswd": {"realm": "laboratory", "path": f"{machine.home}/{USERS_NAME}"}}
    return document


def _htpasswd(login: Login) -> bytes:
    return f"{login.user}:{bcrypt.hashpw(login.password.encode(), bcrypt.gensalt(HASH_COST)).decode()}\n".encode()
