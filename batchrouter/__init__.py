"""batchrouter: run millions of LLM calls through an OpenAI-compatible endpoint, paying for each once and losing none.

`run_batch` is the door: the command line goes through it, too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchrouter.batch import run_batch
    from batchrouter.control import Control
    from batchrouter.errors import BatchrouterError, BusyError, DiskError, UsageError
    from batchrouter.keys import Secret
    from batchrouter.records import Halt, Summary, Tally
    from batchrouter.settings import Endpoint, Model, Price, Settings

__version__ = "0.1.0"

__all__ = [
    "BatchrouterError",
    "BusyError",
    "Control",
    "DiskError",
    "Endpoint",
    "Halt",
    "Model",
    "Price",
    "Secret",
    "Settings",
    "Summary",
    "Tally",
    "UsageError",
    "__version__",
    "run_batch",
]

_ROOMS = {
    "batch": ("run_batch",),
    "control": ("Control",),
    "errors": ("BatchrouterError", "BusyError", "DiskError", "UsageError"),
    "records": ("Halt", "Summary", "Tally"),
    "settings": ("Endpoint", "Model", "Price", "Settings"),
    "keys": ("Secret",),
}


def __getattr__(name: str) -> Any:
    """Load a public name's room when it is asked for: `import batchrouter` alone, and --help, stay quick."""
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"batchrouter.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
