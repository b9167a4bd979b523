"""A whole network with compressed layers, judged by what it says of samples: sizes and qualities, and the best way for a wanted size.

Connect a capture with a loss at port `network`, best of other samples than the layers' artifacts were made from, and the artifacts of
layers at port `layers` (all of the run, or those of some stages). Each method among them is tried at every share of the layers' numbers,
with the same share for all layers and with ranks dealt out by losses; every candidate runs on all samples beside the network as it is.
Losses of `compression.two_sided` are in one unit; those of other methods count over each layer's energy, which may well be worse than equal
shares: what the network says decides, and `best` falls back.

Where artifacts of `compression.two_sided` and of codes (`quantised`, `dictionary`) tell of the same layers, each layer is also chosen among
all of them by its bytes (`of all methods`): errors of rounded weights are told in the unit of two-sided losses by the gradients' second
moment at each output, as if errors of two outputs did not go together. Such networks are the smallest for what they say; ask for small
shares.

An artifact of `compression.slicing` stands for the whole network: its widths are tried, with one width and with widths dealt out. Sizes of
all candidates are then those of whole networks. Every sliced candidate holds tensors of its own while it is tried, where other candidates
share what they leave as it is. A mixture of experts is replaced by that of `compression.experts`. An artifact of `anomaly.shared_neurons`
deletes neurons: its candidate is judged like others, hardly smaller, and is to be asked for by its name.

Candidates are in memory together while their layers take no more than 1 GiB; else they take turns, and the network runs once more for each
turn. With `errors` the outputs of all layers are held for a batch.

A network that gives embeddings (loss `projection`, `similarity`, `mse`, or a function) is judged by the rank correlation of cosines between
samples before and after, others by their loss. Numbers come with intervals by leaving out groups of samples.

Arrays: of each candidate (candidate; the first is the network as it is) `kept` and `stored_bytes` of the layers, `loss`, `agreement`,
`divergence`, `rank_correlation`, `recall`, `cosine`, NaN where they have no meaning; `rank` (candidate, layer), 0 for a layer as it is; of
a sliced network the width at each norm; `output_error` (candidate, module), see `Layer`.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor, nn

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import compressed_candidates, compressed_groups, compressed_networks
from tasks.methods.compressed_candidates import Candidate, Layer
from tasks.methods.compressed_networks import Candidates
from tasks.methods.contract import (
    Array,
    Arrays,
    ArtifactPort,
    BatchesPort,
    Block,
    Gives,
    Inputs,
    NetworkBlock,
    State,
)
from tasks.methods.grouped_moments import Interval
from tasks.methods.network_judgement import COUNTS, GIVES, MEASURES, Heard, Judge, Point, Said, said_by
from tasks.numerics import row_sample

VERSION = 2
KIND = "reduce"
READS = {
    "network": BatchesPort(),
    "layers": ArtifactPort(
        "compression.low_rank",
        others=(
            "compression.two_sided",
            "compression.joint_layers",
            "compression.attention_tucker",
            "compression.quantised",
            "compression.dictionary",
            "compression.mixed_precision",
            "compression.slicing",
            "compression.experts",
            "compression.utilised",
            "anomaly.shared_neurons",
        ),
        several=True,
    ),
}
ARRAYS = dict.fromkeys(("kept", "stored_bytes", *MEASURES), ("candidate",)) | {
    "rank": ("candidate", "layer"),
    "output_error": ("candidate", "module"),
}
REFERENCE = (
    "Ranks under one budget by Lagrange's condition on falling losses (Fox, Operations Research 14 (1966) 209). Rank correlation: "
    "Spearman, American Journal of Psychology 15 (1904) 72"
)
SEEDS = ()

BIASES = 0.005
"""By how much a candidate may have more than the wanted share: ranks are dealt out by numbers of weights, biases left out."""


class Config(Frozen):
    """Which sizes are tried, and how they are judged."""

    kept: float = Field(default=0.8, gt=0, lt=1)
    """Share of the layers' `budget` that the chosen candidate may have, and 0.005 more: factors are dealt out by their numbers, biases left
    out."""
    budget: Literal["bytes", "numbers", "products"] = "bytes"
    """What `kept` is a share of: bytes of files; numbers, each code one; multiplications for a row, which are time."""
    tolerated: float | None = Field(default=None, ge=0)
    """In the place of `kept`: take the smallest candidate whose rank correlation falls, or whose loss rises, by no more than this. Only
    `shares` are tried then, each with factors in few bits too."""
    shares: tuple[float, ...] = (0.8, 0.6, 0.4)
    """Shares of factors that are tried beside it."""
    factor_bits: Literal[4, 8] | None = 8
    """Factors of the wanted share (of all, with `tolerated`) are tried with so many bits too; None: not."""
    neighbours: int = Field(default=10, ge=1)
    """Nearest others of a sample that are looked for again."""
    pairs: int = Field(default=60_000, ge=1)
    """Of samples, whose cosines are compared."""
    samples: int = Field(default=1000, ge=20)
    """That judgement rests on, at most: drawn among all that there are."""
    groups: int = Field(default=10, ge=2, le=100)
    """Groups of samples that are left out in turn for intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    errors: bool = True
    """Whether outputs of layers are compared too."""
    seed: int = Field(default=0, ge=0)
    """Of the pairs."""


