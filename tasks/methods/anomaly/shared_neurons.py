"""Neurons that several sets of memorised samples have in common, located against ordinary samples, and the layer without them.

Connect where the neurons of a feed-forward layer are read: the input of its second linear layer, such as
`encoder.layer.0.output.dense:in:0`. A label tells which samples are ordinary, and the sets of the others. A neuron belongs to a set if its
mean over the set's samples differs from that over ordinary ones (Welch's test; all neurons of all sets are one family of tests) and it
does more in the set: importance is the length of its column of weights times the root of its mean square over rows, |W| as the outputs
feel it. Neurons that belong to `share` of the sets are located. All sets are compared with the same ordinary samples: what else tells
these from memorised ones, such as length or topic, is located too, so choose them alike.

A sample is one unit, by the mean over its rows; where samples are more than `units`, some are put together at random, which costs tests a
little strength. Of several captures, samples of one number and one class are one unit. States hold units x classes x neurons numbers and
two matrices of neurons x neurons.

Located neurons are deleted by `compression.model` (port `layers`), whose candidate `shared_neurons` is the network without their columns of
weights: judge it there, and write it with `subspan export STAGE FOLDER --candidate shared_neurons`. `anomaly.concept_energy` scores rows
by them.

Arrays: `located` (feature), 1 for located neurons; `sets` (feature), to how many sets each belongs; `effect` (set, feature), difference of
means over the standard deviation of units; `p_value` (set, feature), corrected; `importance` (set, feature) and `ordinary_importance`
(feature); `overlap`, `overlap_expected` and `overlap_p` (set, other_set): neurons that belong to both, as many as chance gives, and the
chance of as many.

From the abstract: contrasting activations of sets of memorised and of other samples in feed-forward layers; sets significantly activate a
common subspace; its weights are pruned. Choices made here: the test and its correction, importance by column (the authors are said to rank
single weights by |W| times the norm of activations), the share of sets, and that whole columns are pruned.
"""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import layer_compression
from tasks.methods.classes import carried, class_code, class_label, codes_of
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.layer_compression import parameters
from tasks.numerics import unit_sums
from tasks.numerics.chance_overlap import expected_in, overlap
from tasks.numerics.layer_error import lost_share
from tasks.numerics.split import scattered
from tasks.numerics.symmetric import full
from tasks.numerics.two_samples import Correction, adjusted, compared, sample_of
from tasks.numerics.unit_sums import merge

__all__ = ["merge", "parameters"]

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "located": ("feature",),
    "sets": ("feature",),
    "effect": ("set", "feature"),
    "p_value": ("set", "feature"),
    "importance": ("set", "feature"),
    "ordinary_importance": ("feature",),
    "overlap": ("set", "other_set"),
    "overlap_expected": ("set", "other_set"),
    "overlap_p": ("set", "other_set"),
}
REFERENCE = (
    "Memorized images in diffusion models share a subspace that can be located and deleted (2024), from its abstract. Welch, Biometrika 34 "
    "(1947) 28; Holm, Scandinavian Journal of Statistics 6 (1979) 65. Importance: Sun, Liu, Bair, Kolter, A simple and effective pruning "
    "approach for large language models (2023), summed over a column"
)
SEEDS = (264,)
MOST_BYTES = 1 << 31
"""Of a state."""
FEW = 10
"""Samples of a set below which a test is said to rest on few."""
EPS = 1e-12


class Config(Frozen):
    """Which samples, and when a neuron counts."""

    weight: str = "{module}.weight"
    """The weights of the layer that reads the neurons; `{module}` is the module of the site."""
    label: str | None = None
    """The label with the classes; None: the first by name."""
    ordinary: tuple[str, ...] = ()
    """Classes of ordinary samples; none: the label's first class."""
    memorised: tuple[str, ...] = ()
    """Classes that are sets of memorised samples; none: all that are not ordinary."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Of the correction."""
    correction: Correction = "holm"
    """holm: chance of any false finding among all neurons and sets; bh: share of false findings among all, in expectation."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the sets to which a located neuron belongs at least."""
    top: float = Field(default=1.0, gt=0, le=1)
    """Share of the neurons, those of most importance for a set first, among which its own must be."""
    units: int = Field(default=256, ge=2, le=65_536)
    """Samples that are told apart."""


class Set(Frozen):
    """A set of memorised samples."""

    name: str
    n_units: int
    neurons: int
    """That belong to it."""
    energy: float
    """Share of its rows' squares in the located neurons."""
    left_out: int | None
    """Neurons that were located in the other sets alone; None for a single set."""
    left_out_own: int | None
    """Of these, how many belong to this set too."""
    left_out_expected: float | None
    """The same of as many neurons drawn at random."""
    left_out_energy: float | None
    """Share of this set's squares in them."""


