"""Codebooks for rows: their features in parts, each part with its own vectors by k-means (product quantisation), in bounded memory.

A sample of the rows comes first: the rotation is found on it and vectors start at seeded rows of it, improved by rounds of k-means. Then
all rows are read once a round, until a round lowers the squared error by less than `tolerance` of it. `compression.product_codes` tells
rows by these codebooks, in `bits` for each part.

A vector that is nearest to no row (a dead code) is put at a row, drawn with a chance in proportion to its squared error: this is what is
taken of the method for codebooks without dead codes. What that method adds for training by gradients in small batches, running averages
of usage and a slow pull towards the rows drawn, has no part where every round counts all rows. How evenly vectors are used is told for
every part: `perplexity`.

With `scale: gain` rows are divided by their length first, with `gain_bias` the mean of their features is taken off before: codebooks are
then of shapes, and a row is told by gain, shape and bias. The formula is reconstructed from an abstract, which names these three for
coefficients of splines.

Linear re-parameterisation of codebooks (SimVQ) is no option here: it lets the gradient of one vector move all of them, for codebooks that
are trained by gradients. k-means puts every vector at the mean of its rows, where a linear map of them all has nothing left to improve.

Arrays: `centre` (part, code, place) holds the vectors, zeros at places of the last part that no feature fills; `rotation` (component,
feature), without rows where there is none, and `mean` (feature): parts are of rotation (x - mean). Of the last round, with just these
vectors: `count` (part, code) rows that are nearest to each, `perplexity` (part), `error` (part) mean squared distance from the nearest.
`cost` (round) is their sum in each round, never rising but by rounding to float32.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import codebooks, k_subspaces, row_sample, vector_codes
from tasks.numerics.codebooks import Rotation
from tasks.numerics.vector_codes import Codebooks, Scale

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "centre": ("part", "code", "place"),
    "rotation": ("component", "feature"),
    "mean": ("feature",),
    "count": ("part", "code"),
    "perplexity": ("part",),
    "error": ("part",),
    "cost": ("round",),
}
REFERENCE = (
    "Product quantisation: Jegou, Douze, Schmid, IEEE Transactions on Pattern Analysis and Machine Intelligence 33 (2011) 117. k-means: "
    "Lloyd, IEEE Transactions on Information Theory 28 (1982) 129. Rotations: Ge, He, Ke, Sun, IEEE Transactions on Pattern Analysis and "
    "Machine Intelligence 36 (2014) 744 (dealt principal directions; alternating Procrustes). Dead codes put at rows: Zheng, Vedaldi, "
    "Online Clustered Codebook, ICCV (2023), without its running averages. Gain, shape and bias: SHARe-KAN: Holographic Vector "
    "Quantization for Memory-Bound Inference (2025), reconstructed from its abstract"
)
SEEDS = (75, 96)
ANCHORS = 32
"""Dead codes of a part that a round can revive."""
ROWS_PER_CODE = 39
"""With fewer, vectors follow single rows: the error of other rows is larger than that told."""


class Config(Frozen):
    """How finely rows are told."""

    place: int = Field(default=8, ge=1)
    """Features of a part; of the last, those left over. Fewer cost more bits and err less."""
    bits: int = Field(default=8, ge=1, le=8)
    """Of the code of a part: it has 2^bits vectors."""
    rotation: Rotation = "principal"
    """`principal`: parts take principal directions, dealt so that each has as much to tell: half to two thirds of the error of none on
    states of a text model. `opq`: turned further, by Procrustes, which took longer and gained nothing there. Both are found on `start_rows`
    rows, which must be many beside the features."""
    scale: Scale = "none"
    """`gain`: rows are divided by their length; `gain_bias`: the mean of their features is taken off before."""
    start_rows: int = Field(default=8192, ge=2)
    """Rows of the sample; all where there are no more."""
    rounds: int = Field(default=10, ge=1)
    """Reads of all rows after the sample, at most."""
    tolerance: float = Field(default=1e-3, ge=0, lt=1)
    """Stop when a round lowers the squared error by less than this share of it."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the rows that vectors start at."""


