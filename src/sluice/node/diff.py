"""A plan for people: a unified diff of every file, and one line for everything else. PURE.

Files that only root may read are named and never shown, whichever side of the change is private.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from sluice.node.plan import Plan
from sluice.node.record import Kept, Step

_PUBLIC_BITS = 0o044
NOWHERE = "/dev/null"
_WORDS = {
    "make": "make directory",
    "unmake": "remove directory",
    "reload": "check and reload",
    "stop": "stop",
    "write": "write",
    "remove": "remove",
}


def render_diff(plan: Plan) -> str:
    """All steps in their order; empty where nothing is to be done."""
    return "".join(line for step in plan.steps for line in _lines(step))


def summarize(step: Step) -> dict[str, str]:
    """One step for programs: ``do``, ``path``, and the ``effect`` of writing a file."""
    record = {"do": step.do, "path": step.path}
    if step.do == "write":
        record["effect"] = "created" if step.before is None else "replaced"
    return record


def _lines(step: Step) -> Iterator[str]:
    if step.do not in {"write", "remove"}:
        yield f"# {_WORDS[step.do]} {step.path}\n"
        return
    before, after = step.before, step.after
    private = any(side is not None and not side.mode & _PUBLIC_BITS for side in (before, after))
    if private or _same_content(before, after):
        hidden = " (secret, not shown)" if private else ""
        yield f"# {_WORDS[step.do]} {step.path}{_attributes(before, after)}{hidden}\n"
        return
    yield from difflib.unified_diff(
        _text(before),
        _text(after),
        step.path if before is not None else NOWHERE,
        step.path if after is not None else NOWHERE,
    )


def _same_content(before: Kept | None, after: Kept | None) -> bool:
    return before is not None and after is not None and before.content == after.content


def _attributes(before: Kept | None, after: Kept | None) -> str:
    """What else changes about a file that stays: its mode and owner."""
    if before is None or after is None:
        return ""
    changes = [
        f"{name} {old} -> {new}"
        for name, old, new in (
            ("mode", f"{before.mode:04o}", f"{after.mode:04o}"),
            ("owner", f"{before.uid}:{before.gid}", f"{after.uid}:{after.gid}"),
        )
        if old != new
    ]
    return f" ({', '.join(changes)})" if changes else ""


def _text(side: Kept | None) -> list[str]:
    if side is None:
        return []
    text = side.content.decode("utf-8", "backslashreplace")
    return [line if line.endswith("\n") else f"{line}\n" for line in text.splitlines(keepends=True)]
