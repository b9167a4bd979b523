"""Fewer experts in a mixture: those with like outputs are merged, and the router keeps what it has learned.

Connect the input of the mixture, such as `layers.0.moe:in:0`. A first read tells how alike experts' outputs are on the same tokens and how
often each is chosen, a second what the smaller mixture loses, beside the two things that anyone would try: keeping the most used experts,
and the mean of each group's weights by use. Experts are second(act(first x)), or second(act(gate x) * first x) where three layers are
named, in submodules that are all alike, with one linear layer as the router.

Merging by a left factor that a group shares is, with all its directions kept, exactly that mean by use; only a `share` of directions makes
a difference, and no claim is made that it helps. Arrays: `cluster` (expert); `frequency` (expert), share of rows that choose it; `cosine`
(expert, other) of outputs; `first` (group, inner, feature), gates above the rest; `second` (group, output, hidden); `first_bias` (group,
inner) and `second_bias` (group, output), zeros where there are none.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.compressed.experts import MergedExperts
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import expert_merging, moments

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "cluster": ("expert",),
    "frequency": ("expert",),
    "cosine": ("expert", "other"),
    "first": ("group", "inner", "feature"),
    "second": ("group", "output", "hidden"),
    "first_bias": ("group", "inner"),
    "second_bias": ("group", "output"),
}
REFERENCE = (
    "Li et al., Sub-MoE: efficient mixture-of-expert LLMs compression via subspace expert merging (2025), from its abstract: k-means by "
    "the cosine of outputs, union decomposition, merging by frequency; logits of merged experts by logsumexp"
)
SEEDS = (72,)
STEP = 256
"""Rows whose outputs of all experts are in memory."""


class Config(Frozen):
    """Which experts, how they compute, and how many shall be left."""

    experts: int = Field(default=8, ge=2)
    """In the mixture."""
    groups: int = Field(default=4, ge=1)
    """Experts that are left."""
    layers: tuple[str, ...] = Field(default=("up", "down"), min_length=2, max_length=3)
    """Names of an expert's linear layers: first and second; or gate, first and second."""
    expert: str = "{module}.experts.{n}"
    """Path of expert n; `{module}` is the module of the site."""
    router: str = "{module}.router"
    """Path of the router, a linear layer."""
    biases: bool = False
    """Whether experts' layers have biases."""
    router_bias: bool = False
    """Whether the router has one."""
    activation: Literal["relu", "gelu", "silu"] = "silu"
    """Of the experts."""
    top: int = Field(default=2, ge=1)
    """Experts that a token chooses, before and after."""
    normalise: bool = True
    """Probabilities of the chosen experts are made to sum to one."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Of the squares of a group's weights that the directions hold which are kept of its shared left factor."""
    seed: int = 0
    """Of k-means."""


