"""A rotation of leading principal coordinates to where their signs tell rows best, and what similarities of the signs are worth.

Iterative quantisation: with coordinates V of all rows, signs B = sign(V R) and the rotation R that brings V R nearest to B are found in
turn, each round from one read of the rows and a matrix of bits by bits. `compression.binary_codes` gives rows their signs.

Two codes agree in a share of their bits, and similarities 1 - 2 (bits that differ) / bits of few bits crowd around 0: rows that are near
and rows that are far are hard to tell apart (similarity collapse). `similarity` gives each number of differing bits the cosine that
stands at the same place among cosines of the rows as that number does among numbers of differing bits, so that similarities of codes
are spread as cosines are. It orders pairs as before: recall and rank correlation are those of the codes.

This calibration is reconstructed from an abstract, which aligns similarities of codes to a distribution with spread (such as a beta
distribution) while codes are trained by gradients. Here the distribution is that of the cosines, and codes are finished.

Cosines are about the mean. A sample of rows is kept from the first read: one half calibrates, the figures are those of the other half.

Arrays: `rotation` (bit, component), orthogonal; `direction` (bit, feature) the rotated components, whose products with x - mean have the
signs; `mean` (feature); `similarity` (distance) the calibrated similarity at each number of differing bits, 0 to all; `aligned` (round) the
cosine between V R and B, never falling.
"""

from typing import NamedTuple

import torch
from pydantic import Field
from scipy.stats import wasserstein_distance
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowsPort, State
from tasks.numerics import output_quality, row_sample

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(), "basis": ArtifactPort("spectrum.pca", one_width=True)}
ARRAYS = {
    "rotation": ("bit", "component"),
    "direction": ("bit", "feature"),
    "mean": ("feature",),
    "similarity": ("distance",),
    "aligned": ("round",),
}
REFERENCE = (
    "Iterative quantisation: Gong, Lazebnik, Gordo, Perronnin, IEEE Transactions on Pattern Analysis and Machine Intelligence 35 (2013) "
    "2916. Calibration: Ng et al., Unsupervised Hashing with Similarity Distribution Calibration (2023), reconstructed from its abstract"
)
SEEDS = (50,)


class Config(Frozen):
    """How many bits, and how they are found."""

    bits: int = Field(default=32, ge=8, multiple_of=8)
    """Of a row: one for each leading component."""
    rounds: int = Field(default=30, ge=1)
    """Reads of all rows after the first, at most."""
    tolerance: float = Field(default=1e-4, ge=0, lt=1)
    """Stop when a round raises the cosine between coordinates and signs by less than this."""
    sample_rows: int = Field(default=4000, ge=20)
    """Rows of the sample, for both halves; all where there are no more."""
    pairs: int = Field(default=100_000, ge=100)
    """Pairs of rows of a half; all where there are fewer."""
    neighbours: int = Field(default=10, ge=1)
    """Of each row."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the first rotation and of the pairs."""


class Result(Frozen):
    """What signs tell; figures of the half of the sample that nothing was fitted to, beside those of signs without a rotation."""

    n_rows: int
    bits: int
    rounds: int
    converged: bool
    aligned: float
    """Cosine between rotated coordinates and signs, over all rows: 1 where coordinates are of one size."""
    rank_correlation: float | None
    """Spearman's, of agreeing bits and cosines of pairs; None where one side is constant."""
    plain_rank_correlation: float | None
    recall: float
    """Share of the nearest rows by agreeing bits that are among the nearest by cosine, of as many; which of equally near codes is taken is
    chance."""
    plain_recall: float
    cosine_spread: float
    """Standard deviation of the cosines of pairs."""
    spread: float
    """That of similarities of codes before calibration."""
    calibrated_spread: float
    distance: float
    """Wasserstein's, of the distribution of similarities from that of cosines: before calibration."""
    calibrated_distance: float
    caveats: tuple[str, ...]


class Pairs(NamedTuple):
    """Pairs of rows."""

    cosine: Tensor
    """float64 [pair]."""
    differing: Tensor
    """int64 [pair]: bits."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the basis is of another width or has fewer components than bits, or the sample is too small.
    """
    kept, width = inputs.artifacts["basis"]["components"].shape
    if width != inputs.widths["x"]:
        raise MethodError(
            f"the basis has {width} features, the site has {inputs.widths['x']}; connect a stage of the same site"
        )
    if kept < config.bits:
        raise MethodError(
            f"the basis has {kept} components, {config.bits} bits take as many; lower `bits` or keep more in the pca stage"
        )
    _check_sample(min(inputs.n_rows, config.sample_rows), config)


def start(inputs: Inputs, config: Config) -> State:
    """Leading components, the mean and a seeded rotation."""
    basis, rng = inputs.artifacts["basis"], torch.Generator().manual_seed(config.seed)
    first = torch.randn(config.bits, config.bits, generator=rng, dtype=torch.float64)
    return {
        "components": basis["components"][: config.bits].double(),
        "mean": basis["mean"].double(),
        "rotation": torch.linalg.qr(first)[0],
    }


def partial(block: Block, carry: State, config: Config) -> State:
    """A sample of the centred rows first; then products of signs with coordinates.

    Cost: 2 row bits (features + 2 bits) flops.
    """
    centred = block["x"].double() - carry["mean"]
    if "sample" not in carry:
        return row_sample.of_rows(block.index, centred, config.sample_rows)
    coordinates = centred @ carry["components"].T
    turned = coordinates @ carry["rotation"].T
    return {
        "n": torch.tensor(len(block), device=centred.device),
        "cross": _signs(turned).T @ coordinates,
        "size": turned.abs().sum(),
        "square": coordinates.square().sum(),
    }


