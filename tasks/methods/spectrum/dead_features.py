"""How many features of a sparse autoencoder no row makes active before training, in the active subspace and anywhere.

The basis comes from `spectrum.attention_subspace`; give `x` rows of other samples, of another capture, for a fair check. A feature is
active in a row when it is positive and among the `active` largest. Both kinds of directions have length 1 and look at rows less the
basis's mean. What training adds to the dead is not counted. Arrays: `rows_inside` and `rows_anywhere`, how many rows each feature is
active in.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics import sae_init
from tasks.numerics.split import spread

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort(), "basis": ArtifactPort("spectrum.attention_subspace", one_width=True)}
ARRAYS = {"rows_inside": ("direction",), "rows_anywhere": ("direction",)}
REFERENCE = "Attention layers add into low-dimensional residual subspaces (2025): dead features, and directions inside the active subspace"
SEEDS = (154,)
KINDS = ("inside", "anywhere")


class Config(Frozen):
    """How many features."""

    features: int = Field(default=4096, ge=1, le=1 << 20)
    """Directions of each kind; each takes two rows of the width in memory, and one number for each group."""
    active: int = Field(default=32, ge=1)
    """Features that may be active in a row."""
    groups: int = Field(default=20, ge=5, le=200)
    """Groups that samples are spread into for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0
    """Of the directions."""


class Result(Frozen):
    """What was found."""

    n_rows: int
    n_groups: int
    """That hold rows."""
    components: int
    """Of the active subspace."""
    dead_inside: Interval | None
    """Share of the directions in the active subspace that no row makes active."""
    dead_anywhere: Interval | None
    """The same of directions of the whole space."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the basis is of another width, or empty.
    """
    k, width = inputs.artifacts["basis"]["basis"].shape
    if width != inputs.widths["x"]:
        raise MethodError(
            f"the basis has {width} features, the site has {inputs.widths['x']}; connect a stage of the same site"
        )
    if k == 0:
        raise MethodError("the basis has no directions: the rows that it was made of do not vary")


def start(inputs: Inputs, config: Config) -> State:
    """Both kinds of directions, and the mean."""
    basis = inputs.artifacts["basis"]["basis"].double()
    mean = inputs.artifacts["basis"]["mean"].double()
    whole = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
    return {
        "mean": mean,
        "inside": sae_init.directions(basis, config.features, config.seed),
        "anywhere": sae_init.directions(whole, config.features, config.seed),
    }


def partial(block: Block, carry: State, config: Config) -> State:
    """Rows that each feature is active in, by group."""
    group = spread(block.sample, config.groups)
    state = {"n": torch.bincount(group, minlength=config.groups)}
    x = block["x"].double() - carry["mean"]
    for kind in KINDS:
        counts = [sae_init.activity(x[group == g], carry[kind], config.active) for g in range(config.groups)]
        state[kind] = torch.stack(counts)
    return state


def merge(a: State, b: State) -> State:
    """Of both sets of rows."""
    return {name: a[name] + b[name] for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Shares of features without a row.

    Raises:
        MethodError: for less than two groups with rows.
    """
    there = state["n"] > 0
    n_groups = int(there.sum())
    if n_groups < 2:
        raise MethodError(f"samples fall into {n_groups} groups, expected at least 2; capture more samples")
    counts = {kind: state[kind][there] for kind in KINDS}
    result = Result(
        n_rows=int(state["n"].sum()),
        n_groups=n_groups,
        components=len(inputs.artifacts["basis"]["basis"]),
        dead_inside=_dead(counts["inside"], config),
        dead_anywhere=_dead(counts["anywhere"], config),
        caveats=(
            "shares are of directions that were not trained, and fall with rows: compare the two, not with other numbers of rows",
            *grouped_moments.caveats(n_groups, config.groups),
        ),
    )
    return result, {
        f"rows_{kind}": Array(values.sum(0), ARRAYS[f"rows_{kind}"]) for kind, values in counts.items()
    }


def _dead(counts: Tensor, config: Config) -> Interval | None:
    """From [group, direction]."""
    total = counts.sum(0)
    without = [float((total - group == 0).double().mean()) for group in counts]
    return grouped_moments.interval(float((total == 0).double().mean()), without, config.confidence, 1.0)