class Result(Frozen):
    """The codebooks in numbers."""

    n_rows: int
    width: int
    """Features."""
    parts: int
    codes: int
    """Vectors of a part."""
    rotation: Rotation
    scale: Scale
    rounds: int
    """Reads of all rows after the sample."""
    converged: bool
    """Whether the last round lowered the error by less than the tolerance."""
    nmse: float | None
    """Squared error over the squared distance from the mean, of what is coded: of shapes where there is a scale. None where rows are
    equal."""
    bits_per_dimension: float
    """Of codes, over features; scales not counted."""
    dead: int
    """Vectors of all parts that were nearest to no row in the last round."""
    revived: int
    """Dead vectors that were put at rows between rounds over all rows, those of all rounds together."""
    least_perplexity: float
    """Of a part: how many vectors, used alike, would tell as much as its codes do."""
    mean_perplexity: float
    bytes_codebook: int
    """Of vectors, rotation and mean."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there are fewer rows, or fewer of the sample, than vectors of a part.
    """
    codes, found = 1 << config.bits, min(inputs.n_rows, config.start_rows)
    if found < codes:
        raise MethodError(
            f"{codes} vectors start at as many rows, found {inputs.n_rows} rows and `start_rows` {config.start_rows}; lower `bits`, raise "
            "`start_rows`, or capture more samples"
        )


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is known before the sample."""
    return {}


def state_config(config: Config) -> dict[str, object]:
    """All options have a part in what is carried."""
    return config.model_dump(mode="json")


def partial(block: Block, carry: State, config: Config) -> State:
    """A sample of the rows first; then sums for each vector.

    Raises:
        MethodError: for rows that are not finite.
    """
    x = block["x"]
    k_subspaces.require_finite(x)
    if "centre" not in carry:
        return row_sample.of_rows(block.index, _shapes(x.double(), config), config.start_rows)
    parts = vector_codes.placed(x, _books(carry, config)).parts
    return codebooks.partial(parts, block.index, carry["centre"], ANCHORS)


def merge(a: State, b: State) -> State:
    """The sample, or the sums, of both."""
    return codebooks.merge(a, b) if "anchor" in a else row_sample.merge(a, b)


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """The vectors that the next round measures rows against; None when they have settled.

    Raises:
        MethodError: if there are fewer good rows than vectors of a part.
    """
    if "centre" not in carry:
        return _first(state, config)
    if _settled(state, carry, config) or len(carry["cost"]) + 1 >= config.rounds:
        return None
    centre, revived = codebooks.moved(state, carry["centre"])
    cost = torch.cat([carry["cost"], state["error"].sum()[None]])
    return carry | {"centre": centre, "cost": cost, "revived": carry["revived"] + revived}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """What the last round counted, with the vectors that it measured against."""
    n = int(state["n"][0].sum())
    costs = torch.cat([carry["cost"], state["error"].sum()[None]])
    arrays = {
        "centre": carry["centre"].float(),
        "rotation": carry["rotation"].float(),
        "mean": carry["mean"].float(),
        "count": state["n"],
        "perplexity": vector_codes.perplexity(state["n"]),
        "error": state["error"] / n,
        "cost": costs / n,
    }
    result = _result(state, carry, arrays, n, config)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _first(state: State, config: Config) -> State:
    """Mean, rotation and vectors of the sample."""
    x, codes = row_sample.values(state), 1 << config.bits
    if len(x) < codes:
        raise MethodError(
            f"found {len(x)} good rows, {codes} vectors of a part start at as many; lower `bits`"
        )
    mean = x.mean(0).float().double()
    how = (config.place, codes, config.rotation, config.seed, config.tolerance)
    centre, rotation = codebooks.begun(x - mean, *how)
    none = torch.zeros((), dtype=torch.int64, device=x.device)
    return {"centre": centre, "rotation": rotation, "mean": mean, "cost": x.new_zeros(0), "revived": none}


def _shapes(x: Tensor, config: Config) -> Tensor:
    """Rows without their scale."""
    width = x.shape[1]
    as_it_is = Codebooks(x.new_zeros(1, 1, width), x.new_zeros(width), x.new_zeros(0, width), config.scale)
    return vector_codes.placed(x, as_it_is).parts[:, 0]


def _books(carry: State, config: Config) -> Codebooks:
    return Codebooks(carry["centre"], carry["mean"], carry["rotation"], config.scale)


def _settled(state: State, carry: State, config: Config) -> bool:
    """Whether a round has lowered the error by less than the tolerance."""
    now = float(state["error"].sum())
    if now == 0 or not len(carry["cost"]):
        return now == 0
    before = float(carry["cost"][-1])
    return before - now <= config.tolerance * before


def _result(state: State, carry: State, arrays: dict[str, Tensor], n: int, config: Config) -> Result:
    total, error = codebooks.spread(state), float(state["error"].sum())
    parts, width, dead = len(state["n"]), len(carry["mean"]), int((state["n"] == 0).sum())
    settled = _settled(state, carry, config)
    return Result(
        n_rows=n,
        width=width,
        parts=parts,
        codes=1 << config.bits,
        rotation=config.rotation,
        scale=config.scale,
        rounds=len(arrays["cost"]),
        converged=settled,
        nmse=error / total if total > 0 else None,
        bits_per_dimension=parts * config.bits / width,
        dead=dead,
        revived=int(carry["revived"]),
        least_perplexity=float(arrays["perplexity"].min()),
        mean_perplexity=float(arrays["perplexity"].mean()),
        bytes_codebook=sum(arrays[name].nbytes for name in ("centre", "rotation", "mean")),
        caveats=_caveats(n, dead, settled, width, config),
    )


def _caveats(n: int, dead: int, settled: bool, width: int, config: Config) -> tuple[str, ...]:
    notes, codes = [], 1 << config.bits
    if n < ROWS_PER_CODE * codes:
        notes.append(
            f"{n} rows are fewer than {ROWS_PER_CODE} for each of {codes} vectors: other rows have larger errors than these"
        )
    if config.rotation != "none" and min(n, config.start_rows) < 10 * width:
        notes.append(
            f"the rotation of {width} features was found on {min(n, config.start_rows)} rows, fewer than ten for each; raise `start_rows`"
        )
    if not settled:
        notes.append(f"the error still fell after {config.rounds} rounds; raise `rounds`")
    if dead:
        notes.append(f"{dead} vectors are nearest to no row: rows repeat, or are few; lower `bits`")
    return tuple(notes)
