"""Rules of the house that no linter knows, checked on the source of every module.

Small functions and files, few parameters, a docstring on every module, no postponed work, no names that say nothing.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FUNCTION_LINES = 70
FILE_LINES = 400
PARAMETERS = 7
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers", "base", "misc", "common"}
POSTPONED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
MODULES = sorted(
    path
    for folder in ("src", "tests", "bench", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: str) -> list[Function]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]


def parameters(function: Function) -> list[str]:
    """Name every parameter except the instance's or class's own."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [one.arg for one in named if one is not None and one.arg not in {"self", "cls"}]


def words(identifier: str) -> set[str]:
    """Split ``snake_case`` and ``CamelCase`` into lower-case words."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)}


def class_names(source: str) -> list[str]:
    return [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def complaints(path: Path, source: str) -> list[str]:
    """List what is wrong with one module, in words."""
    found = []
    if len(source.splitlines()) > FILE_LINES:
        found.append(f"longer than {FILE_LINES} lines")
    if ast.get_docstring(ast.parse(source)) is None:
        found.append("has no docstring")
    found += [f"postpones work: {match[0]}" for match in POSTPONED.finditer(source)]
    found += [
        f"{name} says nothing"
        for name in [*path.with_suffix("").parts, *class_names(source)]
        if words(name) & EMPTY_NAMES
    ]
    for function in functions(source):
        if (function.end_lineno or 0) - function.lineno + 1 > FUNCTION_LINES:
            found.append(f"{function.name} is longer than {FUNCTION_LINES} lines")
        if len(parameters(function)) > PARAMETERS:
            found.append(f"{function.name} takes more than {PARAMETERS} parameters")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_tidy(path: Path) -> None:
    """Every module keeps the rules of the house."""
    source = path.read_text(encoding="utf-8")
    assert complaints(path.relative_to(ROOT), source) == []


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("long.py", '"""d"""\n' + "x = 1\n" * FILE_LINES, "longer than 400 lines"),
        ("bare.py", "x = 1\n", "has no docstring"),
        ("later.py", '"""d"""\n# TO' + "DO: rest\n", "postpones work: TO" + "DO"),
        ("utils.py", '"""d"""\n', "utils says nothing"),
        ("fine.py", '"""d"""\nclass PoolManager: ...\n', "PoolManager says nothing"),
        ("fine.py", '"""d"""\ndef f():\n' + "    x = 1\n" * FUNCTION_LINES, "f is longer than 70 lines"),
        ("fine.py", '"""d"""\ndef f(a, b, c, d, e, *g, h, i): ...\n', "f takes more than 7 parameters"),
    ],
)
def test_each_rule_bites(name: str, source: str, complaint: str) -> None:
    """Each rule finds the module that breaks it, and finds nothing else in it."""
    assert complaints(Path(name), source) == [complaint]
