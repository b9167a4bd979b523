"""geometry.dimension_accuracy: planted laws, numpy's own correlations, chance, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest

from schemas.errors import MethodError
from tasks.methods.contract import Inputs, Member
from tasks.methods.geometry import dimension_accuracy


def member(capture: str, site: str, **result: Any) -> Member:
    return Member(site, (capture,), {}, result)


def spectrum(capture: str, site: str, ratio: float | None, width: int = 64) -> Member:
    return member(capture, site, participation_ratio_unbiased=ratio, participation_ratio=1.0, width=width)


def probe(capture: str, accuracy: float | None, r2: float | None = None) -> Member:
    return member(capture, "last", accuracy=accuracy, r2=r2)


def run(summaries: list[Member], probes: list[Member], **options: Any) -> tuple[Any, Any]:
    inputs = Inputs({}, 0, 0, series={"summaries": tuple(summaries), "probes": tuple(probes)})
    config = dimension_accuracy.Config.model_validate(options)
    dimension_accuracy.check(inputs, config)
    return dimension_accuracy.solve(inputs, config)


def networks(
    n: int, slope: float, noise: float, seed: int = 0, widths: tuple[int, ...] = (64,)
) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    dims = np.exp(rng.uniform(1, 4, n))
    accuracy = 0.5 + slope * np.log(dims) + noise * rng.standard_normal(n)
    first = np.exp(rng.uniform(1, 4, n))
    spectra = []
    for k in range(n):
        for site, d in (("a", first[k]), ("b", dims[k])):
            spectra.append(spectrum(f"n{k}", site, float(d), widths[k % len(widths)]))
    return run(spectra, [probe(f"n{k}", float(a)) for k, a in enumerate(accuracy)])


def test_a_planted_law_is_found_and_numbers_are_numpys() -> None:
    result, arrays = networks(20, 0.1, 0.02, widths=(64, 128))
    x, y = np.log(arrays["dimension"].values.numpy()), arrays["accuracy"].values.numpy()
    assert result.dimension.pearson == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    assert result.dimension.pearson > 0.9
    assert result.dimension.chance < 0.001
    assert result.dimension.low < result.dimension.pearson < result.dimension.high
    assert result.dimension.partial > 0.9
    assert result.dimension.points == 20
    assert arrays["width"].values[:2].tolist() == [64, 128]


def test_chance_is_chance() -> None:
    shares = [networks(12, 0.0, 0.1, seed)[0].dimension.chance for seed in range(60)]
    assert np.mean(np.array(shares) < 0.05) < 0.15
    assert 0.35 < np.mean(shares) < 0.65


def test_compression_is_first_over_last() -> None:
    ratios = (8.0, 4.0, 2.0, 1.0)
    spectra = [
        spectrum(f"n{k}", site, d) for k, r in enumerate(ratios) for site, d in (("a", 8 * r), ("b", 8.0))
    ]
    result, arrays = run(spectra, [probe(f"n{k}", 0.6 + 0.1 * math.log(r)) for k, r in enumerate(ratios)])
    assert arrays["compression"].values.tolist() == list(ratios)
    assert result.compression.pearson == pytest.approx(1)
    assert result.compression.low is None
    assert result.dimension is None  # all alike


def test_what_is_missing_is_said() -> None:
    result, arrays = run(
        [spectrum("a", "s", 3.0), spectrum("b", "s", None)], [probe("a", None, 0.4), probe("c", 0.3)]
    )
    assert result.networks == ("a",)
    assert arrays["accuracy"].values.tolist() == [0.4]
    assert math.isnan(float(arrays["compression"].values[0]))
    assert result.dimension is None
    assert any("2 captures" in note for note in result.caveats)
    with pytest.raises(MethodError, match="no capture has both"):
        run([spectrum("a", "s", 3.0)], [probe("b", 0.5)])
