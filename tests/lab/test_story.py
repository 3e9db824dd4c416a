"""``make run``: the story is true, told by real parts, and nothing of it stays."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from lab.isolated import mounts_of, needs_lab, processes_of

pytestmark = needs_lab
DEMO = [sys.executable, "-m", "sluice", "demo"]
END_S = 60.0


def test_story_is_told_until_ctrl_c(tmp_path: Path) -> None:
    """Both workers run what they pulled; a replica that was killed had sent some of a layer, but not all; what is held
    comes while the upstream is dead; the commands that the summary shows work as printed; SIGINT ends it with 0, and no
    process, mount or file is left."""
    with subprocess.Popen(DEMO, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        while "Ctrl-C ends it" not in (line := demo.stderr.readline()):
            assert line, f"the demo ended early: {demo.communicate()}"
        printed = [demo.stdout.readline()]
        while " lab logs " not in printed[-1]:
            printed.append(demo.stdout.readline())
        tried = [
            subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
            for line in printed
            if line.startswith("  ") and " lab " in line
        ]
        demo.send_signal(signal.SIGINT)
        rest = demo.communicate(timeout=END_S)[1]
    told = "".join(printed)
    for worker in ("worker-1", "worker-2"):
        assert re.search(rf"{worker}: pulled lab/hello:1 and ran it +Hello from a container", told)
    shares = re.search(r"pulled while (cp-\d) was killed +([0-9.]+) MiB from \1, ([0-9.]+) MiB from (?!\1)cp-\d ", told)
    assert shares is not None
    victim, other = float(shares[2]), float(shares[3])
    assert (True, True, 256) == (victim > 0, other > 0, round(victim + other))
    assert re.search(r"worker-2: pulled while the upstream was dead +256 MiB from the caches ", told)
    assert [(0, "")] * 6 == [(done.returncode, done.stderr) for done in tried]
    assert 0 == demo.returncode, rest
    assert ([], [], []) == (processes_of(tmp_path), mounts_of(tmp_path), list(tmp_path.iterdir()))
