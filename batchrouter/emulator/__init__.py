"""A WorldRouter endpoint on this machine, with limits and faults: `async with Emulator() as emulator`."""

from batchrouter.emulator.answers import answer
from batchrouter.emulator.behaviour import MODELS, Behaviour, Latency
from batchrouter.emulator.faults import FAULTS, Fault
from batchrouter.emulator.limits import Limits
from batchrouter.emulator.server import Emulator
from batchrouter.emulator.stats import Row, Stats

__all__ = [
    "FAULTS",
    "MODELS",
    "Behaviour",
    "Emulator",
    "Fault",
    "Latency",
    "Limits",
    "Row",
    "Stats",
    "answer",
]
