"""The one reduction behind every method that needs a mean and a covariance: they share one state, one read.

A method takes part by `from tasks.methods.moments_state import merge, partial, start, state_config`.
"""

from typing import Protocol, runtime_checkable

from tasks.methods.contract import Block, Inputs, State
from tasks.numerics import moments, spectrum

VERSION = 2


@runtime_checkable
class HasPrecision(Protocol):
    """Options of a method that reads this state."""

    @property
    def precision(self) -> moments.Precision: ...

    @property
    def weight_label(self) -> str | None: ...


def state_config(config: HasPrecision) -> dict[str, object]:
    """What the state depends on."""
    return {"precision": config.precision, "weight_label": config.weight_label}


def start(inputs: Inputs, config: HasPrecision) -> State:
    """Nothing is carried from round to round."""
    return {}


def partial(block: Block, carry: State, config: HasPrecision) -> State:
    """The moments of a block's rows at port x.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    return moments.partial(block["x"], block.weight, config.precision)


def merge(a: State, b: State) -> State:
    """The moments of both."""
    return moments.merge(a, b)


def caveats(state: State, found: spectrum.Resolved, n_eff: float) -> tuple[str, ...]:
    """What a reader of a spectrum made from this state must know."""
    width = len(found.values)
    notes = notes_on_rows(n_eff, width)
    if found.rank < min(width, int(state["n"]) - 1):
        notes.append(f"{width - found.rank} eigenvalues lie below the rounding floor")
    return tuple(notes)


def notes_on_rows(n_eff: float, width: int) -> list[str]:
    """What holds for any spectrum of so many rows."""
    found = ["intervals take rows as independent; tokens of one text are not"]
    if n_eff < 10 * width:
        found.append(
            f"{n_eff:.0f} effective rows for {width} features: large eigenvalues are biased up, small down"
        )
    return found
