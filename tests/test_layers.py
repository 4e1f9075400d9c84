"""Who may import whom, kept by reading the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "batchrouter"

# A room may import rooms of lower levels. Where one room has parts, the parts know each other by their own order.
LEVELS = [
    {"errors"},
    {
        "records",
        "jsonl",
        "values",
        "jsontext",
        "remedies",
        "compressed",
        "standard_input",
        "distinct",
        "insertion",
        "estimate",
        "health",
    },
    {"settings", "sources", "database"},
    {
        "eventstream",
        "credit",
        "gates",
        "turns",
        "control",
        "descriptors",
        "keys",
        "deltas",
        "ceiling",
        "luck",
        "hints",
        "circuit",
        "bounds",
        "answercheck",
        "routing",
        "config",
        "wire",
    },
    {"frontier", "usage", "index", "intake", "crowd", "suspects", "redaction"},
    {"sse", "pace", "retry", "rows", "history", "overlay", "removal", "review", "survey"},
    {"throttle", "jury", "mishaps", "watch", "catalogue"},
    {"lanes", "allowance"},
    {"answers"},
    {"runner", "ledger", "plan", "transport", "progress"},
    {"endpoints"},
    {"batch", "audit", "preview"},
    {"standing"},
    {"emulator", "report", "dataset", "distributed"},
    {"cli"},
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
HEAVY = ["click", "tqdm", "aiohttp.web", "jinja2", "pyarrow", "matplotlib", "uvloop", "backports", "jsonschema"]


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported_rooms(path: Path) -> set[str]:
    """The rooms of batchrouter that a file imports, wherever in the file."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names += [f"{module}.{alias.name}" for alias in node.names] if module == "batchrouter" else [module]
    return {name.split(".")[1] for name in names if name.startswith("batchrouter.")} - {"__version__"}


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE]
FILES += [path for path in sorted(PACKAGE.glob("*.py")) if not path.name.startswith("__")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_is_below_them(path: Path) -> None:
    """No room imports its own level or above: data walks forward through the house."""
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        assert LEVEL[other] < LEVEL[room], f"{room} imports {other}"


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n"))


def test_importing_the_library_loads_nothing_heavy() -> None:
    """`import batchrouter` costs what its own values cost: no click, tqdm, web server or table library."""
    assert not modules_after("import batchrouter") & set(HEAVY)


def test_help_does_not_import_aiohttp() -> None:
    """`batchrouter --help` stays quick: the commands are loaded when they are called."""
    code = "from batchrouter.cli import group; group.main(['--help'], standalone_mode=False)"
    assert not modules_after(code) & {"aiohttp", "tqdm", "orjson", "batchrouter.batch"}
