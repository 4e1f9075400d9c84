"""batchrouter: run millions of LLM calls through an OpenAI-compatible endpoint, paying for each once and losing none.

`run_batch` is the door: the command line goes through it, too.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("batchrouter")

from batchrouter.errors import BatchrouterError, BusyError, DiskError, UsageError
from batchrouter.records import Halt, Summary, Tally
from batchrouter.settings import Secret, Settings

if TYPE_CHECKING:
    from batchrouter.batch import Control, run_batch

__all__ = [
    "BatchrouterError",
    "BusyError",
    "Control",
    "DiskError",
    "Halt",
    "Secret",
    "Settings",
    "Summary",
    "Tally",
    "UsageError",
    "__version__",
    "run_batch",
]


def __getattr__(name: str) -> Any:
    """Load what needs aiohttp when it is asked for: `import batchrouter` alone stays quick."""
    if name in {"Control", "run_batch"}:
        from batchrouter import batch  # noqa: PLC0415  (the point of this function)

        return getattr(batch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
