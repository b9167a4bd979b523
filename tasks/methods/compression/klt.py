"""Rows as small integers at a stated error: their principal coordinates in steps of one size (KLT and one uniform step).

A step sqrt(12 theta) on every coordinate, each coded by its own entropy, spends bits where the variance is: it takes about a quarter of a
bit for each coordinate beyond the Gaussian limit (see `tasks/numerics/rate_distortion.py`). The level theta follows from the eigenvalues
of the `basis`, so that rows like those that it was made of keep the error `nmse`. `open_artifact(...).reconstruct()` gives the rows back.

What a step bounds it bounds for any row, so that little error is no proof that the basis fits. Every run of `block_rows` rows is therefore
measured twice: by its own error beside the promise, and by its surprise, the energy of its coordinates in units of the calibration's, which
is 1 there. Blocks beyond 1.1 times the promise are counted; what is beyond 3 in either raises an alarm: rows have drifted.

With `gain_shape` a row is divided by its length, which is kept beside the codes. A row then keeps the same relative error whatever its
length: one step for rows whose lengths differ by orders of magnitude (gradients) would lose the short ones.

Codes have 16 bits: `code` + 256 `high`. `high` is 0 wherever a code fits 8 bits and then takes next to no bytes. A code beyond 16 bits, of
a coordinate far outside of anything that the basis was made of, is clamped and counted; errors are measured from the codes as stored and
hold it.

Arrays: `code` and `high` (row, component), as above, times `step` are principal coordinates: as the components are orthonormal, distances
and products of rows may be taken from them alone. `length` (row) is what a decoded row is multiplied by, 1 without `gain_shape`;
`error` (row) is |x - decoded|. Rows of failed samples are -1 and NaN. `components`, `mean` and `step` decode; `bits` (component)
is the order-0 entropy of its codes; `block_nmse` and `block_surprise` (block) are of runs of rows in store order, NaN where there is
nothing to measure.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import row_codes
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics import rate_distortion, uniform_codes

VERSION = 2
KIND = "map"
READS = {"x": RowsPort(), "basis": ArtifactPort("spectrum.pca", one_width=True)}
ARRAYS = {
    "code": ("row", "component"),
    "high": ("row", "component"),
    "length": ("row",),
    "error": ("row",),
    "components": ("component", "feature"),
    "mean": ("feature",),
    "step": (),
    "bits": ("component",),
    "block_nmse": ("block",),
    "block_surprise": ("block",),
}
REFERENCE = (
    "Reverse water-filling: Cover, Thomas, Elements of Information Theory, 2nd edition (2006), theorem 10.3.3. Principal coordinates: "
    "Huang, Schultheiss, IEEE Transactions on Communications Systems 11 (1963) 289. What one step and entropy coding lose: Gish, Pierce, "
    "IEEE Transactions on Information Theory 14 (1968) 676. Gain and shape: Sabin, Gray, IEEE Transactions on Acoustics, Speech, and "
    "Signal Processing 32 (1984) 474"
)
SEEDS = ()
BLOCK_ROWS, MOST_BLOCKS = 1024, 4096
FLAGGED, ALARMING = 1.1, 3.0
LEFT_OUT = 0.01
"""Share of the wanted error that may lie outside of the basis."""
SHORT_ROWS = 10
"""Rows are said to lose their direction where one in a hundred is farther from it than this many times what the error would make."""


class Config(Frozen):
    """How exactly rows are kept."""

    nmse: float = Field(default=3e-3, gt=0, lt=1)
    """Wanted squared error over the squared distance from the mean; with `gain_shape`, over the squared length, row by row."""
    step: float | None = Field(default=None, gt=0)
    """Of every coordinate, in the place of `nmse`: in units of the rows, with `gain_shape` of rows of length 1."""
    gain_shape: bool = False
    """Code rows divided by their length, which is kept in float32; the mean is divided by the root mean square length. If lengths differ
    much, `center: false` suits the basis."""


class Result(Frozen):
    """What the codes cost and what they keep."""

    n_rows: int
    width: int
    """Features."""
    components: int
    step: float
    """Of every coordinate."""
    promised_nmse: float
    """Error that the step leaves of rows like those of the basis, or somewhat less."""
    nmse: float | None
    """Error of these rows; None where they have no energy."""
    cosine_mean: float | None
    """Of rows and decoded rows; None without a row that has a length."""
    cosine_p1: float | None
    """99 in 100 rows have a cosine of at least this; its distance from 1 is told to 4 %."""
    bits_per_dimension: float | None
    """Order-0 entropy of a row's codes, component by component, and 32 bits of its length with `gain_shape`, over features; None without
    rows."""
    gaussian_bits: float | None
    """R(D) over features at the error reached, for the variances that these rows have along the components; None without rows or error."""
    gap_to_gaussian: float | None
    """`bits_per_dimension` less `gaussian_bits`. Not the distance from a floor, and negative at times: of all rows with these variances
    Gaussian ones take the most bits."""
    wide_share: float | None
    """Share of codes that need more than 8 bits; None without rows."""
    clipped: int
    """Codes that need more than 16, and were clamped."""
    block_rows: int
    """Rows of a block, those of failed samples included; the last has those that are left over besides."""
    flagged_rows: int
    """Rows of blocks whose error exceeds the promise by more than a tenth."""
    worst_nmse: float | None
    """Largest error of a block."""
    worst_surprise: float | None
    """Largest energy of a block's coordinates over that of the calibration, each coordinate in units of its variance or of the level,
    whichever is larger; with `gain_shape` all in one unit, as variances of rows of length 1 are not known."""
    alarmed_blocks: int
    """Blocks with more than three times the promised error or the calibration's energy."""
    bytes_before: int
    """Of the rows as they were stored, not compressed."""
    bytes_coded: int
    """Of codes and lengths, by entropy; what they take on disk, `open_artifact(...).bytes` tells."""
    bytes_basis: int
    """Of components, mean and step."""
    break_even_rows: int | None
    """From so many rows on codes and basis together take less than the rows did; None where they never do."""
    caveats: tuple[str, ...]


