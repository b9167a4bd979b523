"""What changes when an analysis reads rows from their codes: spectrum, neighbours, clusters and class means of rows and decoded rows.

Both are read block by block, so that decoded rows are never in memory together. Spectra, errors and class means are exact, over all rows.
Neighbours and clusters are those of a sample of the rows, the same rows on both sides: of each row the `neighbours` of largest cosine about
the mean of the sample, ties counted as found; k-means from the same rows. As k-means settles elsewhere from other starts, what two
starts on the rows themselves agree in stands beside what rows and decoded rows agree in.

Intervals are for the rows drawn, taken as independent: of rows of few texts they are too narrow.

Arrays: `eigenvalue` (component) of the covariance of the rows and `decoded_eigenvalue` (component) of decoded ones, leading first;
`overlap` (component) the mean squared cosine of principal angles between the leading subspaces of so many components; `class_shift`
(class) the distance of a class's mean from that of its decoded rows over the root mean square distance of class means from their mean,
NaN for a class without rows; no numbers without a label.
"""

from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import row_decoders
from tasks.methods.classes import carried_classes, class_label, codes_of
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import codebooks, moments, output_quality, row_sample, spectrum, vector_codes
from tasks.numerics.agreement import agreement, counted

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(labels=True), "codes": row_decoders.CODES}
ARRAYS = {
    "eigenvalue": ("component",),
    "decoded_eigenvalue": ("component",),
    "overlap": ("component",),
    "class_shift": ("class",),
}
REFERENCE = (
    "Overlap of subspaces: Bjorck, Golub, Mathematics of Computation 27 (1973) 579. Agreement of clusters: Hubert, Arabie, Journal of "
    "Classification 2 (1985) 193; its interval by the bootstrap: Efron, Annals of Statistics 7 (1979) 1"
)
SEEDS = ()
CLUSTER_ROUNDS, DRAWS = 100, 500
LOOSE = 0.02
"""A leading subspace is said to be loose where its last eigenvalue exceeds the next by a smaller share than this."""


class Config(Frozen):
    """What is compared."""

    components: int = Field(default=16, ge=1)
    """Leading eigenvalues and components; all where there are fewer features."""
    sample_rows: int = Field(default=2000, ge=3)
    """Rows whose neighbours and clusters are compared; all where there are no more."""
    neighbours: int = Field(default=10, ge=1)
    """Of each row of the sample."""
    clusters: int = Field(default=10, ge=2)
    """Of k-means."""
    label: str | None = None
    """A label with classes, whose means are compared."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the starts of clusters and of the bootstrap."""


class Interval(Frozen):
    """A figure of the sample."""

    value: float
    low: float
    """95 in 100 intervals hold the figure of all such samples."""
    high: float


class Result(Frozen):
    """What is kept."""

    n_rows: int
    sample_rows: int
    nmse: float | None
    """Squared error of decoded rows over the rows' squared distance from their mean; None where they have no energy."""
    trace_ratio: float | None
    """Variance of decoded rows over that of the rows: below 1 where codes leave directions out."""
    eigenvalue_change: float | None
    """Largest relative change of a leading eigenvalue; None where one of them is 0."""
    participation_ratio: float | None
    """Of the rows' spectrum; None without variance."""
    decoded_participation_ratio: float | None
    overlap: float
    """Of the leading subspaces of `components` dimensions: 1 where they are the same."""
    least_overlap: float
    """Of those of fewer; small where two eigenvalues are close, and which comes first is chance."""
    recall: Interval
    """Share of a row's nearest decoded rows that are among its nearest, or as near as the last of these."""
    adjusted_rand: Interval
    """Of the clusters of rows and of decoded rows."""
    restart_adjusted_rand: float
    """Of the clusters of rows from two starts: what k-means keeps when nothing is coded."""
    label: str | None
    class_shift: float | None
    """Largest of a class; None without a label, or where class means are equal."""
    caveats: tuple[str, ...]


