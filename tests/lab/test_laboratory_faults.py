"""``sluice lab fault``: what each takes away is gone, what it gives back is there again, and ``status`` says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from hashlib import sha256

import pytest

from lab.commands import Place, raised, wait_until
from lab.isolated import needs_lab
from sluice.lab.faults import FAULTS
from sluice.lab.laboratory import VIRTUAL
from sluice.lab.mounts import data_of
from sluice.lab.topology import PUBLIC_PORT

pytestmark = needs_lab
PARTS = ("upstream", "cp-1/replica", "worker-1/containerd", "worker-1/balancer", "worker-1/agent")
CUT_S = 2.0
HELLO = f"docker://{VIRTUAL}/lab/hello:1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with raised(tmp_path_factory.mktemp("lab")) as made:
        yield made


def states(place: Place) -> dict[str, str]:
    return {one.part: one.state for one in place.open().status()}


def do(place: Place, fault: str, target: str) -> str:
    return FAULTS[fault](place.open(), target)


@pytest.mark.parametrize("part", [one for one in PARTS if one != "worker-1/balancer"])
def test_killed_and_healed(place: Place, part: str) -> None:
    """A part that is killed is stopped, and healing brings back another process that answers."""
    before = place.open().running()[part][0]
    assert f"{part} killed" == do(place, "kill", part)
    assert "stopped" == states(place)[part]
    assert not place.open().running()[part]
    assert f"{part} started" in do(place, "heal", part)
    assert "ready" == states(place)[part]
    assert place.open().running()[part][0] != before


def test_killed_balancer(place: Place) -> None:
    """A balancer that is killed is its agent's to bring back; healing waits for it."""
    before = place.open().running()["worker-1/balancer"][0]
    do(place, "kill", "worker-1/balancer")
    do(place, "heal", "worker-1/balancer")
    assert "ready" == states(place)["worker-1/balancer"]
    assert place.open().running()["worker-1/balancer"][0] != before


def test_balancer_without_an_agent(place: Place) -> None:
    """Where the agent is gone, too, healing the balancer starts it first."""
    do(place, "kill", "worker-1/agent")
    do(place, "kill", "worker-1/balancer")
    assert "worker-1/agent started" in do(place, "heal", "worker-1/balancer")
    assert "ready" == states(place)["worker-1/balancer"]


@pytest.mark.parametrize("part", PARTS)
def test_frozen_and_thawed(place: Place, part: str) -> None:
    """A frozen part keeps its processes, all of them stopped; thawed they go on."""
    before = place.open().running()[part]
    do(place, "freeze", part)
    try:
        assert "frozen" == states(place)[part]
        assert all(one.is_frozen for one in place.open().running()[part])
        assert [one.pid for one in before] == [one.pid for one in place.open().running()[part]]
    finally:
        do(place, "thaw", part)
    wait_until(lambda: states(place)[part] == "ready", f"{part} is ready")


def test_cut_and_healed(place: Place) -> None:
    """A cut machine answers nobody and nobody is told: connections hang, both ways, and return with the link."""
    lab = place.open()
    worker, control_plane = lab.topology.machine("worker-1"), lab.topology.machine("cp-1")
    lab.ground.connect(worker, (control_plane.address, PUBLIC_PORT), CUT_S).close()
    do(place, "cut", "cp-1")
    try:
        for source, target in ((worker, control_plane), (control_plane, lab.topology.upstream)):
            port = PUBLIC_PORT if target == control_plane else 5000
            with pytest.raises(socket.timeout):
                lab.ground.connect(source, (target.address, port), CUT_S)
        notes = {one.part: one.note for one in lab.status()}
        assert notes["cp-1/replica"] == "link cut"
        assert notes["worker-1/containerd"] == ""
        wells = {one.part: one.is_well for one in lab.status()}
        assert [True, False, False] == [wells[part] for part in ("upstream", "cp-1/replica", "cp-1/containerd")]
        assert place.call("status").code == 1
    finally:
        assert "link of cp-1 healed" in do(place, "heal", "cp-1")
    lab.ground.connect(worker, (control_plane.address, PUBLIC_PORT), CUT_S).close()


def test_full_disk_and_room_again(place: Place) -> None:
    """On a full disk nothing can be written, what is there can be read, and healing gives the room back."""
    assert place.call("pull", "cp-1", "lab/hello:1").code == 0
    lab = place.open()
    data = lab.ground.inside(data_of(lab.topology.control_planes[0]))
    do(place, "fill-disk", "cp-1")
    try:
        with pytest.raises(OSError, match="No space left"):
            (data / "more").write_bytes(bytes(1 << 20))
        assert "disk full" in {one.part: one.note for one in lab.status()}["cp-1/replica"]
        assert place.call("status").code == 1
        assert place.call("exec", "worker-1", "curl", "-sSf", "http://127.0.0.1:5001/v2/").code == 0
        assert place.call("pull", "worker-1", "lab/hello:1").code == 0
    finally:
        (data / "more").unlink(missing_ok=True)
        do(place, "heal", "cp-1/replica")
    (data / "more").write_bytes(bytes(1 << 20))
    (data / "more").unlink()