class Result(Frozen):
    """The sizes that were tried, and the one that was chosen."""

    n_samples: int
    gives: str
    """What the network gives: `tokens`, `classes` or `embeddings`."""
    judged_by: str
    network_bytes: int
    layers_bytes: int
    """Of the layers that may be compressed."""
    points: tuple[Point, ...]
    """The first is the network as it is."""
    best: str
    """The best candidate within the wanted size, or the smallest that is good enough; empty if there is none."""
    best_kept: float | None
    """Share of the layers' bytes that it keeps."""
    best_value: float | None
    """Its `judged_by`: rank correlation, or loss."""
    value_before: float | None
    """That of the network as it is."""
    layers: tuple[Layer, ...]
    """Of the best."""
    modules: tuple[str, ...]
    """Whose outputs are compared: all layers that may be compressed."""
    fell_back: bool
    """Whether the best has equal shares, because ranks dealt out by its losses were worse."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before any pass.

    Raises:
        MethodError: if layers are not the network's, come twice, or a share cannot be met.
    """
    groups = compressed_groups.groups_of(inputs.series["layers"])
    compressed_groups.check_layers(groups, inputs)
    compressed_candidates.candidates_of(groups, shares_of(config), quantised_of(config))
    judged = min(inputs.n_samples, config.samples)
    if judged <= config.neighbours + config.groups:
        raise MethodError(
            f"found {judged} samples to judge by, expected more than neighbours and groups together, {config.neighbours + config.groups}; "
            "raise `samples`, capture more, or lower these"
        )


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on."""
    read = config.model_dump(mode="json", include={"kept", "shares", "samples", "factor_bits", "errors"})
    return read | {"tolerated": config.tolerated is not None}


def start(inputs: Inputs, config: Config) -> State:
    """All that candidates are made of."""
    groups = compressed_groups.groups_of(inputs.series["layers"])
    return compressed_networks.carried(
        groups, compressed_candidates.candidates_of(groups, shares_of(config), quantised_of(config))
    )


def partial(block: Block, carry: State, config: Config) -> State:
    """What the network and every candidate say of some samples.

    Raises:
        MethodError: if a layer cannot be replaced.
    """
    network = block.network
    assert network is not None
    candidates = Candidates(carry)
    watched = candidates.modules if config.errors else ()
    turns: list[_Turn] = []
    for some in candidates.of_network(network):
        networks = [network.copy(), *(made.network for made in some)]
        heard = _heard(network, networks, watched)
        if not heard:
            return {}
        sizes, errors = torch.stack([made.sizes for made in some]), [one.errors for _, one, _ in heard]
        table = torch.cat([one.table for _, one, _ in heard])
        turns.append(_Turn(table, torch.stack(errors).sum(0), sizes))
    rows = torch.cat([rows for rows, _, _ in heard])
    said = _together(turns)
    index, table = block.index[rows.to(block.index.device)], said.table.to(block.index.device)
    sizes = torch.cat([candidates.sizes_before(network.copy())[None], said.sizes])
    told = {"sizes": sizes, "errors": said.errors, "gives": torch.tensor(GIVES.index(heard[0][2]))}
    return told | row_sample.of_rows(index, table, config.samples)


class _Turn(NamedTuple):
    """What some candidates say, after the network as it is."""

    table: Float64[Tensor, "sample number"]
    errors: Float64[Tensor, "network module side"]
    sizes: Float64[Tensor, "candidate size"]


def _together(turns: list[_Turn]) -> _Turn:
    """Of all candidates; the network as it is said the same each time."""
    tables, errors = [turns[0].table], [turns[0].errors]
    for turn in turns[1:]:
        each = (turn.table.shape[1] - COUNTS) // len(turn.errors)
        tables.append(turn.table[:, COUNTS + each :])
        errors.append(turn.errors[1:])
    return _Turn(torch.cat(tables, 1), torch.cat(errors), torch.cat([turn.sizes for turn in turns]))


def _heard(
    network: NetworkBlock, networks: Sequence[nn.Module], watched: Sequence[str]
) -> list[tuple[Tensor, Heard, Gives]]:
    """Of each batch: its rows in the block, and what networks say of it.

    Raises:
        MethodError: if a module reads the numbers of a layer that was replaced.
    """
    try:
        return [(view.rows, said_by(view, networks, watched), view.gives) for view in network.batches()]
    except AttributeError as error:
        raise MethodError(
            f"a module of the network reads the numbers of a layer that was replaced ({error}); leave such layers out, as those of "
            "torch's own nn.TransformerEncoderLayer and nn.MultiheadAttention"
        ) from error


def merge(a: State, b: State) -> State:
    """Of both sets of samples."""
    if not a or not b:
        return a or b
    return a | row_sample.merge(a, b) | {"errors": a["errors"] + b["errors"]}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Qualities of all candidates with intervals, and the best within the wanted size.

    Raises:
        MethodError: if no sample is left to judge by.
    """
    candidates = Candidates(carry)
    said = Said.of(state, len(candidates.all) + 1)
    if said.n <= max(config.neighbours, 2):
        raise MethodError(
            f"found {said.n} good samples, expected more than {max(config.neighbours, 2)}; capture more"
        )
    sizes = state["sizes"].double()
    judge = Judge(said, GIVES[int(state["gives"])], config)
    names = ["as it is", *(candidate.name for candidate in candidates.all)]
    ways = ["as it is", *(candidate.way for candidate in candidates.all)]
    points = tuple(
        judge.point(*pair, number, sizes) for number, pair in enumerate(zip(names, ways, strict=True))
    )
    best, fell_back = _best(points, candidates, judge.judged_by, config)
    errors = (state["errors"][:, :, 0] / state["errors"][:, :, 1]).double().cpu()
    result = Result(
        n_samples=said.n,
        gives=judge.gives,
        judged_by=judge.judged_by,
        network_bytes=int(sizes[0, 1]),
        layers_bytes=int(sizes[0, 0]),
        points=points,
        best="" if best is None else names[best],
        best_kept=None if best is None else points[best].kept,
        best_value=None if best is None else _value(points[best], judge.judged_by),
        value_before=_value(points[0], judge.judged_by),
        layers=() if best is None else _layers(candidates, best, errors, config),
        modules=candidates.modules if config.errors else (),
        fell_back=fell_back,
        caveats=_caveats(points, best, _dealt_worse(points, candidates, judge.judged_by), inputs, config),
    )
    return result, _arrays(points, candidates, errors)


