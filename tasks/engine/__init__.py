"""Runs methods over the rows of sealed captures, and over rows that are being captured.

`run_stage` and `run_stages` import torch only when there is something to compute. `Fusion` is imported at
first use.
"""

from typing import TYPE_CHECKING, Any

from tasks.engine.stages import run_stage, run_stages

if TYPE_CHECKING:
    from tasks.engine.fusion import Fusion

__all__ = ["Fusion", "run_stage", "run_stages"]


def __getattr__(name: str) -> Any:
    if name == "Fusion":
        from tasks.engine.fusion import Fusion

        return Fusion
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
