"""What each machine of a laboratory is given before it starts: certificates, configuration, layout and secrets.

Files only, written below the laboratory's directory; nothing runs yet. Each replica and each node has a certificate of
its own; servers and nodes have an authority each, and the upstream, which is somebody else's, has another.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import bcrypt
import yaml

from sluice.cluster.documents import dump_document, validate_document
from sluice.cluster.layout import REPLICA_PORT, Login, NodeSecrets
from sluice.config import RegistryConfig
from sluice.errors import ConfigInvalid
from sluice.lab.layouts import node_layout, upstream_address
from sluice.lab.mounts import data_of
from sluice.lab.state import LabDirectory
from sluice.lab.topology import OPERATIONS_PORT, PUBLIC_PORT, UPSTREAM_PORT, Machine, Topology
from sluice.pki.authority import PEM_BYTES_MAX, Authority, open_authority
from sluice.pki.durable import PUBLIC_MODE, make_directory, read_bounded, write_durably
from sluice.pki.leaf import ALWAYS_NAMED, issue_client, issue_server, parse_names
from sluice.server.users import Role, Users

UPSTREAM_USER = "puller"
PUSHER = "pusher"
"""Who may write to replicas at their public door; everybody may read there."""
LAYOUT_NAME, SECRETS_NAME, REGISTRY_NAME = "layout.json", "secrets.json", "registry.yaml"
PASSWORD_NAME, USERS_NAME, UPSTREAM_CA_NAME = "upstream-password", "htpasswd", "upstream-ca.crt"
PUSHER_NAME = "pusher-password"
HASH_COST = 4
"""Of passwords that nobody guesses: the fewest rounds there are, since each is checked again and again."""
NODES_CA_NAME, SERVERS_CA_NAME = "nodes-ca.crt", "servers-ca.crt"
RESERVE_BYTES = 16 << 20
"""What a replica never fills of its disk; small, since the disk is."""


@dataclass(frozen=True, slots=True)
class Authorities:
    """Who vouches for whom."""

    servers: Authority
    nodes: Authority
    upstream: Authority

    def pem(self, authority: Authority) -> str:
        """The certificate that others trust it by."""
        return authority.path.read_text(encoding="ascii")


def provision(directory: LabDirectory, topology: Topology) -> None:
    """Write everything. Raises StorageFull or ConfigInvalid."""
    now = datetime.now(UTC)
    authorities = Authorities(
        open_authority(directory.pki / "servers", "ca", "Sluice laboratory: servers", now),
        open_authority(directory.pki / "nodes", "ca", "Sluice laboratory: nodes", now),
        open_authority(directory.pki / "upstream", "ca", "Sluice laboratory: upstream", now),
    )
    login = _login(topology)
    upstream_ca = _upstream_ca(topology, authorities)
    for machine in topology.machines:
        make_directory(directory.machine(machine))
    if topology.shape.outside is None:
        _provision_upstream(directory.machine(topology.upstream), topology, authorities, login, now)
    for machine in topology.control_planes:
        if upstream_ca is not None:
            (directory.machine(machine) / UPSTREAM_CA_NAME).write_text(upstream_ca, encoding="ascii")
        _provision_replica(directory.machine(machine), machine, topology, authorities, now)
        _provision_users(directory.machine(machine))
    for machine in topology.nodes:
        home = directory.machine(machine)
        client = issue_client(authorities.nodes, machine.name, now)
        layout = node_layout(topology, machine, authorities.pem(authorities.servers), upstream_ca)
        held = NodeSecrets(certificate=client.chain_pem.decode(), key=client.key_pem.decode(), upstream=login)
        write_durably(home / LAYOUT_NAME, dump_document(layout))
        write_durably(home / SECRETS_NAME, dump_document(held))
        shutil.copyfile(authorities.servers.path, home / SERVERS_CA_NAME)
        if login is not None:
            write_durably(home / PASSWORD_NAME, f"{login.password}\n".encode())


def read_pusher(directory: LabDirectory, machine: Machine) -> Login:
    """Who may push to a replica."""
    return Login(user=PUSHER, password=(directory.machine(machine) / PUSHER_NAME).read_text(encoding="utf-8").strip())


def _login(topology: Topology) -> Login | None:
    """A user of the upstream: the one that was given, or one that is made; None where nobody is asked for one."""
    outside = topology.shape.outside
    if outside is not None and outside.user is not None and outside.password_file is not None:
        lines = (read_bounded(outside.password_file, PEM_BYTES_MAX) or b"").decode("utf-8", "replace").splitlines()
        return validate_document(
            Login, {"user": outside.user, "password": lines[0] if lines else ""}, str(outside.password_file)
        )
    if topology.shape.upstream == "anonymous":
        return None
    return Login(user=UPSTREAM_USER, password=secrets.token_urlsafe(18))


def _upstream_ca(topology: Topology, authorities: Authorities) -> str | None:
    """Who vouches for the upstream beside the system's authorities; PEM."""
    outside = topology.shape.outside
    if outside is None:
        return authorities.pem(authorities.upstream)
    if outside.ca is None:
        return None
    pem = read_bounded(outside.ca, PEM_BYTES_MAX)
    if pem is None:
        raise ConfigInvalid(f"outside.ca {outside.ca} does not exist: name the PEM file with the upstream's CA")
    return pem.decode("ascii", "replace")