def _layers(candidates: Candidates, number: int, errors: Tensor, config: Config) -> tuple[Layer, ...]:
    """What stands where in a candidate."""
    changed = dict(zip(candidates.modules, errors[number].tolist(), strict=True)) if config.errors else {}
    return tuple(
        Layer(module=module, kind=kind, rank=rank, output_error=error if math.isfinite(error) else None)
        for module, kind, rank in candidates.layers(candidates.all[number - 1])
        for error in (changed.get(module, math.nan),)
    )


def _best(
    points: tuple[Point, ...], candidates: Candidates, judged_by: str, config: Config
) -> tuple[int | None, bool]:
    """The best candidate of at most the wanted share, or the smallest of those that are good enough; and whether it has equal shares, which
    were better than those dealt out by losses."""
    worth = [_worth(point, judged_by) for point in points]
    there = [n for n in range(1, len(points)) if math.isfinite(worth[n])]
    if config.tolerated is not None:
        within = [n for n in there if worth[n] >= worth[0] - config.tolerated]
        best = min(within, key=lambda n: (points[n].stored_bytes, -worth[n]), default=None)
    else:
        within = [n for n in there if _share(points[n], config) <= config.kept + BIASES]
        best = max(within, key=lambda n: (worth[n], -points[n].stored_bytes), default=None)
    if best is None:
        return None, False
    dealt = [
        worth[n]
        for n, one in enumerate(candidates.all, 1)
        if _alike(one) == _alike(candidates.all[best - 1])._replace(rule="greedy")
    ]
    return best, candidates.all[best - 1].rule == "uniform" and any(other < worth[best] for other in dealt)


