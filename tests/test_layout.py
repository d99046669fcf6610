"""Imports run one way: `use` may import `runs` and the core, `runs` may import the core."""

import ast
import re
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "mnist_lightning"
FRONT_DOORS = {"__init__.py", "__main__.py", "cli.py"}  # they see all three floors
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
LEARNERS = ["networks", "classifier", "data", "loader", "augmentation", "archive"]


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, also within functions and in strings such as `a.b:c`."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {match[1] for match in re.finditer(r"^(mnist_lightning[\w.]*)(:\w+)?$", node.value)}
    return {name.removeprefix("mnist_lightning.") for name in found if name.startswith("mnist_lightning.")}


@pytest.mark.parametrize("path", [path for path in FILES if str(path) not in FRONT_DOORS], ids=str)
def test_a_file_imports_from_its_own_floor_and_from_below(path: Path) -> None:
    forbidden = {".": ("runs", "use"), "runs": ("use",), "use": ()}[path.parts[0] if len(path.parts) > 1 else "."]
    assert [name for name in imported(path) if name.split(".")[0] in (*forbidden, "cli")] == []


def test_no_imports_run_in_a_circle() -> None:
    modules = {".".join(path.with_suffix("").parts): path for path in FILES}
    below: dict[str, set[str]] = {
        module: {other for name in imported(path) for other in modules if name == other or name.startswith(f"{other}.")}
        - {module}
        for module, path in modules.items()
    }
    while leaves := [module for module, others in below.items() if not others]:
        below = {module: others - {*leaves} for module, others in below.items() if module not in leaves}
    assert below == {}


def test_files_are_short() -> None:
    sources = [*FILES, *(path.relative_to(PACKAGE) for path in PACKAGE.glob("use/page/*") if path.is_file())]
    lines = {str(path): len((PACKAGE / path).read_text().splitlines()) for path in sources}
    assert {name: count for name, count in lines.items() if count > 250} == {}
    assert lines["cli.py"] <= 220
    assert sum(lines[f"{name}.py"] for name in LEARNERS) <= 670