def read_login(directory: LabDirectory, topology: Topology) -> Login | None:
    """The upstream's user, as it was written."""
    if topology.shape.upstream == "anonymous":
        return _login(topology)
    password = (directory.machine(topology.upstream) / PASSWORD_NAME).read_text(encoding="utf-8").strip()
    return Login(user=UPSTREAM_USER, password=password)


def _provision_upstream(
    home: Path, topology: Topology, authorities: Authorities, login: Login | None, now: datetime
) -> None:
    machine = topology.upstream
    _write_server(home, authorities.upstream, (machine.address, "localhost"), now)
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
                    "tls": _tls(machine),
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


def _provision_replica(
    home: Path, machine: Machine, topology: Topology, authorities: Authorities, now: datetime
) -> None:
    _write_server(home, authorities.servers, (*ALWAYS_NAMED, machine.address, machine.name), now)
    shutil.copyfile(authorities.nodes.path, home / NODES_CA_NAME)
    document: dict[str, object] = {
        "mode": topology.shape.mode,
        "data": data_of(machine),
        "listen": f"{machine.address}:{PUBLIC_PORT}",
        "nodes": {"listen": f"{machine.address}:{REPLICA_PORT}", "ca": f"{machine.home}/{NODES_CA_NAME}"},
        "operations_listen": f"127.0.0.1:{OPERATIONS_PORT}",
        "tls": _tls(machine),
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


def _write_server(home: Path, authority: Authority, names: tuple[str, ...], now: datetime) -> None:
    leaf = issue_server(authority, parse_names(names), now)
    write_durably(home / "server.key", leaf.key_pem)
    write_durably(home / "server.crt", leaf.chain_pem, mode=PUBLIC_MODE)


def _tls(machine: Machine) -> dict[str, str]:
    return {"certificate": f"{machine.home}/server.crt", "key": f"{machine.home}/server.key"}


def _distribution(machine: Machine, login: Login | None) -> dict[str, object]:
    """The configuration of Debian's docker-registry (distribution 2.8, ``docs/configuration.md``)."""
    document: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": f"{machine.home}/data"}, "delete": {"enabled": True}},
        "http": {"addr": f"{machine.address}:{UPSTREAM_PORT}", "tls": _tls(machine), "secret": secrets.token_hex(16)},
    }
    if login is not None:
        document["auth"] = {"htpasswd": {"realm": "laboratory", "path": f"{machine.home}/{USERS_NAME}"}}
    return document


def _htpasswd(login: Login) -> bytes:
    return f"{login.user}:{bcrypt.hashpw(login.password.encode(), bcrypt.gensalt(HASH_COST)).decode()}\n".encode()