class Plan(NamedTuple):
    """What follows from the basis and the options."""

    variances: Tensor
    """float64 [component]: of the calibration."""
    level: float
    """Squared error of a coordinate, at most."""
    step: float
    promised: float
    """NMSE."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the basis is of another width or is not whole, or the step is too fine for 16 bits.
    """
    kept, width = inputs.artifacts["basis"]["components"].shape
    if width != inputs.widths["x"]:
        raise MethodError(
            f"the basis has {width} features, the site has {inputs.widths['x']}; connect a stage of the same site"
        )
    if kept == 0:
        raise MethodError(
            "the basis has no components: the rows of the pca stage are all equal; look at the site"
        )
    plan = _plan(inputs, config)
    _check_whole(inputs, plan, width, config)
    farthest = 1.0 if config.gain_shape else uniform_codes.FAR * float(plan.variances.max()) ** 0.5
    if farthest > uniform_codes.LARGEST * plan.step:
        least = plan.promised * (farthest / uniform_codes.LARGEST / plan.step) ** 2
        raise MethodError(
            f"a step of {plan.step:.3g} takes more than 16 bits for coordinates up to {farthest:.3g}; allow a larger error (an nmse of "
            f"{least:.1g} fits), or keep the rows as they are"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    kept = len(inputs.artifacts["basis"]["components"])
    return {
        "code": RowOutput("int8", width=kept, codec="codes"),
        "high": RowOutput("int8", width=kept, codec="codes"),
        "length": RowOutput("float32"),
        "error": RowOutput("float32"),
    }


def start(inputs: Inputs, config: Config) -> State:
    """Components, mean and step as they are stored, and what rows are measured by."""
    basis, plan = inputs.artifacts["basis"], _plan(inputs, config)
    mean = basis["mean"].double()
    typical = mean.square().sum() + plan.variances.sum()
    if config.gain_shape:
        mean = mean / typical.sqrt()
        spread = torch.full_like(plan.variances, 1 / uniform_codes.FAR)
        drift = (typical / plan.variances.sum()).expand_as(spread)
    else:
        spread, units = plan.variances.sqrt(), plan.variances.clamp(min=plan.level)
        drift = 1 / (units * (plan.variances / units).sum())
    block_rows = max(BLOCK_ROWS, -(-inputs.n_rows // MOST_BLOCKS))
    return {
        "components": basis["components"].float().double(),
        "mean": mean.float().double(),
        "step": torch.tensor(plan.step, dtype=torch.float64),
        "drift": drift,
        "bins": uniform_codes.bins(spread / plan.step),
        "block_rows": torch.tensor(block_rows),
        "blocks": torch.tensor(max(1, inputs.n_rows // block_rows)),
    }


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Codes, length and squared error of each row, computed in float64.

    Cost: O(row feature component), twice that where the basis has fewer components than features.
    """
    seen = row_codes.seen(block["x"], carry, config.gain_shape)
    code = uniform_codes.codes(seen.coordinates, float(carry["step"]))
    low, high = uniform_codes.split(code)
    return {
        "code": low,
        "high": high,
        "length": seen.length.float(),
        "error": row_codes.squared_error(seen, code, carry).sqrt().float(),
    }


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums over rows and over blocks, and counts of codes: of a size that does not grow with the rows beyond 4,096 blocks.

    Cost: O(row feature component).
    """
    coordinates = row_codes.seen(block["x"], carry, config.gain_shape, beside=False).coordinates
    code = uniform_codes.join(outputs["code"], outputs["high"])
    off = coordinates - code.double() * carry["step"]
    unlike = uniform_codes.distances(row_codes.unlike(block["x"], outputs, code, carry))
    return {
        "n": torch.tensor(len(block), device=off.device),
        "bytes": torch.tensor(block["x"].nbytes, device=off.device),
        "counts": uniform_codes.count(code, carry["bins"]),
        "second": coordinates.square().sum(0),
        "inside": off.square().sum(),
        "blocks": row_codes.by_block(block, outputs, coordinates, carry, config.gain_shape),
        "wide": (outputs["high"] != 0).sum(),
        "clipped": (off.abs() > 0.51 * carry["step"]).sum(),
        "unlike": unlike.counts,
        "unlike_sum": unlike.total,
    }


def merge(a: State, b: State) -> State:
    """The sums of both."""
    return {name: a[name] + b[name] for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Rates, errors and sizes."""
    bits = uniform_codes.entropies(state["counts"], carry["bins"])
    arrays = {
        "components": carry["components"].float(),
        "mean": carry["mean"].float(),
        "step": carry["step"],
        "bits": bits,
        "block_nmse": _nmse(state["blocks"]),
        "block_surprise": state["blocks"][:, 3] / state["blocks"][:, 0],
    }
    result = _result(state, bits, arrays, _plan(inputs, config), carry, config)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _plan(inputs: Inputs, config: Config) -> Plan:
    """The level for the wanted error, or that of the given step. With `gain_shape` variances of rows of length 1 are not known, and every
    coordinate is allowed its share of the error: the promise holds whatever they are."""
    basis = inputs.artifacts["basis"]
    variances = basis["eigenvalue"][: len(basis["components"])].double()
    total = float(variances.sum())
    if config.step is not None:
        level = config.step**2 / 12
    elif config.gain_shape:
        level = config.nmse / len(variances)
    else:
        level = rate_distortion.level(variances, config.nmse * total)
    share = (
        level * len(variances) if config.gain_shape else rate_distortion.distortion(variances, level) / total
    )
    return Plan(variances, level, config.step or math.sqrt(12 * level), min(share, 1.0))


def _check_whole(inputs: Inputs, plan: Plan, width: int, config: Config) -> None:
    """Refuse a basis that leaves out what counts."""
    trace = float(inputs.results["basis"]["trace"])
    outside = max(0.0, 1 - float(plan.variances.sum()) / trace)
    found = int(inputs.artifacts["basis"]["eigenvalue"].isfinite().sum())
    if len(plan.variances) < found or outside > LEFT_OUT * plan.promised:
        raise MethodError(
            f"the basis has {len(plan.variances)} components for {width} features and leaves out {outside:.2g} of the variance, for a "
            f"wanted error of {plan.promised:.2g}; expected all: set `components: {width}`, and an engine that is not streaming or sketch, "
            "in the pca stage"
        )
    if config.gain_shape and (beside := _mean_outside(inputs)) > LEFT_OUT * plan.promised:
        raise MethodError(
            f"{beside:.2g} of the energy is that of a mean outside of the basis, along which rows of length 1 vary; with gain_shape set "
            "`center: false` in the pca stage"
        )


def _mean_outside(inputs: Inputs) -> float:
    """Share of the rows' energy about the origin that their mean has outside of the basis."""
    basis = inputs.artifacts["basis"]
    mean, components = basis["mean"].double(), basis["components"].double()
    outside = (mean - components.T @ (components @ mean)).square().sum()
    return float(outside / (mean.square().sum() + float(inputs.results["basis"]["trace"])))


def _nmse(blocks: Tensor) -> Tensor:
    """[block]: error over energy; NaN without energy."""
    return torch.where(blocks[:, 2] > 0, blocks[:, 1] / blocks[:, 2], math.nan)


def _result(
    state: State, bits: Tensor, arrays: dict[str, Tensor], plan: Plan, carry: State, config: Config
) -> Result:
    n, (kept, width) = int(state["n"]), carry["components"].shape
    row_bits = float(bits.sum()) + 32 * config.gain_shape
    gaussian = _gaussian_bits(state, width) if n else None
    nmse, surprise = arrays["block_nmse"], arrays["block_surprise"]
    flagged = nmse > FLAGGED * plan.promised
    alarmed = (nmse > ALARMING * plan.promised) | (surprise > ALARMING)
    basis = sum(arrays[name].nbytes for name in ("components", "mean", "step"))
    before, coded = int(state["bytes"]), math.ceil(n * row_bits / 8)
    measured = int(state["unlike"].sum())
    result = Result(
        n_rows=n,
        width=width,
        components=kept,
        step=plan.step,
        promised_nmse=plan.promised,
        nmse=_finite(_nmse(state["blocks"].sum(0, keepdim=True))),
        cosine_mean=1 - float(state["unlike_sum"]) / measured if measured else None,
        cosine_p1=1 - uniform_codes.quantile(state["unlike"], 0.99) if measured else None,
        bits_per_dimension=row_bits / width if n else None,
        gaussian_bits=gaussian,
        gap_to_gaussian=None if gaussian is None else row_bits / width - gaussian,
        wide_share=int(state["wide"]) / (n * kept) if n else None,
        clipped=int(state["clipped"]),
        block_rows=int(carry["block_rows"]),
        flagged_rows=int(state["blocks"][flagged, 0].sum()),
        worst_nmse=_finite(nmse),
        worst_surprise=_finite(surprise),
        alarmed_blocks=int(alarmed.sum()),
        bytes_before=before,
        bytes_coded=coded,
        bytes_basis=basis,
        break_even_rows=math.ceil(basis * n / (before - coded)) if before > coded else None,
        caveats=(),
    )
    return result.model_copy(update={"caveats": tuple(_caveats(result, config))})


def _gaussian_bits(state: State, width: int) -> float | None:
    """R(D) over features of a Gaussian with these rows' variances along the components; None where nothing varies or no error is left."""
    second, inside = state["second"] / state["n"], float(state["inside"]) / int(state["n"])
    return rate_distortion.rate(second, inside) / width if inside > 0 and float(second.sum()) > 0 else None


def _finite(values: Tensor) -> float | None:
    """The largest that is a number."""
    some = values[values.isfinite()]
    return float(some.max()) if len(some) else None


def _caveats(result: Result, config: Config) -> list[str]:
    notes = []
    if result.alarmed_blocks:
        notes.append(
            f"{result.alarmed_blocks} blocks of {result.block_rows} rows have three times the promised error, or the energy of the rows "
            "that the basis was made of (see block_nmse, block_surprise): they have drifted; make a basis of them"
        )
    if result.flagged_rows:
        notes.append(
            f"{result.flagged_rows} of {result.n_rows} rows lie in blocks whose error exceeds the promise by more than a tenth"
        )
    if result.clipped:
        notes.append(
            f"{result.clipped} codes take more than 16 bits and were clamped: their rows are far off"
        )
    expected = max(result.nmse or 0.0, result.promised_nmse) / 2
    if (
        not config.gain_shape
        and result.cosine_p1 is not None
        and 1 - result.cosine_p1 > SHORT_ROWS * expected
    ):
        notes.append(
            f"one row in a hundred has a cosine below {result.cosine_p1:.3f}: short rows keep little of their direction; gain_shape keeps "
            "it in all"
        )
    return notes
