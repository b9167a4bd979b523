"""Rows as the number of a subspace and small integers along it: a dictionary of local bases, one step for all of them.

A row goes to the subspace that leaves the least of it, as `clustering.assign` has it, and its coordinates there are told in steps of one
size; what lies outside of the subspace is dropped. The step follows from the spectra of the subspaces' rows, so that rows like these keep
the error `nmse` with what is dropped counted; an error below that alone is refused. `open_artifact(...).reconstruct()` gives the rows back.

Whether pieces pay is measured beside them: `klt_bits_per_dimension` is what `compression.klt` in the basis of all rows takes for the same
rows at the same error. Its codes are counted at two steps around, and the line between them is read at the error reached. Entropies of
many small tables are too low; half a nat is added for each symbol of a table beyond the first, on both sides.

Subspaces of rows of length 1 (`unit_length`) code rows divided by their length, which is kept beside, as `gain_shape` of `compression.klt`
does; errors are then relative to each row's length.

Arrays: `part` (row) is the subspace's number; `code` + 256 `high` (row, component), times `step`, are coordinates along `components`
(cluster_number, component, feature) from `mean` (cluster_number, feature), 0 beyond a subspace's dimension; `length` (row) is what a
decoded row is multiplied by, 1 unless rows have length 1; `error` (row) is |x - decoded|. Rows of failed samples have part 0,
code -1 and NaN. `size` (cluster_number) counts these rows; `block_nmse` and `block_surprise` (block) are those of `compression.klt`.
"""

import math
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import row_codes
from tasks.methods.compression import klt
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics import k_subspaces, rate_distortion, uniform_codes
from tasks.numerics.k_subspaces import Subspaces
from tasks.numerics.largest_products import TILE_ROWS

VERSION = 2
KIND = "map"
READS = {
    "x": RowsPort(),
    "subspaces": ArtifactPort(
        "clustering.k_subspaces", others=("clustering.bases", "clustering.sine_medoids"), one_width=True
    ),
    "basis": ArtifactPort("spectrum.pca", one_width=True),
}
ARRAYS = {
    "part": ("row",),
    "code": ("row", "component"),
    "high": ("row", "component"),
    "length": ("row",),
    "error": ("row",),
    "components": ("cluster_number", "component", "feature"),
    "mean": ("cluster_number", "feature"),
    "step": (),
    "size": ("cluster_number",),
    "block_nmse": ("block",),
    "block_surprise": ("block",),
}
REFERENCE = (
    "Local bases: Kambhatla, Leen, Neural Computation 9 (1997) 1493. Reverse water-filling: Cover, Thomas, Elements of Information Theory, "
    "2nd edition (2006), theorem 10.3.3. Entropies of few counts: Miller, in Information Theory in Psychology (1955) 95"
)
SEEDS = ()
MOST_BYTES = 1 << 30
"""Of the counts of codes."""
BESIDE = 1.3
"""Squares of the two steps of the comparison, over and under that of the promise."""


class Config(Frozen):
    """How exactly rows are kept."""

    nmse: float = Field(default=3e-3, gt=0, lt=1)
    """Wanted squared error over the squared distance from the mean of all rows; where subspaces are those of rows of length 1, over the
    squared length, row by row."""


class Result(Frozen):
    """What the codes cost, what they keep, and what one basis for all rows costs."""

    n_rows: int
    width: int
    """Features."""
    parts: int
    """Subspaces that these rows use."""
    components: int
    """Of the largest."""
    unit_length: bool
    """Whether rows are coded divided by their length."""
    step: float
    """Of every coordinate."""
    outside_nmse: float
    """Error from what subspaces leave out of the rows that they were fitted to: no promise can be below it."""
    promised_nmse: float
    """Error that step and subspaces leave of such rows, or somewhat less."""
    nmse: float | None
    """Error of these rows; None where they have no energy."""
    bits_per_dimension: float | None
    """Entropy of the part and, given it, of each code, and 32 bits of a length, over features; None without rows."""
    mixed_bits_per_dimension: float | None
    """The same without knowing the part, one table for each component: what a coder that goes down the columns can reach."""
    gaussian_bits: float | None
    """R(D) over features at the error reached, for the variances that these rows have along the components of all rows; None without rows
    or error."""
    gap_to_gaussian: float | None
    """`bits_per_dimension` less `gaussian_bits`. No distance from a floor: rows of several subspaces are easier than Gaussian ones of their
    variances, and a code may lie far below."""
    klt_bits_per_dimension: float | None
    """Of `compression.klt` for these rows at the error reached."""
    saved_bits: float | None
    """`klt_bits_per_dimension` less `bits_per_dimension`: negative where pieces do not pay."""
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
    """Largest energy of a block over that of the basis' rows, as `compression.klt` has it."""
    bytes_before: int
    """Of the rows as they were stored, not compressed."""
    bytes_coded: int
    """Of parts, codes and lengths, by entropy; what they take on disk, `open_artifact(...).bytes` tells."""
    bytes_bases: int
    """Of components, means and step."""
    break_even_rows: int | None
    """From so many rows on codes and bases together take less than the rows did; None where they never do."""
    klt_even_rows: int | None
    """From so many rows on they take less than codes and the one basis of `compression.klt`; None where they never do."""
    caveats: tuple[str, ...]