class Result(Frozen):
    """What was merged, and what it loses. Losses are of the mixture's outputs, shares of their energy on the rows that were read."""

    kind: Literal["experts"]
    """What stands for the mixture."""
    n_rows: int
    groups: tuple[tuple[int, ...], ...]
    """Experts that became one."""
    lost: float
    lost_mean: float
    """With the mean by use of each group's weights."""
    lost_kept: float
    """With the most used experts and no others."""
    kept: tuple[int, ...]
    """Which these are."""
    ranks: tuple[tuple[int, ...], ...]
    """Directions kept of each group's layers, as `layers` has them."""
    cosine_within: float | None
    """Mean over pairs of experts in one group; None without any."""
    cosine_between: float | None
    """Mean over pairs in two groups."""
    numbers: int
    """Of the mixture."""
    numbers_after: int
    biases: bool
    activation: str
    gated: bool
    top: int
    normalise: bool
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """What is read of the network."""
    layers = [f"{_path(config, n)}.{layer}" for n in range(config.experts) for layer in config.layers]
    names = [f"{layer}.weight" for layer in layers] + [f"{config.router}.weight"]
    names += [f"{layer}.bias" for layer in layers if config.biases]
    return (*names, *([f"{config.router}.bias"] if config.router_bias else []))


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for as many groups as experts or more, fewer groups than a token chooses, experts of different shapes, shapes that do
            not fit each other or the site, and weights that are not finite.
    """
    if not config.top <= config.groups < config.experts:
        raise MethodError(
            f"{config.experts} experts shall become {config.groups}, of which a token chooses {config.top}: expected at least as many as "
            "it chooses, and fewer than there are"
        )
    expected = {f"{config.router}.weight": (config.experts, inputs.widths["x"])}
    hidden = inputs.weights[f"{_path(config, 0)}.{config.layers[0]}.weight"].shape[0]
    outputs = inputs.weights[f"{_path(config, 0)}.{config.layers[-1]}.weight"].shape[0]
    for n in range(config.experts):
        for k, layer in enumerate(config.layers):
            last = k == len(config.layers) - 1
            shape = (outputs, hidden) if last else (hidden, inputs.widths["x"])
            expected[f"{_path(config, n)}.{layer}.weight"] = shape
    for name, shape in expected.items():
        found = inputs.weights[name]
        if tuple(found.shape) != shape:
            raise MethodError(
                f"{name} has the shape {tuple(found.shape)}, expected {shape} for {config.experts} experts of {inputs.widths['x']} "
                "features; see the options `experts`, `layers` and `router`"
            )
    for name, values in inputs.weights.items():
        if not bool(values.isfinite().all()):
            raise MethodError(f"{name} holds NaN or infinity; load another checkpoint")


def start(inputs: Inputs, config: Config) -> State:
    """The mixture's weights, in float64."""
    by = {name: values.double() for name, values in inputs.weights.items()}

    def stacked(layers: tuple[str, ...], of: str) -> Tensor:
        return torch.stack(
            [torch.cat([by[f"{_path(config, n)}.{x}.{of}"] for x in layers]) for n in range(config.experts)]
        )

    carry = {
        "first": stacked(config.layers[:-1], "weight"),
        "second": stacked(config.layers[-1:], "weight"),
        "router": by[f"{config.router}.weight"],
        "cluster": torch.arange(config.experts),
    }
    if config.biases:
        carry["first_bias"], carry["second_bias"] = (
            stacked(config.layers[:-1], "bias"),
            stacked(config.layers[-1:], "bias"),
        )
    if config.router_bias:
        carry["router_bias"] = by[f"{config.router}.bias"]
    return carry


def partial(block: Block, carry: State, config: Config) -> State:
    """Products of all experts' outputs and choices; in the second round, what smaller mixtures lose.

    Raises:
        MethodError: for rows that are not finite.
    """
    x = block["x"].double()
    if not bool(x.isfinite().all()):
        moments.refuse_not_finite(block["x"])
    mixtures = {name: _mixture(carry, config, name) for name in _MIXTURES if f"{name}first" in carry}
    n = torch.tensor(len(x), device=x.device)
    with torch.no_grad():
        if len(mixtures) == 1:
            return {"n": n, **_alike(x, mixtures[""], config)}
        y = mixtures[""](x)
        lost = [(mixture(x) - y).square().sum() for name, mixture in mixtures.items() if name]
    return {"n": n, "energy": y.square().sum(), "lost": torch.stack(lost)}


def merge(a: State, b: State) -> State:
    """Sums of both."""
    return {name: a[name] + b[name] for name in a}


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """After the first read the smaller mixtures, after the second nothing.

    Raises:
        MethodError: without rows, for too few different experts, or if a decomposition fails.
    """
    if "products" not in state:
        return None
    if not int(state["n"]):
        raise MethodError("found no rows, expected at least one; capture more samples")
    cluster = expert_merging.grouped(state["products"], config.groups, config.seed)
    used = state["chosen"] / state["n"]
    kept = used.argsort(descending=True, stable=True)[: config.groups].sort().values
    known = {"products": state["products"], "frequency": used, "kept": kept}
    return carry | known | _fewer(carry, cluster, used, config) | _most_used(carry, kept)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """What was merged, and what it loses."""
    cluster, cosine = carry["merged_cluster"], expert_merging.cosines(carry["products"])
    pairs = torch.ones_like(cosine).triu(1).bool()
    same = cluster[:, None] == cluster
    energy = float(state["energy"])
    lost = [float(loss) / energy if energy > 0 else 0.0 for loss in state["lost"]]
    numbers, after = (
        sum(carry[name].numel() for name in carry if name in wanted)
        for wanted in (_NUMBERS, {f"merged_{name}" for name in _NUMBERS})
    )
    result = Result(
        kind="experts",
        n_rows=int(state["n"]),
        groups=tuple(
            tuple((cluster == group).nonzero().flatten().tolist()) for group in range(config.groups)
        ),
        lost=lost[0],
        lost_mean=lost[1],
        lost_kept=lost[2],
        kept=tuple(carry["kept"].tolist()),
        ranks=tuple(tuple(row.tolist()) for row in carry["ranks"]),
        cosine_within=_mean(cosine[pairs & same]),
        cosine_between=_mean(cosine[pairs & ~same]),
        numbers=numbers,
        numbers_after=after,
        biases=config.biases,
        activation=config.activation,
        gated=len(config.layers) == 3,
        top=config.top,
        normalise=config.normalise,
        caveats=_caveats(carry, config),
    )
    dtype = torch.promote_types(inputs.weights[f"{config.router}.weight"].dtype, torch.float32)
    arrays = {"cluster": cluster, "frequency": carry["frequency"], "cosine": cosine}
    for name in ("first", "second"):
        arrays[name] = carry[f"merged_{name}"].to(dtype)
        none = carry[f"merged_{name}"].new_zeros(arrays[name].shape[:2])
        arrays[f"{name}_bias"] = carry.get(f"merged_{name}_bias", none).to(dtype)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


