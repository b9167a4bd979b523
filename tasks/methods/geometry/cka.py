"""How alike two sites represent the same rows: linear centred kernel alignment, exact from one pass.

The ports x and y may belong to different captures; rows are joined by sample key and position. The interval is that of the debiased
value by leaving samples out (tokens of one text count as one group). No arrays.
"""

import math

from pydantic import Field

from schemas.base import Frozen
from tasks.methods import joint_state
from tasks.methods.contract import Arrays, Inputs, RowsPort, State
from tasks.methods.joint_state import merge, partial, start, state_config
from tasks.numerics.similarity import linear_cka

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 3
KIND = "reduce"
READS = {"x": RowsPort(), "y": RowsPort()}
ARRAYS: dict[str, tuple[str, ...]] = {}
REFERENCE = (
    "Kornblith, Norouzi, Lee, Hinton, ICML (2019): linear CKA. Song, Smola, Gretton, Bedo, Borgwardt, JMLR 13 (2012) 1393, theorem "
    "2: the unbiased estimate"
)
SEEDS = ()
FEW = 10
"""The biased value is far too high below so many rows per feature."""


class Config(Frozen):
    """How many groups."""

    groups: int = Field(default=10, ge=2, le=200)
    """Groups that samples are dealt into for the interval; fewer for wide sites, whose joint moments would take over 1 GiB."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the interval."""


class Result(Frozen):
    """Alignment in 0..1: 1 for features that differ by a rotation and a scale."""

    n_rows: int
    """Joined rows."""
    width_x: int
    width_y: int
    cka: float | None
    """The usual value, biased up when rows are few; None where a side does not vary."""
    cka_debiased: float | None
    """From unbiased estimates: about 0 for unrelated rows, however few. None for less than four rows."""
    cka_debiased_low: float | None
    cka_debiased_high: float | None
    """None where a group less leaves nothing above 0, or there is one group only."""
    n_groups: int
    """That hold rows."""
    caveats: tuple[str, ...]


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Both ratios.

    Raises:
        MethodError: if no row has a partner.
    """
    groups, widths = joint_state.groups_of(state), (inputs.widths["x"], inputs.widths["y"])
    whole = joint_state.total(groups)
    n, found = int(whole["n"]), linear_cka(whole)
    without = [linear_cka(rest).debiased for rest in joint_state.leaving_out(groups)]
    bounds = joint_state.interval(found.debiased, without, config.confidence)
    notes = list(joint_state.caveats(len(groups), config.groups))
    if n < FEW * max(widths):
        notes.append(f"{n} rows for {max(widths)} features: read the debiased value")
    return (
        Result(
            n_rows=n,
            width_x=widths[0],
            width_y=widths[1],
            cka=_finite(found.biased),
            cka_debiased=_finite(found.debiased),
            cka_debiased_low=None if bounds is None else bounds.low,
            cka_debiased_high=None if bounds is None else bounds.high,
            n_groups=len(groups),
            caveats=tuple(notes),
        ),
        {},
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