class Result(Frozen):
    """What was located, and what its deletion does to the layer."""

    kind: Literal["kept_inputs"]
    """What stands for the layer."""
    n_rows: int
    n_unused: int
    """Rows of other classes, or of none."""
    width: int
    """Neurons."""
    outputs: int
    """Outputs of the layer."""
    ordinary: tuple[str, ...]
    ordinary_units: int
    sets: tuple[Set, ...]
    least_sets: int
    """To so many a located neuron belongs."""
    located: int
    expected: float
    """Neurons that belong to so many sets, were each set's drawn at random."""
    energy_memorised: float
    """Share of the squares of all sets' rows in the located neurons."""
    energy_ordinary: float
    """The same of ordinary rows."""
    changed_memorised: float
    """Mean squared change of the layer's outputs without the located neurons over their mean square, a bias left out; exact over all sets'
    rows."""
    changed_ordinary: float
    """The same over ordinary rows."""
    caveats: tuple[str, ...]


class _Classes(NamedTuple):
    """Of the label."""

    label: str
    ordinary: tuple[str, ...]
    memorised: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features; without such classes, with a class on both sides, or
            where a state takes more than 2 GiB.
    """
    layer_compression.check_weight(inputs, config.weight)
    found, width = _classes(inputs, config), inputs.widths["x"]
    if twice := set(found.ordinary) & set(found.memorised):
        raise MethodError(f"class {min(twice)!r} is both ordinary and memorised; name it once")
    if not found.memorised:
        raise MethodError(
            f"all classes of the label {found.label!r} are ordinary; expected a set of memorised samples as another class"
        )
    needed = unit_sums.state_bytes(width, 1 + len(found.memorised), config.units)
    if needed > MOST_BYTES:
        raise MethodError(
            f"{width} neurons, {1 + len(found.memorised)} classes and {config.units} units take {needed:,} bytes, at most {MOST_BYTES:,} "
            "are used; ask for fewer units, or name fewer sets in `memorised`"
        )


def start(inputs: Inputs, config: Config) -> State:
    """The label, and which group each of its classes is in: 0 ordinary, 1, 2, ... the sets, -1 none."""
    found = _classes(inputs, config)
    group = torch.full((len(inputs.categories[found.label]),), -1, dtype=torch.int64)
    for name in found.ordinary:
        group[class_code(inputs, found.label, name, 0)] = 0
    for number, name in enumerate(found.memorised, 1):
        group[class_code(inputs, found.label, name, 0)] = number
    own = torch.tensor(inputs.n_samples <= config.units)
    return {"label": carried(found.label), "group": group, "own": own}


def partial(block: Block, carry: State, config: Config) -> State:
    """Sums of each unit's rows, squares of each group's, and second moments of ordinary and of memorised rows.

    Raises:
        MethodError: for rows that are not finite, or whose squares overflow.

    Cost: rows * feature * (feature + 1) flops on a CPU.
    """
    x, n_groups = block["x"], int(carry["group"].max()) + 1
    code = codes_of(block, carry["label"])
    group = torch.where(code >= 0, carry["group"].to(code.device)[code.clamp(min=0)], -1)
    unit = block.sample if bool(carry["own"]) else scattered(block.sample, config.units)
    return unit_sums.partial(x, group, unit, n_groups, config.units)


class _Seen(NamedTuple):
    """What tests say of all sets."""

    effect: Tensor
    p: Tensor
    importance: Tensor
    """[group, feature], ordinary first."""
    own: Tensor
    """bool [set, feature]"""
    units: list[int]
    """Of each group."""


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Tests of all neurons, what sets have in common, and the layer without it.

    Raises:
        MethodError: for a class with less than two samples.

    Cost: O(sets units feature + outputs feature^2).
    """
    classes, weight = _classes(inputs, config), inputs.weights[config.weight].double()
    seen, energy = _seen(state, weight, classes, config), state["square"]
    least = _least(config.share, len(seen.own))
    count = seen.own.sum(0)
    located = count >= least
    common, rows = overlap(seen.own), state["rows"].sum(1)
    sizes = seen.own.sum(1).tolist()
    changed = _changed(state, weight, located)
    result = Result(
        kind="kept_inputs",
        n_rows=int(rows.sum()),
        n_unused=int(state["left_out"]),
        width=weight.shape[1],
        outputs=weight.shape[0],
        ordinary=classes.ordinary,
        ordinary_units=seen.units[0],
        sets=tuple(
            _set(name, k, seen, energy[k + 1], located, config) for k, name in enumerate(classes.memorised)
        ),
        least_sets=least,
        located=int(located.sum()),
        expected=expected_in(sizes, weight.shape[1], least),
        energy_memorised=_inside(energy[1:].sum(0), located),
        energy_ordinary=_inside(energy[0], located),
        changed_memorised=changed[1],
        changed_ordinary=changed[0],
        caveats=_caveats(seen, classes, int(located.sum()), bool(carry["own"]), config),
    )
    arrays = {
        "located": located.to(torch.uint8),
        "sets": count,
        "effect": seen.effect,
        "p_value": seen.p,
        "importance": seen.importance[1:],
        "ordinary_importance": seen.importance[0],
        "overlap": common.n,
        "overlap_expected": common.expected,
        "overlap_p": common.p,
    }
    return result, {name: Array(values.contiguous(), ARRAYS[name]) for name, values in arrays.items()}


