"""Rows told by a byte for each part: the number of its nearest vector in the codebooks of `compression.codebook`.

A row takes as many bytes as it has parts, whatever its features hold, and 4 or 8 more where codebooks have a scale.
`open_artifact(...).reconstruct()` gives the rows back. Distances of exact rows from coded ones follow from codes without decoding
(`tasks/numerics/vector_codes.py`, `asymmetric`).

The error is measured for each row, from the codes as stored. It is not bounded: rows unlike those that codebooks were made of are told by
whatever vector is nearest.

Arrays: `code` (row, part) numbers of vectors, 0 for rows of failed samples; `gain` and `bias` (row) the scale, 1 and 0 where there is
none; `error` (row) is |x - decoded|, NaN for rows of failed samples, as scales are. `centre` (part, code, place), `rotation`
(component, feature) and `mean` (feature) decode, `count` (part, code) tells how often each vector is used by these rows.
"""

import math

import torch
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics import moments, rate_distortion, spectrum, uniform_codes, vector_codes
from tasks.numerics.vector_codes import Codebooks, Scale

VERSION = 2
KIND = "map"
READS = {"x": RowsPort(), "codebook": ArtifactPort("compression.codebook", one_width=True)}
ARRAYS = {
    "code": ("row", "part"),
    "gain": ("row",),
    "bias": ("row",),
    "error": ("row",),
    "centre": ("part", "code", "place"),
    "rotation": ("component", "feature"),
    "mean": ("feature",),
    "count": ("part", "code"),
}
REFERENCE = (
    "Product quantisation and asymmetric distances: Jegou, Douze, Schmid, IEEE Transactions on Pattern Analysis and Machine Intelligence "
    "33 (2011) 117. The Gaussian limit: Cover, Thomas, Elements of Information Theory, 2nd edition (2006), theorem 10.3.3"
)
SEEDS = ()
DRIFTED = 1.5
"""Rows are said to be unlike those of the codebooks where their error is this many times that of the codebooks' last round."""
SCALES = {"none": 0, "gain": 1, "gain_bias": 2}
"""float32 numbers of a row beside its codes."""


class Config(Frozen):
    """All options are those of the codebooks."""


