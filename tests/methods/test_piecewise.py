"""Rows in local bases: against a plain loop with LAPACK, rows that pieces pay for, rows that they do not, and rows that do not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stage
from tasks.methods.clustering import assign, k_subspaces
from tasks.methods.compression import piecewise
from tasks.readers import open_artifact
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.test_klt import basis_of, case_of, gaussian

WIDTH = 24
SAMPLE = np.repeat(np.arange(5), (40, 10, 60, 50, 20))


def union(
    n: int = 3000, parts: int = 4, dimension: int = 3, noise: float = 0.01, seed: int = 0
) -> np.ndarray:
    """Rows of as many planes through points of their own."""
    rng = np.random.default_rng(seed)
    planes = np.linalg.qr(rng.standard_normal((parts, WIDTH, dimension)))[0].transpose(0, 2, 1)
    points, part = rng.standard_normal((parts, WIDTH)), rng.integers(0, parts, n)
    along = rng.standard_normal((n, dimension)) * np.geomspace(2, 1, dimension)
    rows = np.einsum("nd,ndf->nf", along, planes[part]) + points[part]
    return (rows + noise * rng.standard_normal(rows.shape)).astype(np.float32)


def subspaces_of(x: np.ndarray, **options: Any) -> Answer:
    config = k_subspaces.Config(**({"clusters": 4, "dimension": 3, "starts": 3} | options))
    return cases.run(case_of(k_subspaces, x, config))


def case(x: np.ndarray, subspaces: Answer, basis: Answer | None = None, **options: Any) -> Case:
    here = case_of(piecewise, x, piecewise.Config(**options))
    ports = {"subspaces": subspaces, "basis": basis_of(x) if basis is None else basis}
    inputs = replace(
        here.inputs,
        artifacts={name: answer.arrays for name, answer in ports.items()},
        results={name: answer.result.model_dump(mode="json") for name, answer in ports.items()},
    )
    return here._replace(inputs=inputs)


def coded(
    x: np.ndarray, subspaces: Answer | None = None, basis: Answer | None = None, **options: Any
) -> Answer:
    here = case(x, subspaces_of(x) if subspaces is None else subspaces, basis, **options)
    piecewise.check(here.inputs, here.config)
    return cases.run(here)


def decoded(answer: Answer) -> np.ndarray:
    """Rows from the stored arrays alone, one by one, in float64."""
    a = {name: values.double().numpy() for name, values in answer.arrays.items() if name != "part"}
    rows = []
    for k, low, high, length in zip(
        answer.arrays["part"].tolist(), a["code"], a["high"], a["length"], strict=True
    ):
        rows.append(((low + 256 * high) * a["step"] @ a["components"][k] + a["mean"][k]) * length)
    return np.array(rows)


def test_codes_and_figures_are_those_of_a_loop() -> None:
    x = union()
    subspaces = subspaces_of(x)
    answer = coded(x, subspaces, nmse=0.01)
    a, exact = {name: values.numpy() for name, values in answer.arrays.items()}, x.astype(np.float64)
    bases = subspaces.arrays["basis"].numpy()
    for row, part, code, error in zip(exact, a["part"], a["code"], a["error"] ** 2, strict=True):
        left = [
            row - m - b.T @ (b @ (row - m))
            for m, b in zip(subspaces.arrays["mean"].numpy(), bases, strict=True)
        ]
        assert part == np.argmin([np.linalg.norm(each) for each in left])
        along = a["components"][part].astype(np.float64) @ (row - a["mean"][part])
        np.testing.assert_array_equal(code, np.rint(along / a["step"]))
        assert error == pytest.approx(((row - decoded_row(a, part, code)) ** 2).sum(), rel=1e-4)
    result = answer.result
    off, energy = ((exact - decoded(answer)) ** 2).sum(), ((exact - exact.mean(0)) ** 2).sum()
    assert result.nmse == pytest.approx(off / energy, rel=1e-5)
    assert result.bits_per_dimension == pytest.approx(plain_bits(a) / WIDTH)
    assert a["size"].tolist() == np.bincount(a["part"], minlength=4).tolist()


def decoded_row(a: dict[str, np.ndarray], part: int, code: np.ndarray) -> np.ndarray:
    row: np.ndarray = code * a["step"] @ a["components"][part].astype(np.float64) + a["mean"][part]
    return row


def plain_bits(a: dict[str, np.ndarray]) -> float:
    """Of a row: entropies of the part and of the codes in each, half a nat for each symbol beyond the first."""
    tables = [(a["part"], len(a["part"]))]
    for k in np.unique(a["part"]):
        tables += [(column, len(column)) for column in a["code"][a["part"] == k].T]
    total = 0.0
    for symbols, n in tables:
        counts = np.unique(symbols, return_counts=True)[1]
        total += n * stats.entropy(counts, base=2) + (len(counts) - 1) / (2 * np.log(2))
    return total / len(a["part"])


def test_the_promise_is_that_of_water_filling_over_parts_with_what_they_leave_out() -> None:
    x = union(noise=0.1)
    subspaces = subspaces_of(x)
    result = coded(x, subspaces, nmse=0.1).result
    values, size = subspaces.arrays["eigenvalue"].numpy(), subspaces.arrays["size"].numpy() / len(x)
    total = np.cov(x.astype(np.float64).T).trace()
    outside = (size[:, None] * values[:, 3:]).sum() / total
    assert result.outside_nmse == pytest.approx(outside)
    inside = (size[:, None] * np.minimum(values[:, :3], result.step**2 / 12)).sum() / total
    assert outside + inside == pytest.approx(0.1)
    assert result.nmse == pytest.approx(0.1, rel=0.05)


def test_pieces_pay_where_rows_lie_in_several_subspaces() -> None:
    x = union(8000)
    answer = coded(x[:4000], nmse=3e-3)
    assert answer.result.saved_bits > 0.5 * answer.result.klt_bits_per_dimension
    assert answer.result.gap_to_gaussian < -0.5
    assert answer.result.caveats == ()
    other = coded(x[4000:], subspaces_of(x[:4000]), basis_of(x[:4000]), nmse=3e-3).result
    assert other.nmse <= 3.3e-3
    assert other.saved_bits == pytest.approx(answer.result.saved_bits, rel=0.05)


def test_pieces_do_not_pay_for_gaussian_rows() -> None:
    """Not for many parts of few rows either, whose entropies alone would be too low."""
    x = gaussian(4000, 16)
    for clusters in (4, 24):
        result = coded(x, subspaces_of(x, clusters=clusters, dimension=15, starts=1), nmse=0.03).result
        assert result.saved_bits < 0
        assert "pieces do not pay" in result.caveats[0]


def test_one_part_is_one_basis() -> None:
    x = gaussian(4000, 16)
    result = coded(x, subspaces_of(x, clusters=1, dimension=15), nmse=0.03).result
    assert result.bits_per_dimension == pytest.approx(result.mixed_bits_per_dimension)
    assert result.saved_bits == pytest.approx(0, abs=0.02)


def test_rows_of_unit_length_are_coded_with_their_length() -> None:
    rng = np.random.default_rng(0)
    x = (union() * rng.lognormal(0, 2, (3000, 1))).astype(np.float32)
    subspaces = subspaces_of(x, unit_length=True, kind="linear", dimension=4)
    answer = coded(x, subspaces, basis_of(x, center=False), nmse=0.01)
    exact = x.astype(np.float64)
    share = ((exact - decoded(answer)) ** 2).sum(1) / (exact**2).sum(1)
    assert answer.result.nmse == pytest.approx(share.mean(), rel=1e-4)
    assert answer.result.nmse == pytest.approx(0.01, rel=0.1)
    np.testing.assert_allclose(answer.arrays["length"], np.linalg.norm(exact, axis=1), rtol=1e-6)
    assert answer.result.saved_bits > 0


def test_parts_are_the_clusters_of_assign() -> None:
    x = union(noise=0.3)
    subspaces = subspaces_of(x)
    given = case_of(assign, x, assign.Config())
    ports = {
        "artifacts": {"subspaces": subspaces.arrays},
        "results": {"subspaces": subspaces.result.model_dump()},
    }
    clusters = cases.run(given._replace(inputs=replace(given.inputs, **ports))).arrays["cluster"]
    assert torch.equal(cases.run(case(x, subspaces, nmse=0.5)).arrays["part"].long(), clusters)


def test_bits_do_not_depend_on_how_rows_are_cut() -> None:
    x = union(1700)
    here = case(x, subspaces_of(x), nmse=0.01)
    whole = cases.run(here).arrays
    pieces = cases.run(here, cases.cut(here.block, [1, 48, 555, 556, 1500])).arrays
    for name in ("part", "code", "high", "error"):
        assert torch.equal(whole[name], pieces[name])


def test_rows_unlike_those_of_the_subspaces_are_flagged() -> None:
    x = union(4096)
    subspaces, basis = subspaces_of(x), basis_of(x)
    x[2048:] = union(2048, seed=1)
    result = coded(x, subspaces, basis, nmse=0.01).result
    assert result.flagged_rows == 2048
    assert result.worst_nmse > 0.1
    assert any("unlike the rows" in note for note in result.caveats)


def test_outliers_are_clamped_and_counted() -> None:
    x = union()
    subspaces, basis = subspaces_of(x), basis_of(x)
    x[5] += 1e6 * subspaces.arrays["basis"][0, 0].float().numpy()
    answer = coded(x, subspaces, basis, nmse=0.01)
    assert answer.result.clipped >= 1
    assert any("clamped" in note for note in answer.result.caveats)
    off = ((x.astype(np.float64) - decoded(answer)) ** 2).sum(1)
    np.testing.assert_allclose(answer.arrays["error"][5].double().square(), off[5], rtol=1e-3)


def test_no_rows() -> None:
    x = union()
    here = case(x, subspaces_of(x), nmse=0.01)
    result = cases.run(here, [cases.part(here.block, slice(0, 0))]).result
    assert (result.n_rows, result.nmse, result.bits_per_dimension, result.saved_bits) == (0, None, None, None)


def test_one_row_and_dead_features() -> None:
    x = union()
    x[:, 7] = 2.5
    subspaces, basis = subspaces_of(x), basis_of(x)
    answer = coded(x[:1], subspaces, basis, nmse=0.05)
    assert answer.result.n_rows == 1
    np.testing.assert_allclose(decoded(answer)[:, 7], 2.5, atol=1e-4)


class TestRefusals:
    def test_subspaces_that_leave_out_more_than_the_wanted_error(self) -> None:
        x = union(noise=0.3)
        with pytest.raises(MethodError, match=r"leave out .* for an nmse above") as caught:
            coded(x, nmse=0.003)
        least = float(str(caught.value).rpartition("above ")[2])
        assert coded(x, nmse=1.05 * least).result.promised_nmse == pytest.approx(1.05 * least)

    def test_another_width(self) -> None:
        x = union()
        with pytest.raises(MethodError, match="have 24 features, the site has 8"):
            coded(gaussian(100, 8), subspaces_of(x), basis_of(x))

    def test_a_step_that_sixteen_bits_do_not_hold(self) -> None:
        with pytest.raises(MethodError, match="16 bits"):
            coded(union(noise=0), nmse=1e-9)


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


@pytest.mark.parametrize("unit_length", [False, True])
def test_rows_come_back_lazily(root: Location, unit_length: bool) -> None:
    x = union(180)
    rows = {"x": [rows_ref(make_capture(root, {"a": x}, SAMPLE, failed=(1,)))]}
    options = {"clusters": 4, "dimension": 4, "starts": 3, "unit_length": unit_length}
    ports = {
        "subspaces": run_stage(root, stage_of("clustering.k_subspaces", rows, **options), serial).id,
        "basis": run_stage(
            root, stage_of("spectrum.pca", rows, components=WIDTH, center=not unit_length), serial
        ).id,
    }
    made = run_stage(root, stage_of("compression.piecewise", rows, ports, nmse=0.05), serial)
    view = open_artifact(root, made.id)
    found = view.reconstruct()
    assert (found.dtype, found.dims, found.chunks is not None) == (np.float32, ("row", "feature"), True)
    values, good = found.values, SAMPLE != 1
    assert np.isnan(values[~good]).all()
    off = ((values - x)[good].astype(np.float64) ** 2).sum(1)
    np.testing.assert_allclose(
        view.arrays["error"].values[good].astype(np.float64) ** 2, off, rtol=1e-3, atol=1e-6
    )
    np.testing.assert_array_equal(found.isel(row=slice(60, 90)).values, values[60:90])
    options = {"sample_rows": 100, "clusters": 3}
    quality = run_stage(
        root, stage_of("compression.store_quality", rows, {"codes": made.id}, **options), serial
    )
    energy = ((x[good] - x[good].mean(0).astype(np.float64)) ** 2).sum()
    assert open_artifact(root, quality.id).result["nmse"] == pytest.approx(off.sum() / energy, rel=1e-4)
