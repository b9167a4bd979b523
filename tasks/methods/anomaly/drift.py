"""Whether rows of later captures come from the law of those before: how far they moved, and whether by more than chance.

Make rows with `anomaly.normal_rows` (`unit_length: false`, unless lengths shall not count), a stage for the reference and one for each
capture or window that follows, at one site; connect the first at `reference` and the others at `rows`, in order. Each is compared with
the reference by the distance of means, the ratio of variances, the covariances, the leading subspaces (geodesic and chordal) and a
kernel's mean discrepancy. p-values are of dealing the rows of both anew, whole samples where these have several rows, so that they hold
for any number of rows and features, as long as the same share of each is compared where samples have several; all of them together are
decided by Holm's method: the chance that anything is told while nothing drifts is `alpha`. That is of one look: where members come one by
one and a stage is made again with each, the k-th adds up to `alpha` / k.

With many rows the smallest drift is told: look at the effects, which stand beside what chance gives. Samples must be others than the
reference's, and independent: of one source in two captures they are not.

Arrays: `effect`, `p_value`, `adjusted` (member, statistic), by `statistics` of the result, and `chance` and `chance_high`, mean and 1 -
`alpha` quantile of dealt rows' effects; the log ratio of variances has its sign there, positive where the member varies more, chance of its
size. `drifted` (member), 1 where any adjusted p is at most `alpha`; `width` (member), of the kernel; `used` (member), rows that were
compared. `step` (member), the magnitude between the leading subspaces of a member and the one before, the reference first; `bend` (bend),
how far a member's is from the mean of its two neighbours': descriptions of how the series moves, on which nothing is decided, as second
differences of real series are mostly noise.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.alert import Alert
from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, ArtifactPort, Inputs, Member
from tasks.numerics import difference_subspaces, drift, two_samples
from tasks.numerics.drift import FRAME, STATISTICS, Compared

VERSION = 1
KIND = "combine"
READS = {
    "rows": ArtifactPort("anomaly.normal_rows", several=True, one_width=True),
    "reference": ArtifactPort("anomaly.normal_rows", one_width=True, of_rows=True),
}
EACH = ("effect", "chance", "chance_high", "p_value", "adjusted")
ARRAYS = dict.fromkeys(EACH, ("member", "statistic")) | {
    "drifted": ("member",),
    "width": ("member",),
    "used": ("member",),
    "step": ("member",),
    "bend": ("bend",),
}
REFERENCE = (
    "Gretton et al., A kernel two-sample test, JMLR 13 (2012) 723, eq. 3. Phipson, Smyth, Statistical Applications in Genetics and "
    "Molecular Biology 9 (2010) 39: p-values of random deals. Holm, Scandinavian Journal of Statistics 6 (1979) 65. Fukui et al., "
    "Second-order difference subspace, arXiv 2409.08563 (2024)"
)
SEEDS = (181,)
LEAST_DEALS = 999
SHARES_ALIKE = 1.25
"""Times the least share of rows that the largest may be where whole samples are dealt, before it is told."""


class Config(Frozen):
    """What is compared, and how surely."""

    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Chance that anything is told while nothing drifts."""
    components: int = Field(default=5, ge=1, le=FRAME // 2)
    """Leading directions whose subspaces are compared."""
    most: int = Field(default=1000, ge=4, le=5000)
    """Rows of each that are compared, the first by the hash of their places; products of all pairs of both lie in memory."""
    deals: int | None = Field(default=None, ge=19)
    """How often rows are dealt anew for each p-value; None: 999, or so many more that four deals may be as large where one is told."""
    newest: int | None = Field(default=None, ge=1)
    """Compare the last so many members alone, as in a watch whose earlier days were compared when they came: `alpha` is then the chance at
    each look, and a look costs the same whenever it is. None: all."""
    seed: int = Field(default=0, ge=0)
    """Of the deals."""


class Result(Frozen):
    """What moved; numbers of each are in the arrays."""

    statistics: tuple[str, ...]
    """In the order of the arrays."""
    labels: tuple[str, ...]
    """Captures and site of each that was compared, in order."""
    n_members: int
    left_out: tuple[str, ...]
    """Members of too few rows or samples to be compared."""
    n_reference: int
    """Rows of the reference that were compared."""
    n_reference_samples: int
    """That they are of."""
    by_sample: bool
    """Whether whole samples were dealt, as some have several rows."""
    deals: int
    least_p: float
    """The smallest that a p-value can be, before it is adjusted."""
    n_tests: int
    """That are decided together."""
    n_drifted: int
    """Members of which at least one statistic is told to differ."""
    first_drift: str | None
    drifted_by: dict[str, int]
    """Members by the statistics that are told to differ."""
    largest_shift: float
    """Largest distance of means, in standard deviations of all features together."""
    largest_shift_at: str
    alerts: tuple[Alert, ...]
    """One for each member that is told to differ, by its smallest adjusted p-value."""
    caveats: tuple[str, ...]


class _Rows(NamedTuple):
    label: str
    rows: Tensor
    """float64 [row, feature]"""
    sample: Tensor
    """int64 [row]"""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse what cannot be compared.

    Raises:
        MethodError: for rows of another width, or some over their length and some not; for a reference, or members all, of too few rows or
            samples; for rows of several captures whose samples have several rows; or for deals with which nothing could be told.
    """
    length = bool(inputs.results["reference"]["unit_length"])
    reference = _reference(inputs, config)
    for member in _looked_at(inputs, config):
        if bool(member.result["unit_length"]) != length:
            raise MethodError(
                f"rows of {member.label} and of the reference differ in `unit_length`; make both with one value of it"
            )
    every = [_rows(one, config) for one in _looked_at(inputs, config)]
    captures = [_captures(inputs), *(set(member.captures) for member in _looked_at(inputs, config))]
    for one, its in zip((reference, *every), captures, strict=True):
        if len(its) > 1 and _by_sample((one,)):
            raise MethodError(
                f"{one.label} is of {len(its)} captures with several rows of a sample, whose samples have the same numbers, so that they "
                "cannot be dealt whole; connect rows of one capture, or capture one row of each sample with `pooling`"
            )
        if one.rows.shape[1] != reference.rows.shape[1]:
            raise MethodError(
                f"{one.label} has {one.rows.shape[1]} features, the reference {reference.rows.shape[1]}; compare rows of one site"
            )
    few = reference if _too_few(reference, config) else every[0]
    if _too_few(reference, config) or all(_too_few(one, config) for one in every):
        raise MethodError(
            f"{few.label} has {len(few.rows)} rows of {len(torch.unique(few.sample))} samples, at least {config.components + 2} of 2 are "
            f"needed to compare {config.components} components; capture more, or ask for fewer components"
        )
    tests = len(STATISTICS) * len(_members(inputs, config))
    if config.deals is not None and tests > config.alpha * (config.deals + 1):
        raise MethodError(
            f"with {config.deals} deals no p-value is below {1 / (config.deals + 1):.2g}, of {tests} tests together none could be told at "
            f"alpha {config.alpha:g}; ask for {math.ceil(tests / config.alpha)} deals or more, or leave `deals` out"
        )


def solve(inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Compare each member with the reference.

    Cost: for each member that of `drift.compared`.
    """
    reference, members = _reference(inputs, config), _members(inputs, config)
    tests = len(STATISTICS) * len(members)
    deals = config.deals or max(LEAST_DEALS, math.ceil(5 * tests / config.alpha))
    found = [
        drift.compared(
            reference.rows,
            one.rows,
            (reference.sample, one.sample),
            config.components,
            deals,
            config.alpha,
            config.seed,
        )
        for one in members
    ]
    arrays = _arrays(reference, members, found, config)
    return _result(inputs, reference, members, arrays, deals, config), arrays


def _reference(inputs: Inputs, config: Config) -> _Rows:
    arrays = inputs.artifacts["reference"]
    return _Rows("the reference", arrays["rows"][: config.most], arrays["sample"][: config.most])


def _looked_at(inputs: Inputs, config: Config) -> tuple[Member, ...]:
    return inputs.series["rows"][-config.newest if config.newest else 0 :]


def _rows(one: Member, config: Config) -> _Rows:
    return _Rows(one.label, one.arrays["rows"][: config.most], one.arrays["sample"][: config.most])


def _too_few(one: _Rows, config: Config) -> bool:
    return len(one.rows) < config.components + 2 or len(torch.unique(one.sample)) < 2


def _compared(inputs: Inputs, config: Config) -> list[Member]:
    """Members that have enough rows."""
    return [one for one in _looked_at(inputs, config) if not _too_few(_rows(one, config), config)]


def _members(inputs: Inputs, config: Config) -> list[_Rows]:
    return [_rows(one, config) for one in _compared(inputs, config)]


def _arrays(reference: _Rows, members: list[_Rows], found: list[Compared], config: Config) -> Arrays:
    p = torch.stack([one.p for one in found])
    adjusted = two_samples.adjusted(p.flatten(), "holm").reshape(p.shape)
    bases = [_basis(one.rows, config.components) for one in (reference, *members)]
    steps = [difference_subspaces.between(a, b).magnitude for a, b in pairwise(bases)]
    bends = [_bend(*three) for three in zip(bases[:-2], bases[1:-1], bases[2:], strict=True)]
    values = {
        "effect": torch.stack([one.effect for one in found]),
        "chance": torch.stack([one.chance for one in found]),
        "chance_high": torch.stack([one.high for one in found]),
        "p_value": p,
        "adjusted": adjusted,
        "drifted": (adjusted <= config.alpha).any(1).to(torch.uint8),
        "width": torch.tensor([one.width for one in found], dtype=torch.float64),
        "used": torch.tensor([len(one.rows) for one in members]),
        "step": torch.tensor(steps, dtype=torch.float64),
        "bend": torch.tensor(bends, dtype=torch.float64),
    }
    return {name: Array(array, ARRAYS[name]) for name, array in values.items()}


def _basis(rows: Tensor, components: int) -> Tensor:
    """[component, feature]"""
    return drift.frame(rows - rows.mean(0))[:components]


def _bend(before: Tensor, here: Tensor, after: Tensor) -> float:
    """NaN where the neighbours have no mean."""
    middle = difference_subspaces.between(before, after).mean
    return difference_subspaces.between(middle, here).magnitude if len(middle) and len(here) else math.nan


def _result(
    inputs: Inputs, reference: _Rows, members: list[_Rows], arrays: Arrays, deals: int, config: Config
) -> Result:
    told = arrays["adjusted"].values <= config.alpha
    labels, shift = [one.label for one in members], arrays["effect"].values[:, 0]
    drifted = [label for label, any_of in zip(labels, told.any(1).tolist(), strict=True) if any_of]
    return Result(
        statistics=STATISTICS,
        labels=tuple(labels),
        n_members=len(members),
        left_out=_left_out(inputs, config),
        n_reference=len(reference.rows),
        n_reference_samples=len(torch.unique(reference.sample)),
        by_sample=_by_sample((reference, *members)),
        deals=deals,
        least_p=1 / (deals + 1),
        n_tests=told.numel(),
        n_drifted=len(drifted),
        first_drift=drifted[0] if drifted else None,
        drifted_by=dict(zip(STATISTICS, told.sum(0).tolist(), strict=True)),
        largest_shift=float(shift.max()),
        largest_shift_at=labels[int(shift.argmax())],
        alerts=_alerts(labels, arrays["adjusted"].values, config.alpha),
        caveats=_caveats(inputs, reference, members, config),
    )


def _alerts(labels: list[str], adjusted: Tensor, alpha: float) -> tuple[Alert, ...]:
    told = []
    for label, p in zip(labels, adjusted.tolist(), strict=True):
        names = [name for name, value in zip(STATISTICS, p, strict=True) if value <= alpha]
        if names:
            message = f"rows of {label} are not of the law of the reference, by {', '.join(names)}"
            told.append(Alert(kind="drift", message=message, value=min(p), threshold=alpha, key=label))
    return tuple(told)


def _left_out(inputs: Inputs, config: Config) -> tuple[str, ...]:
    labels = {one.label for one in _compared(inputs, config)}
    return tuple(one.label for one in _looked_at(inputs, config) if one.label not in labels)


def _by_sample(all_rows: tuple[_Rows, ...]) -> bool:
    return any(len(torch.unique(one.sample)) < len(one.sample) for one in all_rows)


def _captures(inputs: Inputs) -> set[str]:
    """Of the reference."""
    made = inputs.made.get("reference")
    return set(made.captures) if made else set()


def _shares(inputs: Inputs, reference: _Rows, members: list[_Rows], config: Config) -> list[float]:
    """Of the rows that there were, those that are compared."""
    own = (one.result["n_seen"] for one in _compared(inputs, config))
    seen = [inputs.results["reference"]["n_seen"], *own]
    return [len(one.rows) / n for one, n in zip((reference, *members), seen, strict=True)]


def _caveats(inputs: Inputs, reference: _Rows, members: list[_Rows], config: Config) -> tuple[str, ...]:
    notes = [
        "p-values ask whether there is any drift, which many rows answer with yes however small it is: judge it by `effect` beside `chance`"
    ]
    if inputs.results["reference"]["unit_length"]:
        notes.append(
            "rows are over their lengths: changes of length are not seen; `unit_length: false` keeps them"
        )
    few = min(len(torch.unique(one.sample)) for one in (reference, *members))
    if _by_sample((reference, *members)):
        notes.append(
            f"whole samples were dealt, of which there are {few} or more: rows of one sample are alike"
        )
        shares = _shares(inputs, reference, members, config)
        if max(shares) > SHARES_ALIKE * min(shares):
            notes.append(
                f"from {min(shares):.2g} to {max(shares):.2g} of the rows are compared, so that samples have more rows in some than in "
                "others: p-values may be too small or too large; compare windows of one size, or one row of each sample"
            )
    if left_out := _left_out(inputs, config):
        notes.append(
            f"{len(left_out)} members have less than {config.components + 2} rows or 2 samples and were left out, first {left_out[0]}"
        )
    own = [one.label for one in _compared(inputs, config) if _captures(inputs) & set(one.captures)]
    if own:
        notes.append(
            f"{len(own)} members are of captures of the reference itself, first {own[0]}: their p-values are too large"
        )
    return tuple(notes)
