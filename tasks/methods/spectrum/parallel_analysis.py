"""How many components stand out of what the same features would show by chance, if nothing were common to them.

Rows are read again with random signs on every feature, the same for all rows of a sample: each feature keeps its variance and its course
inside a sample, and what features have in common is gone. A component counts if its eigenvalue is larger than the largest one of such
draws, but for a share `level` of them. What counts is taken out of the rows, as its variance is in the draws too and hides weaker
components, and the rest is drawn anew, until nothing more counts. Noise need not be white, nor rows independent.

Arrays: `eigenvalue`; `null_eigenvalue` (draw, order), those of each draw of the last round; `p_value` of each component, from the round
that decided on it.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.moments_state import state_config as moments_config
from tasks.numerics import moments, spectrum
from tasks.numerics.moments import Precision
from tasks.numerics.signs import signs
from tasks.numerics.symmetric import add_gram, full

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {"eigenvalue": ("order",), "null_eigenvalue": ("draw", "order"), "p_value": ("order",)}
REFERENCE = (
    "Horn, Psychometrika 30 (1965) 179; taking out what was found: Dobriban, Owen, Journal of the Royal Statistical Society B 81 (2019) "
    "163; by signs: Hong, Sheng, Dobriban, Selecting the number of components in PCA via random signflips (2020). "
    "Of a table of networks by attacks: Model tampering attacks enable more rigorous evaluations of LLM capabilities (2025), whose "
    "abstract finds a low-dimensional robustness subspace"
)
SEEDS = (173,)
MOST_BYTES = 1 << 31
"""Of a state, draws x features x features numbers."""


class Config(Frozen):
    """How sure to be."""

    draws: int = Field(default=19, ge=1, le=999)
    """Sets of random signs; each costs as many products as a covariance."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """Probability that a component counts though features have nothing in common; at least 1 / (draws + 1)."""
    rounds: int = Field(default=20, ge=1)
    """Most times that rows are drawn anew; each is one more pass over the rows."""
    seed: int = 0
    """Of the signs."""
    precision: Precision = "float64"
    """Of the products of features in the first pass, see `spectrum.pca`; draws are float64."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found."""

    n_rows: int
    width: int
    """Features."""
    components: int
    """That count."""
    explained: float | None
    """Share of the total variance that they hold; None when there is no variance."""
    rounds: int
    """Passes with random signs."""
    settled: bool
    """Whether nothing more counted in the last of them."""
    draws: int
    level: float
    largest_null: float
    """Largest eigenvalue of any draw of the last round."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the draws cannot tell the level, or their covariances take more than 2 GiB.
    """
    if 1 / (config.draws + 1) > config.level * (1 + 1e-9):
        raise MethodError(
            f"{config.draws} draws tell probabilities down to {1 / (config.draws + 1):.3g}, level is {config.level:g}; ask for at least "
            f"{round(1 / config.level) - 1} draws"
        )
    width = inputs.widths["x"]
    needed = 8 * config.draws * width**2
    if needed > MOST_BYTES:
        raise MethodError(
            f"{config.draws} draws of {width} features take {needed:,} bytes, at most {MOST_BYTES:,} are used; project the site first, or "
            f"ask for at most {MOST_BYTES // (8 * width**2)} draws"
        )


def start(inputs: Inputs, config: Config) -> State:
    """The first pass finds the mean and the components."""
    width = inputs.widths["x"]
    zeros = torch.zeros(width, dtype=torch.float64)
    basis = torch.zeros(width, width, dtype=torch.float64)
    trace, none = torch.zeros((), dtype=torch.float64), torch.tensor(0)
    return {
        "mean": zeros,
        "values": zeros,
        "basis": basis,
        "trace": trace,
        "p": zeros + 1,
        "found": none,
        "round": none,
    }


def state_config(config: Config) -> dict[str, object]:
    """What the states depend on."""
    return {**moments_config(config), "draws": config.draws, "seed": config.seed}