def test_corrupted_blob(place: Place) -> None:
    """One bit of the largest blob on a replica's disk is another one afterwards, and its size is the same."""
    assert place.call("pull", "worker-1", "lab/hello:1").code == 0
    lab = place.open()
    contents = lab.ground.inside(data_of(lab.topology.control_planes[0])) / "content"
    before = {path: path.read_bytes() for path in contents.rglob("*") if path.is_file()}
    done = do(place, "corrupt", "cp-1/replica")
    after = {path: path.read_bytes() for path in before}
    changed = [path for path in before if before[path] != after[path]]
    assert [path.name for path in changed] == [done.partition("sha256:")[2].split()[0]]
    flipped = int.from_bytes(before[changed[0]], "big") ^ int.from_bytes(after[changed[0]], "big")
    assert (1, len(before[changed[0]])) == (flipped.bit_count(), len(after[changed[0]]))
    assert max(map(len, before.values())) == len(before[changed[0]])
    changed[0].write_bytes(before[changed[0]])


def test_corrupted_again_and_again(place: Place) -> None:
    """Each time another blob is damaged and none is healed, until no whole one is left, which is refused."""
    assert place.call("pull", "worker-1", "lab/hello:1").code == 0
    lab = place.open()
    contents = lab.ground.inside(data_of(lab.topology.control_planes[0])) / "content"
    blobs = {path: path.read_bytes() for path in contents.rglob("*") if path.is_file()}
    struck = [do(place, "corrupt", "cp-1").partition("sha256:")[2].split()[0] for _ in blobs]
    damaged = [path.name for path in blobs if sha256(path.read_bytes()).hexdigest() != path.name]
    names = sorted(path.name for path in blobs)
    assert [names, names] == [sorted(struck), sorted(damaged)]
    again = place.call("fault", "corrupt", "cp-1")
    assert (1, True) == (again.code, "is damaged already: sluice lab exec cp-1 -- sluice fsck --repair" in again.err)
    for path, content in blobs.items():
        path.write_bytes(content)


def test_corrupted_and_repaired(place: Place) -> None:
    """``fsck --repair`` on the machine puts damaged blobs away, and who asks for them next has them fetched anew."""
    assert place.call("pull", "worker-1", "lab/hello:1").code == 0
    struck = {do(place, "corrupt", "cp-1").partition("sha256:")[2].split()[0] for _ in range(2)}
    repaired = place.call("exec", "cp-1", "--", "sluice", "fsck", "--repair")
    assert (1, True) == (repaired.code, all(f"damaged: sha256:{name}" in repaired.out for name in struck))
    assert place.call("exec", "worker-1", "--", "skopeo", "copy", "-q", HELLO, "dir:/run/hello").code == 0
    checked = place.call("exec", "cp-1", "--", "sluice", "fsck")
    assert (0, True) == (checked.code, "everything is whole" in checked.out)


def test_whole_machine(place: Place) -> None:
    """Killing a machine kills every part of it; healing everything brings them all back."""
    do(place, "kill", "worker-1")
    found = states(place)
    assert {"stopped"} == {state for part, state in found.items() if part.startswith("worker-1/")}
    assert {"ready"} == {state for part, state in found.items() if not part.startswith("worker-1/")}
    do(place, "heal", "all")
    assert {"ready"} == set(states(place).values())
    assert place.call("pull", "worker-1", "lab/hello:1").code == 0


@pytest.mark.parametrize(
    ("fault", "target", "said"),
    [
        ("kill", "cp-7/replica", "no part 'cp-7/replica'"),
        ("cut", "cp-1/replica", "no machine 'cp-1/replica'"),
        ("fill-disk", "worker-1", "worker-1 has no replica"),
        ("corrupt", "upstream", "upstream has no replica"),
    ],
)
def test_wrong_target(place: Place, fault: str, target: str, said: str) -> None:
    """What a fault cannot be done to is refused by name, and nothing happens."""
    found = place.call("fault", fault, target)
    assert (2, True) == (found.code, said in found.err)
    assert {"ready"} == set(states(place).values())


def test_status_fails_where_a_part_does_not_answer(place: Place) -> None:
    """``status`` ends with 1 while something is missing, so that scripts can wait for 0."""
    assert {"fault": "freeze", "target": "cp-1/replica", "done": "cp-1/replica frozen"} == place.ask(
        "fault", "freeze", "cp-1/replica"
    )
    assert place.call("status").code == 1
    assert "cp-1/replica thawed\n" == place.call("fault", "heal", "cp-1/replica").out
    assert place.call("status").code == 0