class Leading(NamedTuple):
    """What leads both spectra."""

    before: Tensor
    """float64 [component]: eigenvalues of the rows, all of them."""
    after: Tensor
    overlap: Tensor
    """float64 [component]: of the leading subspaces of 1, 2, ... components."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the label has no classes, or there are too few rows for neighbours or clusters.
    """
    if config.label is not None:
        class_label(inputs, config.label)
    _check_sample(min(inputs.n_rows, config.sample_rows), config)


def start(inputs: Inputs, config: Config) -> State:
    """What decodes, and the label."""
    return carried_classes(inputs, config.label) | row_decoders.carried(inputs.artifacts["codes"])


def partial(block: Block, carry: State, config: Config) -> State:
    """Moments of rows and of decoded rows, their sample, and sums of classes.

    Cost: O(row feature^2), twice what the rows alone take.
    """
    x, told = block["x"].double(), row_decoders.decoded(block.aligned["codes"], carry)
    off = x - told
    classes = int(carry["classes"])
    code = codes_of(block, carry["label"]) if classes else torch.full((len(x),), -1, device=x.device)
    some = code >= 0
    zeros = x.new_zeros(classes, x.shape[1])
    sample = row_sample.of_rows(block.index, torch.cat([x, told], 1), config.sample_rows)
    return (
        _prefixed("rows", moments.partial(block["x"]))
        | _prefixed("told", moments.partial(told))
        | _prefixed("sample", sample)
        | {
            "error": off.square().sum(),
            "class_n": torch.bincount(code[some], minlength=classes),
            "class_sum": zeros.index_add(0, code[some], x[some]),
            "class_off": zeros.index_add(0, code[some], off[some]),
        }
    )


