"""How many non-negative parts a site is made of: the most factors that come out the same from repeated draws of its samples.

Rows must not be negative, as after ReLU. For each number of factors, non-negative factorisations of perturbed rows from random starts are
clustered, one factor of each run in every cluster; where there are more factors than parts, runs split them at random and clusters blur.
Stability alone is no proof of parts: features that vary each by itself are stable factors too. So the error stands beside that of rows
whose columns were permuted. Arrays over numbers that were tried (`tried`): `factors`, `silhouette_least`, `silhouette_mean`, `error`, and
`null_least` and `null_error` of permuted columns; `factor` (factor, feature): the clusters' centres at the chosen number.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import factor_clusters
from tasks.numerics.factor_clusters import Factors, Stability

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {
    "factors": ("tried",),
    "silhouette_least": ("tried",),
    "silhouette_mean": ("tried",),
    "error": ("tried",),
    "null_least": ("tried",),
    "null_error": ("tried",),
    "factor": ("factor", "feature"),
}
REFERENCE = (
    "Determination of latent dimensionality in international trade flow (2020), reconstructed from its abstract for matrices in the "
    "place of its tensors: clusters of repeated non-negative factorisations. Silhouettes: Rousseeuw (1987). The null of permuted columns "
    "is a choice of this project"
)
SEEDS = (220,)
ALIKE = 0.9
"""An error above so much of the null's shows no parts that features share."""


class Config(Frozen):
    """How many factors, and how rows are perturbed."""

    most: int = Field(default=10, ge=2, le=64)
    """Factors that are tried: 1 to so many."""
    repetitions: int = Field(default=10, ge=3, le=200)
    """Factorisations for each number."""
    perturbation: Literal["samples", "noise"] = "samples"
    """`samples`: draws of samples with replacement, rows of one staying together; `noise`: every entry times a uniform number."""
    noise: float = Field(default=0.03, gt=0, lt=1)
    """Of `noise`: entries are multiplied by 1 - noise to 1 + noise."""
    threshold: float = Field(default=0.75, gt=0, lt=1)
    """The least silhouette of a cluster that counts as stable."""
    null: bool = True
    """Whether the same is done with permuted columns, which costs as much again."""
    negative_share: float = Field(default=0.01, ge=0, le=1)
    """Negative entries are taken as zeros and counted, as long as they hold no more than this share of the entries' absolute sum, as after
    GELU; beyond, rows are refused."""
    iterations: int = Field(default=500, ge=10)
    """Of a factorisation, at most."""
    sample_rows: int | None = Field(default=1000, ge=4)
    """Rows to draw; None: all, if there are no more than the most."""
    most_rows: int = Field(default=20_000, ge=4)
    """Refuse more rows than this."""
    seed: int = Field(default=0, ge=0)
    """Of all draws."""