def _seen(state: State, weight: Tensor, classes: _Classes, config: Config) -> _Seen:
    width, rows = weight.shape[1], state["rows"]
    names = ("ordinary samples", *(f"set {name!r}" for name in classes.memorised))
    samples = []
    for name, sums, n in zip(names, state["sum"], rows, strict=True):
        if int((n > 0).sum()) < 2:
            raise MethodError(
                f"{name}: found {int((n > 0).sum())} samples, expected at least 2; capture more, or name the classes in `ordinary` and "
                "`memorised`"
            )
        samples.append(sample_of(sums[n > 0] / n[n > 0, None]))
    tests = [compared(one, samples[0]) for one in samples[1:]]
    p = adjusted(torch.cat([test.p for test in tests]), config.correction).view(-1, width)
    mean_square = state["square"] / rows.sum(1, keepdim=True)
    importance = weight.square().sum(0).sqrt().to(mean_square.device) * mean_square.sqrt()
    more, wanted = importance[1:], math.ceil(config.top * width * (1 - EPS))
    first = torch.argsort(more, dim=1, descending=True, stable=True)[:, :wanted]
    among = torch.zeros_like(more, dtype=torch.bool).scatter_(1, first, True)
    own = (p <= config.alpha) & (more > importance[0]) & among
    return _Seen(torch.stack([test.effect for test in tests]), p, importance, own, [one.n for one in samples])


def _set(name: str, k: int, seen: _Seen, energy: Tensor, located: Tensor, config: Config) -> Set:
    own, n = seen.own[k], len(seen.own)
    told: dict[str, int | float] = {}
    if n > 1:
        others = torch.arange(n, device=own.device) != k
        found = seen.own[others].sum(0) >= _least(config.share, n - 1)
        told = {
            "left_out": int(found.sum()),
            "left_out_own": int((found & own).sum()),
            "left_out_expected": float(found.sum()) * float(own.double().mean()),
            "left_out_energy": _inside(energy, found),
        }
    missing = dict.fromkeys(("left_out", "left_out_own", "left_out_expected", "left_out_energy"))
    return Set.model_validate(
        missing
        | told
        | {"name": name, "n_units": seen.units[k + 1], "neurons": int(own.sum())}
        | {"energy": _inside(energy, located)}
    )


def _changed(state: State, weight: Tensor, located: Tensor) -> list[float]:
    """Of ordinary and of memorised rows."""
    weight = weight.to(located.device)
    return [lost_share(weight, weight * ~located, full(gram)) for gram in state["gram"]]


def _inside(squares: Tensor, those: Tensor) -> float:
    """Share of some squares; 0 where all are 0."""
    whole = float(squares.sum())
    return float(squares[those].sum()) / whole if whole > 0 else 0.0


def _least(share: float, sets: int) -> int:
    return max(1, math.ceil(share * sets * (1 - EPS)))


def _classes(inputs: Inputs, config: Config) -> _Classes:
    """Names of both kinds.

    Raises:
        MethodError: if there is no such label or class.
    """
    label = class_label(inputs, config.label)
    names = inputs.categories[label]
    for name in (*config.ordinary, *config.memorised):
        class_code(inputs, label, name, 0)
    ordinary = config.ordinary or names[:1]
    return _Classes(
        label, ordinary, config.memorised or tuple(name for name in names if name not in ordinary)
    )


def _caveats(seen: _Seen, classes: _Classes, located: int, own: bool, config: Config) -> tuple[str, ...]:
    notes = []
    if not located:
        notes.append("no neuron was located: the layer without them is the layer as it is")
    if len(classes.memorised) == 1:
        notes.append(
            "a single set: nothing tells what sets have in common; make several classes of memorised samples"
        )
    few = [name for name, n in zip(("ordinary", *classes.memorised), seen.units, strict=True) if n < FEW]
    if few:
        notes.append(f"tests of {', '.join(few)} rest on less than {FEW} samples")
    if not own:
        notes.append(
            f"samples are more than {config.units} units: some are put together, tests are a little weaker"
        )
    return tuple(notes)