def merge(a: State, b: State) -> State:
    """Both sets of rows."""
    found = {name: a[name] + b[name] for name in ("error", "class_n", "class_sum", "class_off")}
    for name, joined in (("rows", moments.merge), ("told", moments.merge), ("sample", row_sample.merge)):
        found |= _prefixed(name, joined(_part(a, name), _part(b, name)))
    return found


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Spectra, neighbours and clusters beside each other.

    Raises:
        MethodError: if too few good rows are left for neighbours or clusters.

    Cost: O(feature^3) and O(sample^2 feature).
    """
    leading, shift = _leading(state, config.components), _class_shift(state)
    most = len(leading.overlap)
    arrays = {
        "eigenvalue": leading.before[:most],
        "decoded_eigenvalue": leading.after[:most],
        "overlap": leading.overlap,
        "class_shift": shift,
    }
    result = _result(state, leading, shift, config)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _result(state: State, leading: Leading, shift: Tensor, config: Config) -> Result:
    pairs = row_sample.values(_part(state, "sample"))
    _check_sample(len(pairs), config)
    before, after = pairs.chunk(2, dim=1)
    mean = before.mean(0)
    shares = output_quality.recall(before - mean, after - mean, config.neighbours)
    was, now = (_clusters(rows - mean, config, 0) for rows in (before, after))
    n, rows = int(state["rows.n"]), _part(state, "rows")
    trace, told = moments.trace(rows), moments.trace(_part(state, "told"))
    finite, most = shift[shift.isfinite()], len(leading.overlap)
    old, new = leading.before[:most], leading.after[:most]
    loose = most < len(leading.before) and float(leading.before[most]) > (1 - LOOSE) * float(old[-1])
    return Result(
        n_rows=n,
        sample_rows=len(pairs),
        nmse=float(state["error"]) / (trace * (n - 1)) if trace > 0 else None,
        trace_ratio=told / trace if trace > 0 else None,
        eigenvalue_change=float(((new - old) / old).abs().max()) if float(old[-1]) > 0 else None,
        participation_ratio=_ratio(leading.before),
        decoded_participation_ratio=_ratio(leading.after),
        overlap=float(leading.overlap[-1]),
        least_overlap=float(leading.overlap.min()),
        recall=_mean(shares),
        adjusted_rand=_agreed(was, now, config),
        restart_adjusted_rand=_agreed(was, _clusters(before - mean, config, 1), config).value,
        label=config.label,
        class_shift=float(finite.max()) if len(finite) else None,
        caveats=_caveats(n, len(pairs), loose, most),
    )


def _leading(state: State, components: int) -> Leading:
    """Spectra of both, and how their leading subspaces overlap."""
    found = [spectrum.eigen(moments.covariance(_part(state, name))) for name in ("rows", "told")]
    before, after = (each.values.clamp(min=0) for each in found)
    most = min(components, len(before))
    cosines = (found[0].vectors[:most] @ found[1].vectors[:most].T).square()
    within = torch.stack([cosines[:k, :k].sum() / k for k in range(1, most + 1)])
    return Leading(before, after, within.clamp(max=1))


def _class_shift(state: State) -> Tensor:
    """[class]: how far means are moved, over how far they lie apart; NaN where there is nothing to measure."""
    n, some = state["class_n"].clamp(min=1)[:, None], state["class_n"] > 0
    moved = torch.linalg.vector_norm(state["class_off"] / n, dim=1)
    means = (state["class_sum"] / n)[some]
    apart = (means - means.mean(0)).square().sum(1).mean().sqrt() if len(means) else moved.new_tensor(0.0)
    return torch.where(some & (apart > 0), moved / torch.where(apart > 0, apart, 1.0), torch.nan)


def _clusters(rows: Tensor, config: Config, restart: int) -> Tensor:
    """int64 [row]: clusters by k-means from rows of the sample; the same of them whatever rows hold."""
    rng = torch.Generator().manual_seed(config.seed + restart)
    begun = torch.randperm(len(rows), generator=rng)[: config.clusters].to(rows.device)
    parts = rows[:, None]
    centre = codebooks.lloyd(parts, parts[begun].transpose(0, 1), CLUSTER_ROUNDS)
    return vector_codes.nearest(parts, centre)[:, 0]


def _mean(shares: Tensor) -> Interval:
    """Of the sample, with 1.96 standard errors."""
    value, off = float(shares.mean()), 1.96 * float(shares.std()) / len(shares) ** 0.5
    return Interval(value=value, low=max(0.0, value - off), high=min(1.0, value + off))


def _agreed(a: Tensor, b: Tensor, config: Config) -> Interval:
    """The adjusted Rand index of two partitions, and what rows drawn again from them have."""
    table = counted(a.cpu().numpy(), b.cpu().numpy(), config.clusters, config.clusters)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(config.seed)))
    drawn = rng.multinomial(table.sum(), table.flatten() / table.sum(), DRAWS).reshape(-1, *table.shape)
    values = [_rand(again) for again in drawn]
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return Interval(value=_rand(table), low=low, high=high)


def _rand(table: np.ndarray) -> float:
    found = agreement(table.astype(np.int64))
    return 0.0 if found is None else found.adjusted_rand


def _ratio(values: Tensor) -> float | None:
    return spectrum.participation_ratio(values) if float(values.sum()) > 0 else None


def _check_sample(rows: int, config: Config) -> None:
    """Refuse a sample that is too small."""
    need = max(config.neighbours + 1, config.clusters)
    if rows <= need:
        raise MethodError(
            f"found {rows} rows to sample, {config.neighbours} neighbours and {config.clusters} clusters need more than {need}; lower "
            "these, raise `sample_rows`, or capture more samples"
        )


def _prefixed(name: str, state: State) -> State:
    return {f"{name}.{key}": values for key, values in state.items()}


def _part(state: State, name: str) -> State:
    return {
        key.removeprefix(f"{name}."): values for key, values in state.items() if key.startswith(f"{name}.")
    }


def _caveats(n: int, sampled: int, loose: bool, most: int) -> tuple[str, ...]:
    notes = []
    if sampled < n:
        notes.append(
            f"neighbours and clusters are those of {sampled} of {n} rows, taken as independent: neighbours lie closer among all of them"
        )
    if loose:
        notes.append(
            f"eigenvalue {most} exceeds the next by less than {LOOSE:.0%}: which directions lead is chance, and their overlap says little"
        )
    return tuple(notes)
