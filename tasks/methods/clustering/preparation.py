"""How rows are made ready for subspace clustering: centre, leading directions, unit length; and their second moments then.

Methods that express rows by other rows (`clustering.tsc`, `ssc_omp`, `elastic_net`, `lsr`, `lrr`) read this artifact, so that all of them
compare the same rows. The second moments make the closed forms of the last two cost no matrix of rows by rows.

Arrays: `mean` (feature) is the centre (zeros where rows are not centred), `directions` (component, feature) the leading principal
directions about it, divided by the root of their variance where rows are whitened (no components where features stay as they are),
`variance` (component) the rows' along them, `second_moment` (prepared, other_prepared) the sum of z z' over prepared rows z.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import moments
from tasks.numerics.prepared_rows import Preparation, prepared_rows
from tasks.numerics.symmetric import add_gram, full

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "mean": ("feature",),
    "directions": ("component", "feature"),
    "variance": ("component",),
    "second_moment": ("prepared", "other_prepared"),
}
REFERENCE = (
    "You, Robinson, Vidal, CVPR (2016) 3918, and Elhamifar, Vidal, IEEE TPAMI 35 (2013) 2765: rows of length 1, after their leading "
    "directions"
)
SEEDS = ()
MOST_BYTES = 2 << 30
"""Of the second moments."""


class Config(Frozen):
    """What is done to rows before they are compared."""

    center: bool = True
    """Subtract the mean of all rows: an offset that all rows share makes all point the same way. Subspaces through the origin of the
    features themselves, as of images under varied light, need false."""
    components: int | None = Field(default=None, ge=1)
    """Leading principal directions to compare rows along; None: features as they are."""
    whiten: bool = False
    """Divide by the root of the variance along each direction; with `components` alone."""
    unit_length: bool = True
    """Scale rows to length 1, so that a long row is no better at expressing others."""


class Result(Frozen):
    """The prepared rows in numbers."""

    n_rows: int
    width: int
    """Features of prepared rows."""
    rank: int
    """Directions of prepared rows above rounding: their second moments' eigenvalues beyond 1e-10 of the largest."""
    centered: bool
    unit_length: bool
    whitened: bool
    explained: float | None
    """Share of the rows' squared distance from the centre that lies along the directions; None where all features stay or all is 0."""
    zero_rows: int
    """Rows without length once they are prepared, which no other row expresses."""
    common_direction: float
    """Length of the mean of the prepared rows over their root mean square length: near 1 where all point the same way."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there are fewer features than components, or the options do not fit together.
    """
    width = inputs.widths["x"]
    if (config.components or 0) > width:
        raise MethodError(
            f"found {width} features, asked for {config.components} components; lower `components`"
        )
    if config.whiten and config.components is None:
        raise MethodError("`whiten` divides by variances along `components`, found none; set `components`")
    if (need := 8 * width**2) > MOST_BYTES:
        raise MethodError(
            f"second moments of {width} features take {need:,} bytes, at most {MOST_BYTES:,} are used; project the site first"
        )


def start(inputs: Inputs, config: Config) -> State:
    """Without directions there is one round, with centre or directions two."""
    if config.center or config.components:
        return {}
    return _carry(torch.zeros(inputs.widths["x"], dtype=torch.float64), None)


def partial(block: Block, carry: State, config: Config) -> State:
    """Moments of the rows, which give centre and directions; then second moments of the prepared rows."""
    if "mean" not in carry:
        return moments.partial(block["x"])
    if len(block) and not bool(torch.isfinite(block["x"]).all()):
        moments.refuse_not_finite(block["x"])
    z = prepared_rows(block["x"], preparation_of(carry, config.unit_length))
    second = z.new_zeros(z.shape[1], z.shape[1])
    add_gram(second, z)
    return {
        "second": second.triu_(),
        "sum": z.sum(0),
        "n": torch.tensor(len(z), device=z.device),
        "zeros": (z == 0).all(1).sum(),
    }


def merge(a: State, b: State) -> State:
    """The sums of both."""
    return moments.merge(a, b) if "g" in a else {name: a[name] + b[name] for name in a}


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """Centre and directions after the first round.

    Raises:
        MethodError: if there are no rows, or fewer directions with variance than asked for.
    """
    if "mean" in carry:
        return None
    if not int(state["n"]):
        raise MethodError("found no good rows; capture some")
    mean = moments.mean(state) if config.center else torch.zeros_like(state["c"])
    if config.components is None:
        return _carry(mean, None)
    values, columns = torch.linalg.eigh(full(moments.move(state, mean)["g"]))
    values, directions = values.flip(0)[: config.components], columns.flip(1).T[: config.components]
    total = float(moments.move(state, mean)["g"].trace())
    there = int((values > 1e-12 * values[0].clamp(min=0)).sum()) if float(values[0]) > 0 else 0
    if config.whiten and there < config.components:
        raise MethodError(
            f"whitening divides by the variance along {config.components} directions, found {there} with any; lower `components`"
        )
    variance = values.clamp(min=0) / float(state["w"])
    directions = directions / variance.sqrt()[:, None] if config.whiten else directions
    return _carry(mean, directions, variance, float(values.clamp(min=0).sum()) / total if total > 0 else None)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The second moments and what they say.

    Raises:
        MethodError: if there are no rows.
    """
    n, second = int(state["n"]), full(state["second"])
    if not n:
        raise MethodError("found no good rows; capture some")
    square = float(second.trace())
    values = torch.linalg.eigvalsh(second)
    explained = float(carry["explained"])
    common = float(state["sum"].norm() / n) / (square / n) ** 0.5 if square > 0 else 0.0
    result = Result(
        n_rows=n,
        width=len(second),
        rank=int((values > 1e-10 * values[-1]).sum()) if square > 0 else 0,
        centered=config.center,
        unit_length=config.unit_length,
        whitened=config.whiten,
        explained=None if explained < 0 else explained,
        zero_rows=int(state["zeros"]),
        common_direction=common,
        caveats=_caveats(common, int(state["zeros"]), config),
    )
    arrays = {
        "mean": carry["mean"],
        "directions": carry["directions"],
        "variance": carry["variance"],
        "second_moment": second,
    }
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def preparation_of(arrays: State, unit_length: bool) -> Preparation:
    """What a carry, or the arrays of an artifact, say is done to rows."""
    directions = arrays["directions"]
    return Preparation(arrays["mean"], directions if len(directions) else None, unit_length)


def _carry(
    mean: Tensor, directions: Tensor | None, variance: Tensor | None = None, explained: float | None = None
) -> State:
    return {
        "mean": mean,
        "directions": mean.new_zeros(0, len(mean)) if directions is None else directions,
        "variance": mean.new_zeros(0) if variance is None else variance,
        "explained": torch.tensor(-1.0 if explained is None else explained, dtype=torch.float64),
    }


def _caveats(common: float, zeros: int, config: Config) -> tuple[str, ...]:
    notes = []
    if common > 0.5:
        cure = "" if config.center else "; set `center: true` if their common part tells nothing of clusters"
        notes.append(f"the mean of the prepared rows has {common:.2f} of their length{cure}")
    if zeros:
        notes.append(f"{zeros} rows have no length once they are prepared, and belong to no cluster")
    return tuple(notes)
