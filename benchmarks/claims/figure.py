"""A finding: one sentence that numbers of one run bear out or not."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """A number, and between what it is expected."""

    who: str
    """A library or a formula with its version, or `subspan`."""
    what: str
    found: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def holds(self) -> bool:
        """Whether it is as expected."""
        return bool(self.low <= self.found <= self.high)

    @property
    def expected(self) -> str:
        """In words."""
        if self.low == self.high:
            return f"{self.low:g}"
        if math.isinf(self.low):
            return "" if math.isinf(self.high) else f"<= {self.high:g}"
        return f">= {self.low:g}" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"


class Finding:
    """A function that measures a claim. Its docstring is the claim, and after an empty line what a reader must know of the figures."""

    def __init__(self, measure: Callable[..., list[Figure]]) -> None:
        claim, _, note = inspect.cleandoc(measure.__doc__ or "").partition("\n\n")
        self.measure, self.name = measure, measure.__name__
        self.claim, self.note = (" ".join(text.split()) for text in (claim, note))

    def record(self, figures: list[Figure]) -> dict[str, Any]:
        """As JSON."""
        listed = [f._asdict() | {"expected": f.expected, "holds": f.holds} for f in figures]
        kept = [{k: v for k, v in f.items() if k not in ("low", "high")} for f in listed]
        return {"holds": all(f.holds for f in figures), "figures": kept}