def partial(block: Block, carry: State, config: Config) -> State:
    """The moments of some rows, and in the second pass the scatter of the same with random signs.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    if int(carry["round"]) == 0:
        return moments.partial(block["x"], block.weight, config.precision)
    x, sample = block["x"].double(), block.sample
    weight = torch.ones_like(x[:, 0]) if block.weight is None else block.weight.double()
    there = weight > 0  # others count as absent, as in the first pass
    z, sample, weight = x[there] - carry["mean"], sample[there], weight[there]
    taken = carry["basis"][: int(carry["found"])]
    z = (z - (z @ taken.T) @ taken) * weight.sqrt()[:, None]
    width = z.shape[1]
    null = torch.zeros(config.draws, width, width, dtype=torch.float64, device=z.device)
    for draw in range(config.draws):
        add_gram(null[draw], z * signs(sample, width, config.seed, draw))
    null = null.triu_() if z.device.type != "cpu" else null
    n = torch.tensor(len(z), device=z.device)
    return {"null": null, "n": n, "w": weight.sum(), "w2": weight.square().sum()}


def merge(a: State, b: State) -> State:
    """The sums of both."""
    if "null" not in a:
        return moments.merge(a, b)
    return {name: a[name] + b[name] for name in a}


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """To the next round, if there is something to take out."""
    if int(carry["round"]) == 0:
        found = spectrum.resolve(state, config.precision)
        values = torch.where(found.values > found.floor, found.values, 0.0)
        trace = torch.tensor(found.trace, dtype=torch.float64, device=values.device)
        known = {"mean": moments.mean(state), "values": values, "basis": found.vectors, "trace": trace}
        return carry | known | {"p": torch.ones_like(values), "round": carry["round"] + 1}
    p, k = _tested(_null(state, carry), carry, config)
    if k in (int(carry["found"]), len(p)) or int(carry["round"]) >= config.rounds:
        return None
    return carry | {"p": p, "found": torch.tensor(k), "round": carry["round"] + 1}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Eigenvalues beside those of the draws.

    Cost: O(draws feature^3) for each round.
    """
    check(inputs, config)
    values, trace, null = carry["values"], float(carry["trace"]), _null(state, carry)
    p, k = _tested(null, carry, config)
    result = Result(
        n_rows=int(state["n"]),
        width=len(values),
        components=k,
        explained=min(1.0, float(values[:k].sum()) / trace) if trace > 0 else None,
        rounds=int(carry["round"]),
        settled=k == int(carry["found"]),
        draws=config.draws,
        level=config.level,
        largest_null=float(null[:, 0].max()),
        caveats=_caveats(inputs),
    )
    arrays: dict[str, Tensor] = {"eigenvalue": values, "null_eigenvalue": null, "p_value": p}
    return result, {name: Array(array, ARRAYS[name]) for name, array in arrays.items()}


def _null(state: State, carry: State) -> Tensor:
    """[draw, order]: eigenvalues, with the share of the noise put back that went with the components that were taken out."""
    width, taken = len(carry["values"]), int(carry["found"])
    divisor = float(state["w"] - state["w2"] / state["w"]) * (width - taken) / width
    return torch.stack([torch.linalg.eigvalsh(full(g) / divisor).flip(0).clamp(min=0) for g in state["null"]])


def _tested(null: Tensor, carry: State, config: Config) -> tuple[Tensor, int]:
    """Probabilities of all components, those that were taken out before as they were, and how many count in a row."""
    values, before = carry["values"], int(carry["found"])
    p = (1 + (null[:, :1] >= values).sum(0)).double() / (config.draws + 1)
    p[:before] = carry["p"][:before]
    counts = (p <= config.level * (1 + 1e-9)) & (values > 0)
    return p, int(counts.to(torch.int64).cumprod(0).sum())


def _caveats(inputs: Inputs) -> tuple[str, ...]:
    if inputs.n_samples >= inputs.widths["x"]:
        return ()
    few = f"{inputs.n_samples} samples for {inputs.widths['x']} features"
    return (f"{few}: signs are those of samples, so that draws have as few",)
