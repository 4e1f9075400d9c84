"""The rivals, each in a virtual environment of its own outside the repository; none of them has to be had.

Kept in the user's cache folder, so that a second benchmark need not install again. The `openai` SDK is among our
development dependencies and needs no place of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from .bench import Bench
from .clients import Client, rival
from .measure import environment

_INSTALL_S: Final = 60.0
_INSTALLED: Final = {"lm-deluge": 4, "flexllm": 8}  # client -> by how much fewer rows it is measured
_OPENAI_FEWER: Final = 16


def find_rivals(bench: Bench) -> tuple[dict[str, tuple[Client, int]], dict[str, str]]:
    """Rivals that can be measured, and why the others cannot."""
    found: dict[str, tuple[Client, int]] = {}
    missing: dict[str, str] = {}
    if find_spec("openai") is not None:
        found["openai"] = (rival("openai", Path(sys.executable)), _OPENAI_FEWER)
    else:
        missing["openai"] = "not installed; pip install openai"
    for name, fewer in _INSTALLED.items():
        place = _cache() / name
        problem = None if (place / "ready").exists() else _install(bench, name, place)
        if problem is None:
            found[name] = (rival(name, place / "bin" / "python"), fewer)
        else:
            missing[name] = problem
    return found, missing


def version_of(name: str) -> str:
    """What is installed of a rival that has a place of its own."""
    ready = _cache() / name / "ready"
    return ready.read_text().strip() if ready.exists() else ""


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    home = Path(given) if given else Path.home() / ".cache"
    return (home if os.access(home.parent, os.W_OK) else Path(tempfile.gettempdir())) / "batchrouter-bench"


def _install(bench: Bench, name: str, place: Path) -> str | None:
    """Make the environment within its minute; why not, if not."""
    if not bench.sizes.is_full:
        return "not installed yet, and the quick run installs nothing"
    bench.tell(f"installing {name}")
    python = str(place / "bin" / "python")
    show = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", name],
        [python, "-c", show, name],
    ]
    said = ""
    for command in commands:
        try:
            done = subprocess.run(
                command, check=True, timeout=_INSTALL_S, capture_output=True, text=True, env=environment()
            )
        except subprocess.TimeoutExpired:
            return f"could not be installed within {_INSTALL_S:.0f} s"
        except (subprocess.CalledProcessError, OSError) as error:
            lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            return f"could not be installed: {lines[-1][:120] if lines else 'pip failed'}"
        said = done.stdout
    (place / "ready").write_text(said)
    return None