def _alike(candidate: Candidate) -> Candidate:
    """What candidates that differ in how their ranks were dealt out have in common but their rule."""
    return candidate._replace(name="", way="", parts=())


def _share(point: Point, config: Config) -> float:
    """Of the budget."""
    shares = {"bytes": point.kept, "numbers": point.kept_numbers, "products": point.kept_products}
    return shares[config.budget]


def _value(point: Point, judged_by: str) -> float | None:
    found: Interval | None = getattr(point, judged_by)
    return None if found is None else found.value


def _worth(point: Point, judged_by: str) -> float:
    """Larger is better."""
    found = _value(point, judged_by)
    if found is None:
        return -math.inf
    return -found if judged_by == "loss" else found


def _arrays(points: tuple[Point, ...], candidates: Candidates, errors: Tensor) -> Arrays:
    def column(name: str) -> Tensor:
        values = [getattr(point, name) for point in points]
        return torch.tensor(
            [math.nan if v is None else v.value if isinstance(v, Interval) else v for v in values],
            dtype=torch.float64,
        )

    most = max(len(candidate.ranks) for candidate in candidates.all)
    ranks = [
        [0] * most,
        *([*candidate.ranks, *[0] * (most - len(candidate.ranks))] for candidate in candidates.all),
    ]
    arrays = {name: column(name) for name in ("kept", "stored_bytes", *MEASURES)} | {
        "rank": torch.tensor(ranks),
        "output_error": errors,
    }
    return {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _dealt_worse(points: tuple[Point, ...], candidates: Candidates, judged_by: str) -> list[str]:
    """Methods and shares for which ranks dealt out by losses were worse than equal shares."""
    worth = {
        _alike(candidate): _worth(point, judged_by)
        for candidate, point in zip(candidates.all, points[1:], strict=True)
    }
    return [
        candidate.name.replace(", greedy", "")
        for candidate in candidates.all
        for here in (_alike(candidate),)
        if here.rule == "greedy" and worth[here] < worth[here._replace(rule="uniform")]
    ]


def _caveats(
    points: tuple[Point, ...], best: int | None, worse: list[str], inputs: Inputs, config: Config
) -> tuple[str, ...]:
    notes = []
    seen = inputs.seen.get("layers", 0)
    if seen:
        notes.append(
            f"layers were made from {seen:,} of the {inputs.n_samples:,} samples that judge them, so that qualities are too good; judge by "
            "others: a capture with `subset: {skip_samples: ...}`"
        )
    strangers = inputs.strangers.get("layers", 0)
    if strangers:
        notes.append(
            f"{strangers} of the {len(inputs.series['layers'])} artifacts of layers were made from a network of other weights than "
            "the one that they are put into; connect artifacts of the same network"
        )
    if worse:
        notes.append(f"ranks dealt out by losses were worse than equal shares for {'; '.join(worse)}")
    if best is None and config.tolerated is not None:
        notes.append(
            f"no candidate is within {config.tolerated:g} of the network as it is; tolerate more, or try larger shares"
        )
    elif best is None and any(_share(point, config) <= config.kept + BIASES for point in points[1:]):
        notes.append(
            "what candidates of the wanted size give cannot be compared: it is not finite, or the same for all samples; look at the losses "
            "of the layers, or ask for more"
        )
    elif best is None:
        smallest = min(points[1:], key=lambda point: _share(point, config))
        notes.append(
            f"no candidate keeps {config.kept:g} of the {config.budget} or less; the smallest, {smallest.name}, keeps "
            f"{_share(smallest, config):.3f}"
        )
    return tuple(notes)


def quantised_of(config: Config) -> tuple[tuple[float, ...], int] | None:
    """The shares and the bits of factors in few bits."""
    shares = (config.kept,) if config.tolerated is None else shares_of(config)
    return None if config.factor_bits is None else (shares, config.factor_bits)


def shares_of(config: Config) -> tuple[float, ...]:
    """All that are tried, falling."""
    wanted = () if config.tolerated is not None and config.shares else (config.kept,)
    return tuple(sorted({*wanted, *config.shares}, reverse=True))
