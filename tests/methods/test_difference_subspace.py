"""geometry.difference_subspace: eigenvalues of dense projector sums, geodesics, planted bends and chance."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.contract import Array, Member
from tasks.methods.geometry import difference_subspace as method
from tasks.numerics.difference_subspaces import between, random_magnitude
from tests.methods.subspaces import basis, fitted, inputs_of, member, turned


def run(members: list[Member], **options: Any) -> tuple[method.Result, dict[str, Array]]:
    return method.solve(inputs_of(members), method.Config(**options))


def geodesic(times: list[float], k: int = 3, d: int = 30) -> list[torch.Tensor]:
    """Subspaces at some times of a geodesic, each in a basis of its own."""
    frame, speed = basis(2 * k, d, 0), torch.tensor([0.05, 0.2, 0.4], dtype=torch.float64)[:k]
    return [basis(k, k, 7 + n) @ turned(frame[:k], frame[k:], speed * t) for n, t in enumerate(times)]


@pytest.mark.parametrize(("k", "m"), [(3, 3), (4, 2)])
def test_bases_are_eigenvectors_of_the_sum_of_projectors(k: int, m: int) -> None:
    shared = basis(1, 20, 1)
    a, b = (
        torch.linalg.qr(torch.cat([shared, basis(size - 1, 20, seed)]).T).Q.T
        for size, seed in ((k, 2), (m, 3))
    )
    found = between(a, b)
    values, vectors = np.linalg.eigh((a.T @ a + b.T @ b).numpy())
    for rows, chosen in (
        (found.mean, values > 1 + 1e-9),
        (found.difference, (values > 1e-9) & (values < 1 - 1e-9)),
    ):
        expected = vectors[:, chosen] @ vectors[:, chosen].T
        np.testing.assert_allclose((rows.T @ rows).numpy(), expected, atol=1e-10)
    cosine = np.sort(values[values > 1 + 1e-9] - 1)[::-1]
    np.testing.assert_allclose(found.angles.cos(), cosine, atol=1e-12)
    assert found.magnitude == pytest.approx(2 * (1 - cosine).sum(), abs=1e-12)
    assert len(found.difference) == m - 1 if m < k else len(found.difference) == k - 1


def test_a_geodesic_has_no_second_order() -> None:
    result, arrays = run([member(b, f"s{n}") for n, b in enumerate(geodesic([0, 1, 2, 3, 4]))])
    assert float(arrays["second"].values.max()) < 1e-12
    expected = 2 * (1 - np.cos([0.05, 0.2, 0.4])).sum()
    np.testing.assert_allclose(arrays["magnitude"].values, [expected] * 4, rtol=1e-10)
    assert (result.n_unresolved_second, result.n_right_angles) == (3, 0)
    assert arrays["first"].values.tolist() == [0, 1, 2, 3]
    assert arrays["middle"].values.tolist() == [1, 2, 3]


def test_a_bend_is_found_where_it_is() -> None:
    times = [0.0, 1.0, 2.0, 1.0, 0.0]
    result, arrays = run([member(b, f"s{n}") for n, b in enumerate(geodesic(times))])
    assert result.largest_bend == "capture s2"
    second = arrays["second"].values
    assert float(second[1]) == pytest.approx(2 * (1 - np.cos([0.05, 0.2, 0.4])).sum(), rel=1e-10)
    assert float(second[0]) < 1e-12 > float(second[2])


def test_small_steps_keep_their_digits() -> None:
    _, arrays = run([member(b) for b in geodesic([0, 1e-6])], along="sites")
    expected = (1e-6 * np.array([0.05, 0.2, 0.4])) ** 2
    assert float(arrays["magnitude"].values[0]) == pytest.approx(expected.sum(), rel=1e-6)


def test_series_run_along_captures_or_sites() -> None:
    bases = geodesic([0, 1, 0, 3])
    members = [
        member(b, site, capture)
        for b, (site, capture) in zip(
            bases, [("a", "one"), ("b", "one"), ("a", "two"), ("b", "two")], strict=True
        )
    ]
    captures, arrays = run(members)
    assert captures.labels == ("one a", "two a", "one b", "two b")
    assert (captures.n_series, captures.second) == (2, None)
    assert float(arrays["magnitude"].values[0]) < 1e-20
    assert captures.largest_step == ("one b", "two b")
    sites, _ = run(members, along="sites")
    assert sites.labels == ("one a", "one b", "two a", "two b")
    assert sites.largest_step == ("two a", "two b")
    with pytest.raises(MethodError, match="no two of the 2 artifacts follow each other along captures"):
        run(members[:2], along="captures")


@pytest.mark.parametrize(("k", "m", "d"), [(2, 3, 12), (3, 3, 200), (5, 9, 11)])
def test_chance_is_that_of_draws(k: int, m: int, d: int) -> None:
    draws = [between(basis(k, d, 10 * s), basis(m, d, 10 * s + 1)).magnitude for s in range(400)]
    error = np.std(draws) * math.sqrt(1 / 400 + 1 / 800)
    assert random_magnitude(k, m, d, 800, 0) == pytest.approx(np.mean(draws), abs=4 * error + 1e-12)


def test_noise_is_that_of_samples_of_one_law() -> None:
    scales = torch.tensor([4.0, 3.0, 2.5] + [1.0] * 17).double()
    members = [
        fitted(
            torch.randn(3000, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            * scales,
            f"s{seed:02d}",
            components=3,
        )
        for seed in range(16)
    ]
    result, _ = run(members)
    assert result.magnitude_noise is not None
    assert result.second is not None
    assert result.second_noise is not None
    assert result.magnitude == pytest.approx(result.magnitude_noise, rel=0.2)
    assert result.second == pytest.approx(result.second_noise, rel=0.2)
    assert result.magnitude < 0.05 * result.magnitude_null


def test_right_angles_are_counted_and_bad_input_refused() -> None:
    eye = torch.eye(8).double()
    result, _ = run([member(eye[:2], "a"), member(eye[1:3], "b"), member(eye[[0, 5]], "c")])
    assert result.n_right_angles == 1
    with pytest.raises(MethodError, match="does not vary"):
        run([member(eye[:2]), member(eye[:0])])
    with pytest.raises(MethodError, match="one width"):
        run([member(eye[:2]), member(basis(2, 9, 0))])
