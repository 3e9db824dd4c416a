"""The images of a laboratory, and how they get to where its mode takes them from.

The upstream has them in every mode. In Local mode each replica is given them, too, until replicas share what they have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sluice.lab.credentials import servers_ca
from sluice.lab.ground import Ground
from sluice.lab.images import Ballast, Destination, build_image, build_pause, find_busybox, push
from sluice.lab.parts import PAUSE_IMAGE
from sluice.lab.provision import read_login, read_pusher
from sluice.lab.state import LabDirectory
from sluice.lab.topology import PUBLIC_PORT, UPSTREAM_PORT, Machine, Topology

HELLO_BALLAST = 4 << 20
"""Bytes that make the laboratory's own image big enough to be seen on its way."""


@dataclass(frozen=True, slots=True)
class LabImage:
    """An image by repository and tag, without a registry."""

    repository: str
    tag: str

    @property
    def folder(self) -> str:
        """Its layout's name on disk."""
        return self.repository.replace("/", "-")


PAUSE = LabImage(*PAUSE_IMAGE.partition("/")[2].split(":"))
HELLO = LabImage("lab/hello", "1")
IMAGES = (PAUSE, HELLO)


def build_images(directory: LabDirectory) -> None:
    """Write the layouts. Raises Unavailable where busybox is missing."""
    busybox = find_busybox()
    build_pause(directory.images / PAUSE.folder, busybox, PAUSE.tag)
    build_image(directory.images / HELLO.folder, busybox, HELLO.tag, [Ballast(HELLO_BALLAST)])


def push_image(ground: Ground, directory: LabDirectory, topology: Topology, image: LabImage) -> None:
    """Give an image, whose layout is in the laboratory's directory, to whom the mode takes images from."""
    push_to_upstream(ground, directory, topology, (image,))
    if topology.shape.mode == "local":
        for machine in topology.control_planes:
            push_to_replica(ground, directory, machine, (image,))


def push_to_upstream(
    ground: Ground, directory: LabDirectory, topology: Topology, images: Iterable[LabImage] = IMAGES
) -> None:
    """Give the upstream images, if it is the laboratory's own. Raises Unavailable."""
    if topology.shape.outside is not None:
        return
    prefix = f"{topology.shape.prefix}/" if topology.shape.prefix else ""
    authority = f"{topology.upstream.address}:{UPSTREAM_PORT}"
    login = read_login(directory, topology)
    for image in images:
        to = Destination(
            f"{authority}/{prefix}{image.repository}",
            directory.pki / "upstream" / "ca.crt",
            None if login is None else login.user,
            None if login is None else login.password,
            tuple(ground.enter((), topology.upstream)),
        )
        push(directory.images / image.folder, image.tag, to)


def push_to_replica(
    ground: Ground, directory: LabDirectory, machine: Machine, images: Iterable[LabImage] = IMAGES
) -> None:
    """Give a replica images, through its public door. Raises Unavailable."""
    login = read_pusher(directory, machine)
    for image in images:
        to = Destination(
            f"{machine.address}:{PUBLIC_PORT}/{image.repository}",
            servers_ca(directory),
            login.user,
            login.password,
            prefix=tuple(ground.enter((), machine)),
        )
        push(directory.images / image.folder, image.tag, to)