class Result(Frozen):
    """What the codes cost and what they keep."""

    n_rows: int
    width: int
    """Features."""
    parts: int
    codes: int
    """Vectors of a part."""
    nmse: float | None
    """Squared error over the squared distance from the rows' mean; None where they have no energy."""
    shape_nmse: float | None
    """Squared error of what is coded, over that of telling the codebooks' mean: relative to each row's length where there is a scale."""
    codebook_nmse: float | None
    """Error that the codebooks had on the rows that they were made of, of shapes where there is a scale."""
    cosine_mean: float | None
    """Of rows and decoded rows; None without a row that has a length."""
    cosine_p1: float | None
    """99 in 100 rows have a cosine of at least this; its distance from 1 is told to 4 %."""
    bits_per_dimension: float
    """Of a row's codes as stored, and 32 for each number of its scale, over features."""
    entropy_per_dimension: float | None
    """The same with order-0 entropies in the place of the bits of codes: what coding them further could save. None without rows."""
    gaussian_bits: float | None
    """R(D) over features at the error reached, for the covariance of these rows; None without two rows, variance or error."""
    gap_to_gaussian: float | None
    """`bits_per_dimension` less `gaussian_bits`. Not the distance from a floor, and negative at times."""
    used_share: float | None
    """Share of all vectors that these rows use; None without rows."""
    least_perplexity: float | None
    """Of a part: how many vectors, used alike, would tell as much; None without rows."""
    mean_perplexity: float | None
    bytes_before: int
    """Of the rows as they were stored, not compressed."""
    bytes_coded: int
    """Of codes and scales, a byte for each code; what they take on disk, `open_artifact(...).bytes` tells."""
    bytes_codebook: int
    """Of vectors, rotation and mean."""
    break_even_rows: int | None
    """From so many rows on codes and codebooks together take less than the rows did; None where they never do."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the codebooks are of another width.
    """
    made, width = len(inputs.artifacts["codebook"]["mean"]), inputs.widths["x"]
    if made != width:
        raise MethodError(
            f"the codebooks have {made} features, the site has {width}; connect a stage of the same site"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    parts = len(inputs.artifacts["codebook"]["centre"])
    return {
        "code": RowOutput("uint8", width=parts, dim="part", codec="codes"),
        "gain": RowOutput("float32"),
        "bias": RowOutput("float32"),
        "error": RowOutput("float32"),
    }


def start(inputs: Inputs, config: Config) -> State:
    """Vectors, rotation and mean as they are stored, in float64."""
    made = inputs.artifacts["codebook"]
    return {name: made[name].double() for name in ("centre", "rotation", "mean")} | {
        "scale": torch.tensor(list(SCALES).index(inputs.results["codebook"]["scale"]))
    }


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Codes, scale and squared error of each row, computed in float64.

    Cost: 2 row feature codes flops, and 2 row feature^2 where there is a rotation.
    """
    found = vector_codes.coded(block["x"], _books(carry))
    return {
        "code": found.code.to(torch.uint8),
        "gain": found.gain.float(),
        "bias": found.bias.float(),
        "error": found.squared_error.sqrt().float(),
    }


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums over rows, moments and counts of codes: of a size that does not grow with the rows.

    Cost: O(row feature^2).
    """
    x, gain, bias = block["x"].double(), outputs["gain"].double(), outputs["bias"].double()
    told = vector_codes.decoded(outputs["code"], gain, bias, _books(carry))
    error, squared = outputs["error"].double().square(), gain.square()
    shape = (x - bias[:, None]) / torch.where(gain > 0, gain, 1.0)[:, None] - carry["mean"]
    has_length = gain > 0
    unlike = uniform_codes.distances(_unlike(x, told, error))
    codes = carry["centre"].shape[1]
    number = outputs["code"].long() + codes * torch.arange(len(carry["centre"]), device=x.device)
    return moments.partial(block["x"]) | {
        "bytes": torch.tensor(block["x"].nbytes, device=x.device),
        "count": torch.bincount(number.flatten(), minlength=carry["centre"][..., 0].numel()),
        "error": error.sum(),
        "shape_error": torch.where(has_length, error / torch.where(has_length, squared, 1.0), 0.0).sum(),
        "shape_energy": (shape.square().sum(1) * has_length).sum(),
        "unlike": unlike.counts,
        "unlike_sum": unlike.total,
    }


def merge(a: State, b: State) -> State:
    """The sums and moments of both."""
    others = a.keys() - moments.empty(1).keys()
    return moments.merge(a, b) | {name: a[name] + b[name] for name in others}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Rates, errors and sizes. Cost: O(feature^3)."""
    arrays = {name: carry[name].float() for name in ("centre", "rotation", "mean")}
    arrays["count"] = state["count"].reshape(carry["centre"].shape[:2])
    result = _result(state, arrays, inputs)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _books(carry: State) -> Codebooks:
    scale: Scale = list(SCALES)[int(carry["scale"])]  # type: ignore[assignment]
    return Codebooks(carry["centre"], carry["mean"], carry["rotation"], scale)


def _unlike(x: Tensor, told: Tensor, error: Tensor) -> Tensor:
    """[row that has a length]: 1 less the cosine of row and decoded row, without cancellation; 1 where that is zero."""
    before, after = torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(told, dim=1)
    apart = (error - (before - after).square()).clamp(min=0)
    found = torch.where(after > 0, apart / torch.where(after > 0, 2 * before * after, 1.0), 1.0)
    return found[before > 0].clamp(max=2)


def _result(state: State, arrays: dict[str, Tensor], inputs: Inputs) -> Result:
    n, made = int(state["n"]), inputs.results["codebook"]
    parts, codes, _ = arrays["centre"].shape
    width, numbers = len(arrays["mean"]), SCALES[made["scale"]]
    perplexity = vector_codes.perplexity(arrays["count"])
    entropy = float(rate_distortion.entropy(arrays["count"]).sum())
    bits = (parts * math.ceil(math.log2(codes)) + 32 * numbers) / width
    gaussian = _gaussian_bits(state, width)
    before, coded = int(state["bytes"]), n * (parts + 4 * numbers)
    books, measured = (
        sum(arrays[name].nbytes for name in ("centre", "rotation", "mean")),
        int(state["unlike"].sum()),
    )
    energy, shape = _energy(state), float(state["shape_energy"])
    result = Result(
        n_rows=n,
        width=width,
        parts=parts,
        codes=codes,
        nmse=float(state["error"]) / energy if energy > 0 else None,
        shape_nmse=float(state["shape_error"]) / shape if shape > 0 else None,
        codebook_nmse=made["nmse"],
        cosine_mean=1 - float(state["unlike_sum"]) / measured if measured else None,
        cosine_p1=1 - uniform_codes.quantile(state["unlike"], 0.99) if measured else None,
        bits_per_dimension=bits,
        entropy_per_dimension=(entropy + 32 * numbers) / width if n else None,
        gaussian_bits=gaussian,
        gap_to_gaussian=None if gaussian is None else bits - gaussian,
        used_share=float((arrays["count"] > 0).double().mean()) if n else None,
        least_perplexity=float(perplexity.min()) if n else None,
        mean_perplexity=float(perplexity.mean()) if n else None,
        bytes_before=before,
        bytes_coded=coded,
        bytes_codebook=books,
        break_even_rows=math.ceil(books * n / (before - coded)) if before > coded else None,
        caveats=(),
    )
    return result.model_copy(update={"caveats": _caveats(result)})


def _energy(state: State) -> float:
    """Squared distances of rows from their mean, summed."""
    n = int(state["n"])
    return moments.trace(state) * (n - 1) if n > 1 else 0.0


def _gaussian_bits(state: State, width: int) -> float | None:
    """R(D) over features of a Gaussian with these rows' covariance; None where nothing varies or no error is left."""
    n, error = int(state["n"]), float(state["error"])
    if n < 2 or error <= 0 or _energy(state) <= 0:
        return None
    values = spectrum.eigen(moments.covariance(state)).values.clamp(min=0) * (n - 1) / n
    return rate_distortion.rate(values, error / n) / width


def _caveats(result: Result) -> tuple[str, ...]:
    notes = []
    told, made = result.shape_nmse, result.codebook_nmse
    if told is not None and made is not None and told > DRIFTED * made:
        notes.append(
            f"the error of what is coded is {told:.2g}, that of the codebooks' own rows was {made:.2g}: rows are unlike those, or "
            "codebooks follow single rows; make them of more rows, or of these"
        )
    if result.break_even_rows is not None and result.break_even_rows > result.n_rows:
        notes.append(
            f"codes of {result.n_rows} rows and codebooks together take more bytes than the rows did; {result.break_even_rows} rows break "
            "even"
        )
    return tuple(notes)
