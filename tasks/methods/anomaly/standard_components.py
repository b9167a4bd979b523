"""Principal directions of normal rows whose features are brought to one scale: the frame in which collapsed classes are looked for.

Connect normal rows. One pass, that of `spectrum.pca`. Arrays: `mean` (feature) and `scale` (feature), the standard deviation over rows, 1
where a feature never varies; `components` (component, feature), eigenvectors of the correlations, and `eigenvalue` (component),
descending.
"""

from schemas.base import Frozen
from tasks.methods import moments_state
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.moments_state import merge, partial, start, state_config
from tasks.numerics import moments, spectrum
from tasks.numerics.moments import Precision

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "mean": ("feature",),
    "scale": ("feature",),
    "components": ("component", "feature"),
    "eigenvalue": ("component",),
}
REFERENCE = "Pearson, Philosophical Magazine 2 (1901) 559, of correlations; as NECO's standardised principal components"
SEEDS = ()


class Config(Frozen):
    """How exactly."""

    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found."""

    n_rows: int
    width: int
    """Features."""
    constant: int
    """Features that never varied."""
    caveats: tuple[str, ...]


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Scales and directions.

    Raises:
        MethodError: for less than two rows, or if the eigensolver fails.

    Cost: O(feature^3).
    """
    moments.require(state, 2)
    covariance = moments.covariance(state) * (moments.degrees(state) / float(state["w"]))
    variance = covariance.diagonal()
    still = variance <= 1e-14 * (variance.max() + moments.offset(state))
    scale = variance.masked_fill(still, 1.0).sqrt()
    found = spectrum.eigen((covariance / scale[:, None] / scale).masked_fill(still[:, None] | still, 0.0))
    arrays = {
        "mean": moments.mean(state),
        "scale": scale,
        "components": found.vectors,
        "eigenvalue": found.values.clamp(min=0),
    }
    result = Result(
        n_rows=int(state["n"]),
        width=len(scale),
        constant=int(still.sum()),
        caveats=tuple(moments_state.notes_on_rows(moments.n_eff(state), len(scale))),
    )
    return result, {name: Array(values.contiguous(), ARRAYS[name]) for name, values in arrays.items()}
