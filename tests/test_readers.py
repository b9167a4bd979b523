"""What people open: lazily, by id or name, and never damaged in silence."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import subspan
from schemas.capture import CaptureSpec
from schemas.errors import DamageError, MethodError, NotFoundError, SpecError, UnknownNameError
from tasks.drive import serial
from tasks.engine import run_stage
from tasks.readers import ArtifactView, Capture, list_artifacts, list_captures, open_artifact, open_capture
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of

TOP = Path(__file__).resolve().parent.parent
SAMPLE = np.arange(90) // 3
KINDS = ["red", "green", "blue"] * 10


def values_of(width: int = 4, n: int = 90) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, width)).astype(np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


@pytest.fixture
def spec(root: Location) -> CaptureSpec:
    labels = {"kind": KINDS, "size": np.arange(30) / 2, "position": np.arange(30)}
    return make_capture(root, {"layer.0": values_of(), "layer.1": values_of(6)}, SAMPLE, labels, failed=(2,))


@pytest.fixture
def capture(root: Location, spec: CaptureSpec) -> Capture:
    return open_capture(root, spec.id)


class TestCapture:
    def test_it_tells_what_it_is(self, capture: Capture, spec: CaptureSpec) -> None:
        assert capture.spec == spec
        assert capture.sites == ("layer.0:out:0", "layer.1:out:0")
        assert capture.manifest.rows == {"tokens": 90}
        assert [failure.sample for failure in capture.failures] == [2]
        assert "90 tokens" in repr(capture)

    def test_samples_are_a_table(self, capture: Capture) -> None:
        table = capture.samples
        assert table.index[4] == "sample-0004"
        assert table["length"].tolist() == [3] * 30
        assert table["kind"].tolist() == KINDS
        assert table["ok"].sum() == 29

    def test_rows_come_with_their_coordinates(self, capture: Capture) -> None:
        site = capture.site("layer.0:out:0")
        assert site.activation.dims == ("row", "feature")
        ok = site["ok"].values
        np.testing.assert_array_equal(site.activation.values[ok], values_of()[ok])
        assert np.isnan(site.activation.values[~ok]).all()
        np.testing.assert_array_equal(site["sample"], SAMPLE)
        np.testing.assert_array_equal(site["position"], np.arange(90) % 3)
        np.testing.assert_array_equal(site["label_position"], SAMPLE)
        assert site["key"].values.tolist() == [f"sample-{s:04d}" for s in SAMPLE]
        assert site["kind"].values.tolist() == [KINDS[s] for s in SAMPLE]
        np.testing.assert_allclose(site["size"], SAMPLE / 2)
        norm = np.linalg.norm(values_of(), axis=1)[ok]
        np.testing.assert_allclose(site["norm"].values[ok], norm, rtol=1e-6)

    def test_some_rows_may_be_selected(self, capture: Capture) -> None:
        some = capture.site("layer.1").isel(row=[40, 3, 77])
        np.testing.assert_array_equal(some.activation, values_of(6)[[40, 3, 77]])
        assert some["kind"].values.tolist() == [KINDS[s] for s in SAMPLE[[40, 3, 77]]]
        red = capture.site("layer.1").groupby("kind").mean("row")
        assert red.activation.shape == (3, 6)

    def test_nothing_is_read_before_it_is_asked_for(self, root: Location, spec: CaptureSpec) -> None:
        for path in root.walk(f"captures/{spec.id}.zarr"):
            if "activation/c/" in path:
                root.delete(f"captures/{spec.id}.zarr/{path}")
        site = open_capture(root, spec.id).site("layer.0")
        assert site.activation.shape == (90, 4)
        with pytest.raises(DamageError, match="is missing"):
            site.activation.load()

    def test_changed_bytes_are_refused(self, root: Location, spec: CaptureSpec) -> None:
        folder = f"captures/{spec.id}.zarr"
        path = next(p for p in root.walk(folder) if "layer.0" in p and "/c/" in p)
        data = bytearray(root.read(f"{folder}/{path}"))
        data[9] ^= 1
        root.write(f"{folder}/{path}", bytes(data))
        with pytest.raises(DamageError, match="crc32c"):
            open_capture(root, spec.id).site("layer.0").load()

    def test_dask_arrays_have_a_task_per_shard(self, capture: Capture) -> None:
        site = capture.dask("layer.0")
        assert site.activation.chunks is not None
        assert site.activation.chunks[0] == (8,) * 11 + (2,)
        assert site["kind"].chunks == site["sample"].chunks
        mean = site.where(site["kind"] == "red").activation.mean("row").compute()
        good = (np.array(KINDS)[SAMPLE] == "red") & (SAMPLE != 2)
        np.testing.assert_allclose(mean, values_of()[good].mean(0), rtol=1e-5)

    def test_a_site_may_be_named_by_its_module(self, capture: Capture) -> None:
        xr.testing.assert_identical(capture.site("layer.0").load(), capture.dataset("layer.0:out:0").load())
        with pytest.raises(UnknownNameError, match="nearest: layer"):
            capture.site("layer.9")

    def test_a_capture_of_states_has_no_rows(self, root: Location) -> None:
        spec = make_capture(root, {"a": values_of()}, keep="states")
        with pytest.raises(NotFoundError, match="keeps only the states"):
            open_capture(root, spec.id).site("a")


class TestOpening:
    def test_the_beginning_of_an_id_is_enough(self, root: Location, spec: CaptureSpec) -> None:
        assert subspan.open_capture(root.url, spec.id[:7]).id == spec.id
        assert open_capture(Path(root.url), spec.id[:7]).id == spec.id

    def test_a_name_points_to_an_id(self, root: Location, spec: CaptureSpec) -> None:
        root.write("names/latest.json", f'{{"capture": "{spec.id}"}}'.encode())
        assert open_capture(root, "latest").id == spec.id

    def test_a_beginning_must_be_unique(self, root: Location) -> None:
        ids = [make_capture(root, {"a": values_of(n=2)}, name=str(k)).id for k in range(17)]
        twice = next(a[0] for k, a in enumerate(ids) if a[0] in {b[0] for b in ids[:k]})
        with pytest.raises(UnknownNameError, match="give more digits"):
            open_capture(root, twice)
        assert list_captures(root) == sorted(ids)

    @pytest.mark.parametrize("wanted", ["zzz", "", "../x"])
    def test_what_is_not_there_is_named(self, root: Location, spec: CaptureSpec, wanted: str) -> None:
        with pytest.raises(NotFoundError, match=f"no finished capture.*nearest: {spec.id}"):
            open_capture(root, wanted)

    def test_names_are_among_the_nearest(self, root: Location, spec: CaptureSpec) -> None:
        root.write("names/trained.json", json.dumps({"capture": spec.id}).encode())
        with pytest.raises(NotFoundError, match="nearest: trained"):
            open_capture(root, "traned")

    def test_artifacts_open_with_named_axes(self, root: Location, spec: CaptureSpec) -> None:
        made = run_stage(root, stage_of("spectrum.pca", {"x": rows_ref(spec)}), serial)
        near = run_stage(root, stage_of("geometry.neighbours", {"x": rows_ref(spec)}, k=2), serial)
        view = open_artifact(root, made.id[:8])
        assert view.artifact == made
        assert view.result["n_rows"] == 87
        assert view.arrays["components"].dims == ("component", "feature")
        assert {a.id for a in list_artifacts(root)} == {made.id, near.id}
        assert [a.id for a in list_artifacts(root, "geometry.neighbours")] == [near.id]
        ref = made.stage.rows["x"][0]
        module = ref.site.partition(":")[0]
        found = list_artifacts(root, made.stage.method, capture=ref.capture[:8], site=module)
        assert [a.id for a in found] == [made.id]
        assert list_artifacts(root, made.stage.method, site="another") == []

    def test_outputs_of_several_captures_open_one_by_one(self, root: Location) -> None:
        specs = [make_capture(root, {"a": values_of()}, name=str(k)) for k in range(2)]
        stage = stage_of("geometry.neighbours", {"x": [rows_ref(s) for s in specs]}, k=1)
        view = open_artifact(root, run_stage(root, stage, serial).id)
        assert (view.arrays_of(specs[0].id)["distance"] == 0).all()
        np.testing.assert_array_equal(view.arrays_of(specs[0].id)["index"][:, 0], 90 + np.arange(90))

    def test_reading_needs_neither_torch_nor_a_scheduler(self, root: Location, spec: CaptureSpec) -> None:
        code = (
            "import sys\n"
            "for name in ('torch', 'prefect', 'distributed', 'transformers'): sys.modules[name] = None\n"
            "import subspan\n"
            f"site = subspan.open_capture({root.url!r}, {spec.id!r}).site('layer.0')\n"
            "assert site.activation.sum().item() != 0\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr


class TestLoader:
    def epoch(self, loader: Any) -> list[np.ndarray]:
        return [batch["index"].numpy() for batch in loader]

    def test_every_good_row_comes_once_per_epoch(self, capture: Capture) -> None:
        loader = capture.torch_loader("layer.0", batch_rows=7)
        good = np.flatnonzero(SAMPLE != 2)
        for _ in range(2):
            batches = self.epoch(loader)
            np.testing.assert_array_equal(np.sort(np.concatenate(batches)), good)
            assert {len(b) for b in batches[:-1]} == {7}
        assert loader.n_rows == 90

    def test_a_batch_holds_rows_and_what_belongs_to_them(self, capture: Capture) -> None:
        for batch in capture.torch_loader("layer.0", batch_rows=16):
            index = batch["index"].numpy()
            np.testing.assert_array_equal(batch["x"], values_of()[index])
            np.testing.assert_array_equal(batch["sample"], SAMPLE[index])
            np.testing.assert_array_equal(batch["position"], index % 3)
            np.testing.assert_allclose(batch["labels"]["size"], SAMPLE[index] / 2)
            names = np.array(["blue", "green", "red"])[batch["labels"]["kind"]]
            assert names.tolist() == [KINDS[s] for s in SAMPLE[index]]

    def test_batches_mix_far_shards(self, root: Location) -> None:
        spec = make_capture(root, {"a": values_of(n=640)}, unit_shards=20)
        shards = [
            np.unique(b // 8).size
            for b in self.epoch(open_capture(root, spec.id).torch_loader("a", batch_rows=16))
        ]
        assert np.mean(shards) > 3
        few = open_capture(root, spec.id).torch_loader("a", batch_rows=16, buffer_shards=1)
        assert max(np.unique(b // 8).size for b in self.epoch(few)) <= 4

    def test_the_order_follows_from_seed_and_epoch(self, capture: Capture) -> None:
        def order(seed: int, epoch: int) -> list[int]:
            loader = capture.torch_loader("layer.0", batch_rows=9, seed=seed)
            loader.set_epoch(epoch)
            return np.concatenate(self.epoch(loader)).tolist()

        assert order(0, 0) == order(0, 0)
        assert len({tuple(order(s, e)) for s in (0, 1) for e in (0, 1)}) == 4
        loader = capture.torch_loader("layer.0", batch_rows=9)
        assert [np.concatenate(self.epoch(loader)).tolist() for _ in range(2)] == [order(0, 0), order(0, 1)]

    def test_without_shuffling_rows_come_in_order(self, capture: Capture) -> None:
        batches = self.epoch(capture.torch_loader("layer.0", shuffle=False, batch_rows=20, drop_failed=False))
        assert np.concatenate(batches).tolist() == list(range(90))
        assert [len(b) for b in batches] == [20, 20, 20, 20, 10]

    def test_failed_rows_may_be_kept(self, capture: Capture) -> None:
        rows = torch.cat([b["x"] for b in capture.torch_loader("layer.0", drop_failed=False)])
        assert int(rows.isnan().all(1).sum()) == 3

    @pytest.mark.parametrize("wrong", [{"batch_rows": 0}, {"buffer_shards": 0}])
    def test_wrong_numbers_are_refused(self, capture: Capture, wrong: dict[str, int]) -> None:
        with pytest.raises(SpecError, match="at least 1"):
            capture.torch_loader("layer.0", **wrong)

    def test_damage_stops_the_loader(self, root: Location, spec: CaptureSpec) -> None:
        folder = f"captures/{spec.id}.zarr"
        root.delete(f"{folder}/{next(p for p in root.walk(folder) if 'layer.0' in p and '/c/' in p)}")
        with pytest.raises(DamageError):
            self.epoch(open_capture(root, spec.id).torch_loader("layer.0"))

    @pytest.mark.slow
    def test_workers_share_the_rows(self, capture: Capture) -> None:
        from torch.utils.data import DataLoader

        rows = capture.torch_loader("layer.0", batch_rows=7)
        loader = DataLoader(rows, batch_size=None, num_workers=2, multiprocessing_context="spawn")
        epochs = []
        for epoch in range(2):
            rows.set_epoch(epoch)
            epochs.append(np.concatenate(self.epoch(loader)))
            np.testing.assert_array_equal(np.sort(epochs[-1]), np.flatnonzero(SAMPLE != 2))
        assert epochs[0].tolist() != epochs[1].tolist()


class TestReconstruction:
    """Rows from codes, one block per shard, and analyses on the codes alone."""

    WIDTH = 12

    @pytest.fixture
    def rows(self) -> np.ndarray:
        scale = np.geomspace(4, 0.2, self.WIDTH)
        return (np.random.default_rng(0).standard_normal((90, self.WIDTH)) * scale + 3).astype(np.float32)

    def view(self, root: Location, specs: list[CaptureSpec], **options: Any) -> ArtifactView:
        rows = {"x": [rows_ref(spec) for spec in specs]}
        basis = run_stage(root, stage_of("spectrum.pca", rows), serial)
        made = run_stage(root, stage_of("compression.klt", rows, {"basis": basis.id}, **options), serial)
        return open_artifact(root, made.id)

    @pytest.mark.parametrize("gain_shape", [False, True])
    def test_rows_come_back_with_the_error_that_was_noted(
        self, root: Location, rows: np.ndarray, gain_shape: bool
    ) -> None:
        spec = make_capture(root, {"a": rows}, SAMPLE, failed=(2,))
        view = self.view(root, [spec], nmse=1e-3, gain_shape=gain_shape)
        folder = f"artifacts/{view.id}/arrays.zarr"
        codecs = json.loads(root.read(f"{folder}/code/zarr.json"))["codecs"][0]["configuration"]["codecs"]
        assert [codec["name"] for codec in codecs] == ["transpose", "bytes", "zstd", "crc32c"]
        found = view.reconstruct()
        assert found.dims == ("row", "feature")
        assert found.dtype == np.float32
        assert found.chunks == ((8,) * 11 + (2,), (self.WIDTH,))
        values, good = found.values, SAMPLE != 2
        assert np.isnan(values[~good]).all()
        off = ((values - rows)[good].astype(np.float64) ** 2).sum(1)
        np.testing.assert_allclose(
            view.arrays["error"].values[good].astype(np.float64) ** 2, off, rtol=1e-3, atol=1e-9
        )
        np.testing.assert_array_equal(found.isel(row=slice(30, 50)).values, values[30:50])

    def test_analyses_of_codes_are_those_of_the_rows(self, root: Location, rows: np.ndarray) -> None:
        view = self.view(root, [make_capture(root, {"a": rows}, SAMPLE)])
        arrays = view.arrays
        codes = (arrays["code"].values + 256.0 * arrays["high"].values) * arrays["step"].item()
        again = view.reconstruct().values.astype(np.float64)
        centred = again - arrays["mean"].values
        np.testing.assert_allclose(codes @ codes.T, centred @ centred.T, atol=1e-4)
        values, turned = np.linalg.eigh(np.cov(codes.T))
        expected, vectors = np.linalg.eigh(np.cov(again.T))
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        overlap = np.abs(np.sum((turned.T @ arrays["components"].values) * vectors.T, axis=1))
        np.testing.assert_allclose(overlap, 1, atol=1e-5)
        apart = [np.linalg.norm(x[:, None] - x, axis=2) for x in (codes, again)]
        np.testing.assert_allclose(apart[0], apart[1], atol=1e-5)
        nearest = [np.sort(np.argsort(d, axis=1, kind="stable")[:, 1:4], axis=1) for d in apart]
        assert (nearest[0] == nearest[1]).mean() > 0.99

    def test_each_of_several_captures_by_its_id(self, root: Location, rows: np.ndarray) -> None:
        specs = [make_capture(root, {"a": rows[k * 30 :]}, name=str(k)) for k in range(2)]
        view = self.view(root, specs)
        for k, spec in enumerate(specs):
            found = view.reconstruct(spec.id).values
            assert ((found - rows[k * 30 :]) ** 2).sum() < 0.01 * ((rows - rows.mean(0)) ** 2).sum()
        with pytest.raises(UnknownNameError, match=f"{specs[0].id}, {specs[1].id}; asked for None"):
            view.reconstruct()

    def test_bytes_on_disk(self, root: Location, rows: np.ndarray) -> None:
        spec = make_capture(root, {"a": rows}, SAMPLE)
        view = self.view(root, [spec])
        folder = Path(f"{root.url}/artifacts/{view.id}/arrays.zarr/code")
        assert view.bytes["code"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        assert view.bytes.keys() == view.artifact.arrays.keys()
        top = sum(d.bytes for p, d in view.artifact.files.items() if p == "arrays.zarr/zarr.json")
        assert sum(view.bytes.values()) + top == sum(d.bytes for d in view.artifact.files.values())

    def test_what_holds_no_codes_says_so(self, root: Location, spec: CaptureSpec) -> None:
        made = run_stage(root, stage_of("spectrum.pca", {"x": rows_ref(spec)}), serial)
        with pytest.raises(MethodError, match=r"spectrum\.pca hold no codes.*compression\.klt"):
            open_artifact(root, made.id).reconstruct()
