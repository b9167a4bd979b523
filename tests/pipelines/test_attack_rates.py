"""A table of networks by attacks, made up with a low dimension: how many directions stand out of chance, which networks lie outside, and
how well the rates of one kind of attack tell those of another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.serial import run_serial
from schemas.run import RunSpec
from subspan import list_artifacts, open_artifact

DIMENSION, ATTACKS, KNOWN, NEW = 2, 11, 80, 20


def rates(n: int, seed: int, odd: int = 0) -> np.ndarray:
    """[network, attack]: success rates that `DIMENSION` traits of a network make, with noise; the last `odd` networks follow no trait."""
    loading = np.random.default_rng(99).standard_normal((DIMENSION, ATTACKS))
    rng = np.random.default_rng(seed)
    logit = rng.standard_normal((n, DIMENSION)) @ loading + 0.15 * rng.standard_normal((n, ATTACKS))
    logit[n - odd :] = 2 * rng.standard_normal((odd, ATTACKS))
    found: np.ndarray = 1 / (1 + np.exp(-logit))
    return found


def run_of(folder: Path) -> RunSpec:
    """Rates as logits, which traits add up in; known networks, and new ones of which some are odd."""
    for name, table in (("known", rates(KNOWN, 0)), ("new", rates(NEW, 1, odd=5))):
        odd = np.where(np.arange(len(table)) < len(table) - 5 * (name == "new"), "alike", "odd")
        np.savez(folder / f"{name}.npz", logit=np.log(table / (1 - table)), kind=odd)
    none: dict[str, Any] = {"kind": "factory", "factory": "torch.nn:Identity"}
    captures = {
        name: {
            "model": none,
            "data": {
                "source": {
                    "kind": "arrays",
                    "path": str(folder / f"{name}.npz"),
                    "array": "logit",
                    "labels": {"kind": "kind"},
                }
            },
            "sites": ["**"],
        }
        for name in ("known", "new")
    }
    known, new = {"captures": ["known"]}, {"captures": ["new"]}
    stages = {
        "number": {"method": "spectrum.parallel_analysis", "inputs": {"x": known}},
        "basis": {"method": "spectrum.pca", "inputs": {"x": known}, "config": {"components": ATTACKS}},
        "outside": {
            "method": "anomaly.residual",
            "inputs": {"x": new, "basis": {"stage": "basis"}},
            "config": {"components": DIMENSION},
        },
        "found": {
            "method": "anomaly.quality",
            "inputs": {"x": new, "scores": {"stage": "outside"}},
            "config": {"label": "kind", "anomalous": ["odd"]},
        },
    }
    return RunSpec.model_validate(
        {
            "name": "attacks",
            "root": str(folder / "store"),
            "captures": captures,
            "stages": stages,
            "report": None,
        }
    )


def test_a_robustness_subspace(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert not run_serial(run).stage_failures

    def made(method: str) -> Any:
        return open_artifact(tmp_path / "store", list_artifacts(tmp_path / "store", method)[0].id)

    number, basis = made("spectrum.parallel_analysis"), made("spectrum.pca")
    assert number.result["components"] == DIMENSION
    assert number.result["explained"] > 0.9
    components = basis.arrays["components"].values[:DIMENSION]
    planted = np.linalg.qr(np.random.default_rng(99).standard_normal((DIMENSION, ATTACKS)).T)[0]
    assert np.linalg.svd(components @ planted)[1].min() > 0.99
    assert made("anomaly.quality").result["auroc"]["value"] == pytest.approx(1)
    # What a subspace is good for: rates of the other attacks from those of five.
    table, mean = rates(NEW, 1), basis.arrays["mean"].values
    logit = np.log(table / (1 - table)) - mean
    traits = np.linalg.lstsq(components[:, :5].T, logit[:, :5].T, rcond=None)[0]
    left = np.square(logit[:, 5:] - traits.T @ components[:, 5:]).sum() / np.square(logit[:, 5:]).sum()
    assert left < 0.1
