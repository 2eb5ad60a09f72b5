"""The house: which room may import which, that no circle is in it, and how full a folder is (docs/architecture.md)."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (ROOT / "docs" / "architecture.md").read_text().split("<!-- floors -->\n```\n")[1].split("```")[0]
LEVELS = [set(floor.split()) for floor in reversed(FLOORS.splitlines())]
"""Rooms of `custom`, from the ground up; a room imports its own floor and those below."""


def modules(package: str) -> dict[str, Path]:
    """Dotted name to file, of all modules of a package."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has no modules: this test would pass on nothing"
    names = (
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__") for path in files
    )
    return dict(zip(names, files, strict=True))


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of this project that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in found if name.split(".")[0] in ("custom", "sa_swin", "label_app", "benchmarks"))


def edges(package: str) -> Iterator[tuple[str, str]]:
    known = modules(package)
    for name, path in known.items():
        for target in imports(path):
            if target in known and target != name:
                yield name, target


def level(module: str) -> int:
    room = module.split(".")[1]
    return next(number for number, rooms in enumerate(LEVELS) if room in rooms)


def test_every_room_of_custom_has_a_level():
    assert {name.split(".")[1] for name in modules("custom") if "." in name} == set().union(*LEVELS)


def test_custom_imports_downward_only():
    upward = [(a, b) for a, b in edges("custom") if "." in a and "." in b and level(b) > level(a)]
    assert upward == []


def test_custom_never_imports_the_tools():
    outside = {
        (name, t) for name, path in modules("custom").items() for t in imports(path) if not t.startswith("custom")
    }
    assert outside == set()


@pytest.mark.parametrize("package", ["custom", "sa_swin"])
def test_no_modules_import_each_other_in_a_circle(package):
    graph: dict[str, set[str]] = {}
    for a, b in edges(package):
        graph.setdefault(a, set()).add(b)
    waiting = dict(graph)
    while leaves := [name for name, targets in waiting.items() if not targets & waiting.keys()]:
        for name in leaves:
            del waiting[name]
    assert waiting == {}, "these import each other in a circle"


def test_no_two_rooms_import_each_other():
    rooms = {(a.split(".")[1], b.split(".")[1]) for a, b in edges("custom") if "." in a and "." in b}
    assert [(a, b) for a, b in rooms if a < b and (b, a) in rooms] == []


@pytest.mark.parametrize("package", ["custom", "sa_swin", "label_app", "benchmarks"])
def test_no_folder_holds_more_than_16_modules(package):
    folders: dict[Path, int] = {}
    for path in modules(package).values():
        folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {str(folder): number for folder, number in folders.items() if number > 16} == {}