def merge(a: State, b: State) -> State:
    """The sample, or the sums, of both."""
    return {name: a[name] + b[name] for name in a} if "cross" in a else row_sample.merge(a, b)


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """The rotation that is nearest to the signs; None when it has settled.

    Raises:
        MethodError: if too few good rows are left for the sample.
    """
    if "sample" not in carry:
        sample = row_sample.values(state)
        _check_sample(len(sample), config)
        return carry | {"sample": sample, "aligned": sample.new_zeros(0)}
    if _settled(state, carry, config) or len(carry["aligned"]) + 1 >= config.rounds:
        return None
    left, _, right = torch.linalg.svd(state["cross"])
    now = carry["mean"].new_tensor([_aligned(state)])
    return carry | {"rotation": left @ right, "aligned": torch.cat([carry["aligned"], now])}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Similarities of one half of the sample calibrated, those of the other measured.

    Cost: O(sample^2 feature).
    """
    direction = carry["rotation"] @ carry["components"]
    fitted, held = carry["sample"][::2], carry["sample"][1::2]
    similarity = _calibrated(_pairs(fitted, direction, config), config.bits)
    arrays = {
        "rotation": carry["rotation"],
        "direction": direction.float(),
        "mean": carry["mean"].float(),
        "similarity": similarity,
        "aligned": torch.cat([carry["aligned"], carry["mean"].new_tensor([_aligned(state)])]),
    }
    settled = _settled(state, carry, config)
    result = Result(
        n_rows=int(state["n"]),
        bits=config.bits,
        rounds=len(arrays["aligned"]),
        converged=settled,
        aligned=_aligned(state),
        plain_rank_correlation=_ranks(_pairs(held, carry["components"], config)),
        plain_recall=_recall(held, carry["components"], config),
        recall=_recall(held, direction, config),
        **_similarities(_pairs(held, direction, config), similarity, config.bits),
        caveats=_caveats(len(carry["sample"]), int(state["n"]), settled, config),
    )
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _signs(values: Tensor) -> Tensor:
    """1 or -1; 0 counts as positive."""
    return torch.where(values >= 0, 1.0, -1.0).double()


def _aligned(state: State) -> float:
    """Cosine between all rotated coordinates and signs; 0 where rows have none."""
    size = float((state["square"] * state["n"] * len(state["cross"])).sqrt())
    return float(state["size"]) / size if size > 0 else 0.0


def _settled(state: State, carry: State, config: Config) -> bool:
    return len(carry["aligned"]) > 0 and _aligned(state) - float(carry["aligned"][-1]) <= config.tolerance


def _pairs(rows: Tensor, direction: Tensor, config: Config) -> Pairs:
    pairs = output_quality.drawn_pairs(len(rows), config.pairs, config.seed).to(rows.device)
    code = rows @ direction.T >= 0
    differing = torch.cat(
        [(code[some[:, 0]] != code[some[:, 1]]).sum(1) for some in torch.split(pairs, 8192)]
    )
    cosine = [output_quality.cosines(rows, some) for some in torch.split(pairs, 8192)]
    return Pairs(torch.cat(cosine), differing)


def _calibrated(pairs: Pairs, bits: int) -> Tensor:
    """[distance]: cosines at the places that numbers of differing bits have among the pairs."""
    count = torch.bincount(pairs.differing, minlength=bits + 1).double()
    beyond = count.sum() - count.cumsum(0)  # pairs that differ in more bits, and are less similar
    return torch.quantile(pairs.cosine[: 1 << 24], (beyond + count / 2) / count.sum())


def _similarities(pairs: Pairs, similarity: Tensor, bits: int) -> dict[str, float | None]:
    """Ranks, spreads and distances of similarities."""
    before, after = 1 - 2 * pairs.differing.double() / bits, similarity[pairs.differing]
    cosine = pairs.cosine.cpu().numpy()
    return {
        "rank_correlation": _ranks(pairs),
        "cosine_spread": float(pairs.cosine.std()),
        "spread": float(before.std()),
        "calibrated_spread": float(after.std()),
        "distance": float(wasserstein_distance(before.cpu().numpy(), cosine)),
        "calibrated_distance": float(wasserstein_distance(after.cpu().numpy(), cosine)),
    }


def _ranks(pairs: Pairs) -> float | None:
    found = output_quality.rank_correlation(pairs.cosine, -pairs.differing.double())
    return None if found != found else found


def _recall(rows: Tensor, direction: Tensor, config: Config) -> float:
    return float(output_quality.recall(rows, _signs(rows @ direction.T), config.neighbours).mean())


def _check_sample(rows: int, config: Config) -> None:
    if rows // 2 <= config.neighbours:
        raise MethodError(
            f"found {rows} rows to sample, {config.neighbours} neighbours in each half need more than {2 * config.neighbours + 1}; lower "
            "`neighbours`, raise `sample_rows`, or capture more samples"
        )


def _caveats(sampled: int, n: int, settled: bool, config: Config) -> tuple[str, ...]:
    notes = []
    if sampled < n:
        notes.append(
            f"figures are those of {sampled // 2} of {n} rows: neighbours lie closer among all of them"
        )
    if not settled:
        notes.append(f"the rotation still moved after {config.rounds} rounds; raise `rounds`")
    return tuple(notes)