class Result(Frozen):
    """What was found. A silhouette is 1 where runs agree and 0 or less where they do not."""

    n_rows: int
    """Factorised."""
    n_zero: int
    """Rows of zeros, left out: they are no mix of anything."""
    n_negative: int
    """Entries that were taken as zeros."""
    n_samples: int
    width: int
    dimension: int
    """The largest number of factors that all are stable."""
    stable: tuple[int, ...]
    """All numbers of factors above the threshold; what lies between that are not stable says to look at the curve."""
    silhouette: float
    """Least of a factor, at the dimension; of one factor, 1 by definition."""
    silhouette_next: float | None
    """With one factor more; None where no more was tried."""
    dimension_null: int | None
    """The same of rows whose columns were permuted: of single features that vary enough. None if not asked for."""
    error: float
    """Share of the rows' Frobenius norm that so many factors leave out."""
    error_null: float | None
    """The same of permuted columns: parts that features share leave out less."""
    n_unconverged: int
    """Factorisations that were stopped at the most iterations."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for more factors than features or rows.
    """
    least = min(inputs.widths["x"], inputs.n_rows)
    if config.most > least:
        raise MethodError(
            f"asked for up to {config.most} factors of {inputs.n_rows} rows with {inputs.widths['x']} features; lower `most` to {least}"
        )


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Every number of factors, and the largest that is stable.

    Raises:
        MethodError: for negative entries, or fewer rows with values than factors.

    Cost: most^2 repetitions / 2 times iterations row feature, and that again for the null. On the CPU.
    """
    x, sample, negative = _rows(block, config)
    found = _tried(x, sample, config, 0)
    null = _tried(_permuted(x, config.seed), sample, config, 1) if config.null else []
    chosen = _largest(found, config)
    k = chosen + 1
    result = Result(
        n_rows=len(x),
        n_zero=len(block) - len(x),
        n_negative=negative,
        n_samples=len(np.unique(sample)),
        width=x.shape[1],
        dimension=k,
        stable=tuple(n + 1 for n, t in enumerate(found) if t.least >= config.threshold),
        silhouette=found[chosen].least,
        silhouette_next=found[k].least if k < len(found) else None,
        dimension_null=_largest(null, config) + 1 if null else None,
        error=found[chosen].error,
        error_null=null[chosen].error if null else None,
        n_unconverged=sum(t.unconverged for t in found),
        caveats=_caveats(found, null, k, len(np.unique(sample)), config),
    )
    nothing = [float("nan")] * len(found)
    arrays = {
        "factors": torch.arange(1, len(found) + 1),
        "silhouette_least": _column([t.least for t in found]),
        "silhouette_mean": _column([float(t.stability.silhouette.mean()) for t in found]),
        "error": _column([t.error for t in found]),
        "null_least": _column([t.least for t in null] or nothing),
        "null_error": _column([t.error for t in null] or nothing),
        "factor": torch.from_numpy(found[chosen].stability.centre),
    }
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


class _Tried(NamedTuple):
    """A number of factors."""

    stability: Stability
    error: float
    """Median over runs."""
    unconverged: int

    @property
    def least(self) -> float:
        """Silhouette of the least stable factor."""
        return float(self.stability.silhouette.min())


def _rows(block: Block, config: Config) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows that are not zero, their samples, in the order of the capture, and how many entries were negative."""
    order = torch.argsort(block.index)
    x, sample = block["x"][order].double().cpu().numpy(), block.sample[order].cpu().numpy()
    negative, share = int((x < 0).sum()), float(x.clip(max=0).sum() / -max(np.abs(x).sum(), 1e-300))
    if share > config.negative_share:
        raise MethodError(
            f"{negative} of {x.size} entries are negative and hold {share:.2g} of the absolute sum, at most {config.negative_share:g} is "
            "taken as zeros: non-negative factors need rows as after ReLU; choose such a site"
        )
    x = x.clip(min=0)
    some = (x > 0).any(1)
    if some.sum() < max(4, config.most):
        raise MethodError(
            f"found {int(some.sum())} rows with values, expected at least {max(4, config.most)}"
        )
    return x[some], sample[some], negative


def _tried(x: np.ndarray, sample: np.ndarray, config: Config, stream: int) -> list[_Tried]:
    found = []
    for k in range(1, config.most + 1):
        runs = [_run(x, sample, k, r, stream, config) for r in range(config.repetitions)]
        error = float(np.median([run.error for run in runs]))
        found.append(_Tried(factor_clusters.stability(runs), error, sum(not run.converged for run in runs)))
    return found


def _run(x: np.ndarray, sample: np.ndarray, k: int, repetition: int, stream: int, config: Config) -> Factors:
    generator = np.random.Generator(
        np.random.Philox(np.random.SeedSequence([config.seed, stream, k, repetition]))
    )
    if config.perturbation == "noise":
        drawn = x * generator.uniform(1 - config.noise, 1 + config.noise, x.shape)
    else:
        there, place = np.unique(sample, return_inverse=True)
        times = np.bincount(generator.integers(len(there), size=len(there)), minlength=len(there))
        drawn = np.repeat(x, times[place], axis=0)
    return factor_clusters.factorise(drawn, k, config.iterations, int(generator.integers(2**31)))


def _permuted(x: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 2])))
    return generator.permuted(x, axis=0)


def _largest(found: list[_Tried], config: Config) -> int:
    """Place of the largest stable number; one factor is always stable."""
    return max(n for n, t in enumerate(found) if t.least >= config.threshold)


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _caveats(
    found: list[_Tried], null: list[_Tried], k: int, samples: int, config: Config
) -> tuple[str, ...]:
    notes = []
    if k == len(found):
        notes.append(f"all {k} factors that were tried are stable: raise `most`")
    if null and found[k - 1].error > ALIKE * null[k - 1].error:
        notes.append(
            "permuted columns are fitted nearly as well: the factors are single features rather than parts"
        )
    gaps = [n + 1 for n in range(k) if found[n].least < config.threshold]
    if gaps:
        notes.append(f"{', '.join(map(str, gaps))} factors are not stable, though {k} are")
    if config.perturbation == "samples" and samples < 10:
        notes.append(f"draws of {samples} samples only")
    stopped = sum(t.unconverged for t in found)
    if stopped:
        notes.append(f"{stopped} factorisations were stopped before they converged: raise `iterations`")
    return tuple(notes)