_MIXTURES = ("", "merged_", "mean_", "kept_")
"""Beginnings of the names of their tensors."""
_NUMBERS = {"first", "second", "router", "first_bias", "second_bias", "router_bias"}


def _path(config: Config, n: int) -> str:
    return config.expert.replace("{n}", str(n))


def _mixture(carry: State, config: Config, name: str) -> MergedExperts:
    tensors = {part: carry[name + part] for part in (*_NUMBERS, "cluster") if name + part in carry}
    options = {"activation": config.activation, "top": config.top, "normalise": config.normalise}
    return MergedExperts(tensors, options | {"gated": len(config.layers) == 3})


def _alike(x: Tensor, mixture: MergedExperts, config: Config) -> State:
    """Products of outputs over rows, and how many rows choose each expert."""
    products = x.new_zeros(config.experts, config.experts)
    chosen = x.new_zeros(config.experts)
    for rows in torch.split(x, STEP):
        outputs = torch.stack([mixture.expert(n, rows) for n in range(config.experts)]).flatten(1)
        products += outputs @ outputs.T
        chosen += torch.bincount(mixture.chances(rows)[1].flatten(), minlength=config.experts)
    return {"products": products, "chosen": chosen}


def _fewer(carry: State, cluster: Tensor, used: Tensor, config: Config) -> State:
    """The mixtures of merged experts and of means by use, and `ranks` [group, layer]."""
    groups = [(cluster == group).nonzero().flatten() for group in range(config.groups)]
    found, ranks = {"merged_cluster": cluster, "mean_cluster": cluster}, []
    for name in sorted(_NUMBERS & carry.keys()):
        if name.startswith("router"):
            found[f"merged_{name}"] = found[f"mean_{name}"] = carry[name]
            continue
        means = [_mean_by_use(carry[name][members], used[members]) for members in groups]
        found[f"merged_{name}"] = found[f"mean_{name}"] = torch.stack(means)
        if name in ("first", "second"):
            made = [_merged(carry[name][members], used[members], name, config) for members in groups]
            found[f"merged_{name}"] = torch.stack([weight for weight, _ in made])
            ranks.append(torch.tensor([rank for _, rank in made]))
    return found | {"ranks": torch.cat(ranks, 1)}


def _most_used(carry: State, kept: Tensor) -> State:
    """The mixture of some experts."""
    found = {f"kept_{name}": carry[name][kept] for name in _NUMBERS & carry.keys()}
    return found | {"kept_cluster": torch.arange(len(kept), device=kept.device)}


def _mean_by_use(values: Tensor, used: Tensor) -> Tensor:
    part = used / used.sum() if float(used.sum()) > 0 else torch.full_like(used, 1 / len(used))
    mean: Tensor = torch.tensordot(part, values, dims=([0], [0]))
    return mean


def _merged(values: Tensor, used: Tensor, name: str, config: Config) -> tuple[Tensor, list[int]]:
    """A group's merged weight, and the ranks of its layers: gates and the rest are layers of their own."""
    layers = 2 if name == "first" and len(config.layers) == 3 else 1
    found = [expert_merging.merged(w.contiguous(), used, config.share) for w in values.chunk(layers, 1)]
    return torch.cat([f.weight for f in found]), [f.rank for f in found]


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _caveats(carry: State, config: Config) -> tuple[str, ...]:
    notes = ["losses are those of the rows that experts were grouped by"]
    if config.share == 1:
        notes.append("with all directions kept, the merged experts are the means by use, exactly")
    idle = int((carry["frequency"] == 0).sum())
    if idle:
        notes.append(f"{idle} experts were chosen by no row, and count in a group only where none of it was")
    return tuple(notes)