class Plan(NamedTuple):
    """What follows from the subspaces and the wanted error."""

    deviations: Tensor
    """float64 [part, component]: of the rows that subspaces were fitted to; 0 beyond a dimension."""
    step: float
    outside: float
    """NMSE of what subspaces leave out."""
    promised: float
    """NMSE."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the subspaces or the basis are of another width, the subspaces leave out more than the wanted error, the basis is
            not whole, the step is too fine for 16 bits, or counts of codes do not fit in memory.
    """
    parts, kept, width = inputs.artifacts["subspaces"]["basis"].shape
    if width != inputs.widths["x"]:
        raise MethodError(
            f"the subspaces have {width} features, the site has {inputs.widths['x']}; connect a stage of the same site"
        )
    if (held := 8 * parts * kept * (2 * uniform_codes.HALF + 1)) > MOST_BYTES:
        raise MethodError(
            f"counts of codes of {parts} subspaces of {kept} dimensions take {held:,} bytes, at most {MOST_BYTES:,} are used; ask for "
            "fewer subspaces"
        )
    plan = _plan(inputs, config)
    klt.check(inputs, _beside(inputs, plan))
    farthest = 2.0 if _unit(inputs) else uniform_codes.FAR * float(plan.deviations.max())
    if farthest > uniform_codes.LARGEST * plan.step:
        raise MethodError(
            f"a step of {plan.step:.3g} takes more than 16 bits for coordinates up to {farthest:.3g}; allow a larger error, found nmse "
            f"{config.nmse:g}, or keep the rows as they are"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    parts, kept, _ = inputs.artifacts["subspaces"]["basis"].shape
    return {
        "part": RowOutput("uint8" if parts <= 256 else "uint16"),
        "code": RowOutput("int8", width=kept, codec="codes"),
        "high": RowOutput("int8", width=kept, codec="codes"),
        "length": RowOutput("float32"),
        "error": RowOutput("float32"),
    }


def start(inputs: Inputs, config: Config) -> State:
    """Subspaces and step as they are stored, and what `compression.klt` starts with for as large an error."""
    found, plan = inputs.artifacts["subspaces"], _plan(inputs, config)
    bases = {f"part.{name}": found[name].float().double() for name in ("basis", "mean")}
    return (
        bases
        | {f"whole.{name}": values for name, values in klt.start(inputs, _beside(inputs, plan)).items()}
        | {
            "present": torch.nonzero(found["size"] > 0).flatten(),
            "step": torch.tensor(plan.step, dtype=torch.float64),
            "bins": uniform_codes.bins(plan.deviations.amax(0) / plan.step),
            "unit": torch.tensor(_unit(inputs)),
        }
    )


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Part, codes, length and squared error of each row, computed in float64.

    Cost: 4 row part component feature flops.
    """
    made = [_tile(rows, carry) for rows in torch.split(block["x"], TILE_ROWS)]
    columns = {name: torch.cat([each[name] for each in made]) for name in made[0]}
    low, high = uniform_codes.split(columns.pop("code"))
    few = len(carry["part.mean"]) <= 256
    return {
        "part": columns["part"].to(torch.uint8 if few else torch.uint16),
        "code": low,
        "high": high,
        "length": columns["length"].float(),
        "error": columns["error"].float(),
    }


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums over rows and over blocks, and counts of codes in parts and in the basis of all rows.

    Cost: 2 row feature^2 flops, and a pass over the codes for each part.
    """
    shape, whole = bool(carry["unit"]), _whole(carry)
    coordinates = row_codes.seen(block["x"], whole, shape, beside=False).coordinates
    code, part = uniform_codes.join(outputs["code"], outputs["high"]), outputs["part"].long()
    counts = [uniform_codes.count(code[part == k], carry["bins"]) for k in range(len(carry["part.mean"]))]
    return {
        "size": torch.bincount(part, minlength=len(counts)),
        "bytes": torch.tensor(block["x"].nbytes, device=part.device),
        "counts": torch.stack(counts),
        "second": coordinates.square().sum(0),
        "blocks": row_codes.by_block(block, outputs, coordinates, whole, shape),
        "wide": (outputs["high"] != 0).sum(),
        "clipped": (code.abs() == uniform_codes.LARGEST).sum(),
    } | _stepped(coordinates, whole)


def merge(a: State, b: State) -> State:
    """The sums of both."""
    return {name: a[name] + b[name] for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Rates, errors and sizes."""
    arrays = {
        "components": carry["part.basis"].float(),
        "mean": carry["part.mean"].float(),
        "step": carry["step"],
        "size": state["size"],
        "block_nmse": _shares(state["blocks"]),
        "block_surprise": state["blocks"][:, 3] / state["blocks"][:, 0],
    }
    result = _result(state, arrays, _plan(inputs, config), carry)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _unit(inputs: Inputs) -> bool:
    return bool(inputs.results["subspaces"]["unit_length"])


def _beside(inputs: Inputs, plan: Plan) -> klt.Config:
    """Options of `compression.klt` for the same promise."""
    return klt.Config(nmse=plan.promised, gain_shape=_unit(inputs))


def _plan(inputs: Inputs, config: Config) -> Plan:
    """One level for the coordinates in all parts, each part counted by its rows.

    Raises:
        MethodError: if the subspaces leave out more than the wanted error.
    """
    found = inputs.artifacts["subspaces"]
    total = 1.0 if _unit(inputs) else float(inputs.results["basis"]["trace"])
    size, kept = found["size"].double(), found["basis"].shape[1]
    weights = (size / size.sum())[:, None].expand_as(found["eigenvalue"])
    values = found["eigenvalue"].double().nan_to_num(0).clamp(min=0)
    inside = torch.arange(values.shape[1], device=values.device) < found["dimension"][:, None]
    outside = float((values * weights)[~inside].sum()) / total if total > 0 else 0.0
    if outside >= config.nmse:
        raise MethodError(
            f"the subspaces leave out {outside:.3g} of their rows' energy, the wanted error is {config.nmse:g}; ask for subspaces of more "
            f"dimensions, or for an nmse above {outside:.3g}"
        )
    told = inside & (weights > 0)
    level = rate_distortion.level(values[told], (config.nmse - outside) * total, weights[told])
    coded = float((values[told].clamp(max=level) * weights[told]).sum()) / total
    deviations = F.pad((values * told).sqrt(), (0, max(0, kept - values.shape[1])))[:, :kept]
    return Plan(deviations, math.sqrt(12 * level), outside, outside + coded)


def _tile(rows: Tensor, carry: State) -> dict[str, Tensor]:
    """At most TILE_ROWS rows in their parts; filled up with zeros, so that no bit depends on how rows are cut."""
    tile = rows.new_zeros((TILE_ROWS, rows.shape[1]), dtype=torch.float64)
    tile[: len(rows)] = rows
    length = torch.ones_like(tile[:, 0])
    if bool(carry["unit"]):
        length = torch.linalg.vector_norm(tile, dim=1).float().double()
        tile = tile / length.where(length > 0, 1.0)[:, None]
    present, step = carry["present"], carry["step"]
    found = k_subspaces.held(tile, Subspaces(carry["part.mean"][present], carry["part.basis"][present]))
    code = uniform_codes.codes(found.coordinates, float(step))
    error = (found.coordinates - code.double() * step).square().sum(1) + found.distance.square()
    made = {
        "part": present[found.part],
        "code": code,
        "length": length,
        "error": error.sqrt() * length,
    }
    return {name: values[: len(rows)] for name, values in made.items()}


def _whole(carry: State) -> State:
    """What `compression.klt` carries."""
    return {name.removeprefix("whole."): carry[name] for name in carry if name.startswith("whole.")}


def _stepped(coordinates: Tensor, whole: State) -> State:
    """Counts of codes and errors in the basis of all rows, at two steps."""
    counts, errors = [], []
    for square in (1 / BESIDE, BESIDE):
        step = float(whole["step"]) * math.sqrt(square)
        code = uniform_codes.codes(coordinates, step)
        counts.append(uniform_codes.count(code, whole["bins"]))
        errors.append((coordinates - code.double() * step).square().sum())
    return {"klt.counts": torch.stack(counts), "klt.error": torch.stack(errors)}


def _shares(blocks: Tensor) -> Tensor:
    """[block]: error over energy; NaN without energy."""
    return torch.where(blocks[:, 2] > 0, blocks[:, 1] / blocks[:, 2], math.nan)


def _row_bits(counts: Tensor, bins: Tensor) -> float:
    """Bits of a row's codes, [part, component, bin] or [component, bin] counted, the part known."""
    rows = counts.sum(-1)
    bits = rows * uniform_codes.entropies(counts, bins) + uniform_codes.unseen(counts)
    return float(bits.sum()) / int(rows.reshape(-1, rows.shape[-1])[:, 0].sum())


def _klt_bits(state: State, whole: State, error: float) -> float:
    """Bits of a row by `compression.klt` at an error, from the line through two; those of the nearer step where errors are equal."""
    fine, coarse = (_row_bits(counts, whole["bins"]) for counts in state["klt.counts"])
    low, high = (float(e) for e in state["klt.error"])
    if min(low, error) <= 0 or high <= low:
        return coarse
    return fine + (coarse - fine) * math.log(error / low) / math.log(high / low)


def _result(state: State, arrays: dict[str, Tensor], plan: Plan, carry: State) -> Result:
    n, unit = int(state["size"].sum()), bool(carry["unit"])
    _, kept, width = arrays["components"].shape
    rates = _rates(state, carry, width) if n else dict.fromkeys(RATES)
    nmse = arrays["block_nmse"]
    bases = sum(arrays[name].nbytes for name in ("components", "mean", "step"))
    before, coded = int(state["bytes"]), math.ceil(n * width * (rates["bits_per_dimension"] or 0) / 8)
    one_basis = 4 * width * (len(carry["whole.components"]) + 1) + 8
    saved = n * width * (rates["saved_bits"] or 0) / 8
    result = Result(
        n_rows=n,
        width=width,
        parts=int((state["size"] > 0).sum()),
        components=kept,
        unit_length=unit,
        step=plan.step,
        outside_nmse=plan.outside,
        promised_nmse=plan.promised,
        nmse=_largest(_shares(state["blocks"].sum(0, keepdim=True))),
        **rates,
        wide_share=int(state["wide"]) / (n * kept) if n else None,
        clipped=int(state["clipped"]),
        block_rows=int(carry["whole.block_rows"]),
        flagged_rows=int(state["blocks"][nmse > klt.FLAGGED * plan.promised, 0].sum()),
        worst_nmse=_largest(nmse),
        worst_surprise=_largest(arrays["block_surprise"]),
        bytes_before=before,
        bytes_coded=coded,
        bytes_bases=bases,
        break_even_rows=math.ceil(bases * n / (before - coded)) if before > coded else None,
        klt_even_rows=math.ceil(max(0, bases - one_basis) * n / saved) if saved > 0 else None,
        caveats=(),
    )
    return result.model_copy(update={"caveats": tuple(_caveats(result))})


RATES = (
    "bits_per_dimension",
    "mixed_bits_per_dimension",
    "gaussian_bits",
    "gap_to_gaussian",
    "klt_bits_per_dimension",
    "saved_bits",
)


def _rates(state: State, carry: State, width: int) -> dict[str, Any]:
    """Bits over features, of rows of which there are some."""
    n, lengths = int(state["size"].sum()), 32 * int(carry["unit"])
    part = float(rate_distortion.entropy(state["size"])) + float(uniform_codes.unseen(state["size"])) / n
    bits = (_row_bits(state["counts"], carry["bins"]) + part + lengths) / width
    mixed = (_row_bits(state["counts"].sum(0), carry["bins"]) + part + lengths) / width
    error, second = float(state["blocks"][:, 1].sum()), state["second"] / n
    some = error > 0 and float(second.sum()) > 0
    gaussian = rate_distortion.rate(second, error / n) / width if some else None
    one = (_klt_bits(state, _whole(carry), error) + lengths) / width
    gap = None if gaussian is None else bits - gaussian
    return dict(zip(RATES, (bits, mixed, gaussian, gap, one, one - bits), strict=True))


def _largest(values: Tensor) -> float | None:
    """The largest that is a number."""
    some = values[values.isfinite()]
    return float(some.max()) if len(some) else None


def _caveats(result: Result) -> list[str]:
    notes = []
    if result.saved_bits is not None and result.saved_bits <= 0:
        notes.append(
            f"one basis for all rows takes {-result.saved_bits:.3f} bits per dimension less at this error: pieces do not pay, use "
            "compression.klt"
        )
    elif result.klt_even_rows is not None and result.klt_even_rows > result.n_rows:
        notes.append(
            f"the bases take more bytes than pieces save on {result.n_rows} rows; from {result.klt_even_rows} rows on they pay"
        )
    if result.flagged_rows:
        notes.append(
            f"{result.flagged_rows} of {result.n_rows} rows lie in blocks whose error exceeds the promise by more than a tenth: they are "
            "unlike the rows that subspaces were fitted to (see block_nmse, block_surprise)"
        )
    if result.clipped:
        notes.append(f"{result.clipped} codes take 16 bits or more and were clamped: their rows are far off")
    return notes
