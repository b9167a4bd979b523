"""The numbers of a site that the page compares: read from whichever methods gave them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.artifact import Artifact
from schemas.stage import NETWORK
from tasks.depth import Place, places

Vector = npt.NDArray[np.float64]


class Measure(NamedTuple):
    """A column of the table of sites."""

    key: str
    title: str
    names: tuple[str, ...]
    """Fields of results that hold it, the best first."""
    meaning: str
    share: bool = False
    """Shown as a percentage."""


MEASURES = (
    Measure(
        "participation_ratio",
        "Participation ratio",
        ("participation_ratio_unbiased", "participation_ratio"),
        "(sum of eigenvalues)² / sum of their squares, without bias where the method gives that: "
        "how many directions hold the variance",
    ),
    Measure(
        "effective_rank",
        "Effective rank",
        ("effective_rank",),
        "exponential of the entropy of the variance shares",
    ),
    Measure("stable_rank", "Stable rank", ("stable_rank",), "total variance / largest eigenvalue"),
    Measure(
        "anisotropy",
        "Anisotropy",
        ("anisotropy",),
        "share of the variance in the first component",
        share=True,
    ),
    Measure("top_10", "Top 10", ("top_10",), "share of the variance in the first ten components", share=True),
    Measure(
        "components_90", "For 90 %", ("components_90",), "fewest components that hold 90 % of the variance"
    ),
    Measure(
        "accuracy",
        "Probe accuracy",
        ("accuracy",),
        "share of unseen rows whose class a linear map finds",
        share=True,
    ),
)
TOP = 10
WHOLE = 1e-6
"""Eigenvalues that lack no more than this share of the variance are all there."""


class StageArtifact(NamedTuple):
    """An artifact with the arrays that a page shows."""

    stage: str
    """As the run calls it."""
    artifact: Artifact
    arrays: dict[str, npt.NDArray[Any]]
    """Small arrays only."""

    @property
    def site(self) -> str:
        """The site of its rows; several are joined."""
        return " | ".join(
            dict.fromkeys(ref.site for refs in self.artifact.stage.rows.values() for ref in refs)
        )

    @property
    def captures(self) -> tuple[str, ...]:
        """Ids of the captures it read."""
        return tuple(dict.fromkeys(ref.capture for refs in self.artifact.stage.rows.values() for ref in refs))


class SiteRow(NamedTuple):
    """All measures of one site."""

    site: str
    captures: tuple[str, ...]
    place: Place
    width: int | None
    rows: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    plain_ratio: float | None
    """Participation ratio of the sample, without correction for few rows."""
    caveats: tuple[str, ...]
    total: float
    """Total variance, also of eigenvalues that `spectrum` lacks; 0 without a spectrum."""
    spectrum: Vector | None
    """[component]: all or the leading eigenvalues, falling; 0 where rounding hides them."""
    band: tuple[Vector, Vector] | None
    """Ends of the interval of each eigenvalue."""


SPECTRUM = "eigenvalue"
"""Name of the array of eigenvalues in the artifacts of spectra; NaN where rounding hides them."""


def site_rows(artifacts: Sequence[StageArtifact]) -> list[SiteRow]:
    """One row per site (and captures), shallow to deep; artifacts over several sites are left out."""
    groups: dict[tuple[str, tuple[str, ...]], list[StageArtifact]] = {}
    for artifact in artifacts:
        if artifact.site not in ("", NETWORK) and " | " not in artifact.site:
            groups.setdefault((artifact.site, artifact.captures), []).append(artifact)
    at = places([site for site, _ in groups])
    rows = [_row(site, captures, at[site], group) for (site, captures), group in groups.items()]
    rows = [row for row in rows if row.values or row.spectrum is not None]
    return sorted(rows, key=lambda row: row.place.order)


def _row(site: str, captures: tuple[str, ...], place: Place, group: list[StageArtifact]) -> SiteRow:
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for measure in MEASURES:
        for name, result in ((name, _fields(a)) for name in measure.names for a in group):
            value = number(result.get(name))
            if value is not None and measure.key not in values:
                values[measure.key] = value
                if (interval := _interval(result, name)) is not None:
                    intervals[measure.key] = interval
    spectrum, band, total = _spectrum(group)
    if spectrum is not None and spectrum.sum() > total * (1 - WHOLE):
        values = {**_from_spectrum(spectrum), **values}
    width = next((int(w) for a in group if (w := number(a.artifact.result.get("width"))) is not None), None)
    plain = next(
        (n for a in group if (n := number(a.artifact.result.get("participation_ratio"))) is not None), None
    )
    caveats = tuple(dict.fromkeys(text for a in group for text in _caveats(a.artifact.result)))
    rows = max(a.artifact.rows_used for a in group)
    return SiteRow(
        site, captures, place, width, rows, values, intervals, plain, caveats, total, spectrum, band
    )


def _fields(a: StageArtifact) -> dict[str, Any]:
    """The result; a concentration in ten components gets the name that says so."""
    result = a.artifact.result
    if "concentration" in result and a.artifact.stage.config.get("top", TOP) == TOP:
        return {**result, "top_10": result["concentration"]}
    return result


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _interval(result: dict[str, Any], name: str) -> tuple[float, float] | None:
    """The interval of a field, from `<name>_low` and `<name>_high`."""
    low, high = number(result.get(f"{name}_low")), number(result.get(f"{name}_high"))
    return (low, high) if low is not None and high is not None else None


def _caveats(result: dict[str, Any]) -> list[str]:
    """Sentences that a method put beside its numbers."""
    found = result.get("caveats") or ()
    return (
        [text for text in found if isinstance(text, str)] if isinstance(found, list | tuple) else [str(found)]
    )


def _spectrum(group: list[StageArtifact]) -> tuple[Vector | None, tuple[Vector, Vector] | None, float]:
    """Eigenvalues, their intervals and the total variance, from the artifact that has most of them."""
    having = [a for a in group if SPECTRUM in a.arrays and a.arrays[SPECTRUM].size]
    having.sort(key=lambda a: (-a.arrays[SPECTRUM].size, f"{SPECTRUM}_low" not in a.arrays))
    if not having:
        return None, None, 0.0
    arrays = having[0].arrays
    values = np.maximum(np.nan_to_num(np.asarray(arrays[SPECTRUM], dtype=np.float64)), 0.0)
    total = max(float(values.sum()), number(having[0].artifact.result.get("trace")) or 0.0)
    if not values.sum() > 0:
        return None, None, 0.0
    low, high = (arrays.get(f"{SPECTRUM}_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return values, None, total
    return values, (np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)), total


def _from_spectrum(values: Vector) -> dict[str, float]:
    """Measures that all eigenvalues together give, where no method gave them."""
    total, share = float(values.sum()), values / values.sum()
    positive = share[share > 0]
    return {
        "participation_ratio": total**2 / float((values**2).sum()),
        "effective_rank": float(np.exp(-(positive * np.log(positive)).sum())),
        "stable_rank": total / float(values.max()),
        "anisotropy": float(share.max()),
        "top_10": float(share[:TOP].sum()),
        "components_90": float(np.argmax(np.cumsum(share) >= 0.9 - 1e-12) + 1),
    }
