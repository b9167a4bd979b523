"""The example run files run, at a small size, and find what they should."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from examples import finetuning, training
from pipelines.cli import main
from pipelines.runfile import load_run
from pipelines.serial import run_serial
from schemas.outcome import RunOutcome
from subspan import open_artifact

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.yaml"))


def run_example(name: str, root: Path, *overrides: str) -> RunOutcome:
    path = next(p for p in EXAMPLES if p.stem == name)
    return run_serial(load_run(path, [f"root={root}", *overrides]))


def test_every_example_is_covered() -> None:
    assert [p.stem for p in EXAMPLES] == [
        "anomaly",
        "clusters",
        "compare",
        "compression",
        "demo",
        "digits",
        "finetuning",
        "partitions",
        "training",
        "watch",
    ]


@pytest.mark.slow
def test_anomaly(tmp_path: Path) -> None:
    """At its own size: what is strange is found by every detector, in the middle of the network more than at its end."""
    outcome = run_example("anomaly", tmp_path, "report.figures=[svg]")
    assert outcome.exit_code == 0
    found = {(a.stage, a.site): a.result for a in outcome.artifacts}
    layer = "encoder.layer.{}:out:0".format
    for stage in ("quality-outside", "quality-far", "quality-both"):
        assert float(found[stage, layer(3)]["auroc"]) > 0.85 > float(found[stage, layer(5)]["auroc"])
    assert float(found["quality-texts", layer(2)]["auroc"]) > 0.9
    assert float(found["quality-class", "readout:in:0"]["auroc"]) > 0.98
    assert float(found["quality-virtual", "readout:in:0"]["auroc"]) > 0.9
    assert (found["judge-texts", layer(2)]["of"], found["judge-texts", layer(2)]["n_rows"]) == ("sample", 240)
    assert float(found["judge-class", "readout:in:0"]["discovered"]) > 100
    assert outcome.report is not None


def test_watch(tmp_path: Path) -> None:
    """Days of other things than docstrings are told, once; those of the reference are not made by a watch."""
    path = next(p for p in EXAMPLES if p.stem == "watch")
    small = ("captures.normal.data.source.arguments.n=150", "captures.known.data.source.arguments.n=99")
    given = [str(path), "--serial", "--set", f"root={tmp_path}", *(f"--set={one}" for one in small)]
    assert main(["watch", *given]) == 1
    assert main(["run", *given]) == 0
    assert main(["watch", *given]) == 3
    told = len(list((tmp_path / "alerts" / "watch").glob("*.json")))
    assert told >= 2
    assert main(["watch", *given]) == 0
    assert len(list((tmp_path / "alerts" / "watch").glob("*.json"))) == told


def test_digits(tmp_path: Path) -> None:
    outcome = run_example("digits", tmp_path, "report.figures=[svg]")
    assert outcome.exit_code == 0
    assert set(outcome.captures[0].rows.values()) == {1797, 1797 * 64}
    found = {(a.stage, a.site): a.result for a in outcome.artifacts}
    assert float(found["probe", "hidden:out:0"]["accuracy"]) > 0.9
    assert float(found["layers", "readout:out:0"]["accuracy"]) > 0.9
    nearest = [
        float(found[stage, "readout:out:0"]["nearest_is_label"])
        for stage in ("collapse", "collapse-untrained")
    ]
    assert nearest[0] > 0.9 > nearest[1]
    assert outcome.report is not None
    page = Path(outcome.report).read_text()
    assert "digits and untrained differ beyond both intervals" in page
    assert "Side by side" in page


@pytest.mark.slow
def test_clusters(tmp_path: Path) -> None:
    outcome = run_example(
        "clusters",
        tmp_path,
        "captures.digits.data.subset.max_samples=600",
        "captures.texts.data.subset.max_samples=200",
        "report.figures=[svg]",
    )
    assert outcome.exit_code == 0
    found = {(a.stage, a.site): a.result for a in outcome.artifacts}
    assert found["sparse", "hidden:out:0"]["uncertified"] == 0
    for stage in ("parts", "nearest"):
        assert float(found[stage, "hidden:out:0"]["accuracy"]) > 0.75
    assert {site for stage, site in found if stage == "parts-texts"} == {
        f"encoder.layer.{k}:out:0" for k in (0, 2, 5)
    }


def test_partitions(tmp_path: Path) -> None:
    outcome = run_example("partitions", tmp_path)
    assert [c.partition for c in outcome.captures] == ["day1.jsonl", "day2.jsonl"]
    assert outcome.shards_read == 0  # its states were fused


def kept(names: Sequence[str], key: str, folder: Path, ending: str = "") -> list[str]:
    """Where a run finds the networks of a training."""
    return [f"captures.{name}.model.{key}={folder}/{name}{ending}" for name in names]


def test_training(tmp_path: Path) -> None:
    folder = training.main(str(tmp_path), steps=60)
    outcome = run_example(
        "training",
        tmp_path,
        f"captures.path.data.source.path={tmp_path}/recordings/{training.NAME}",
        *kept(list(training.moments(60).values()), "arguments.path", folder, ".pt"),
        f"captures.few.model.arguments.path={folder}/begin.pt",
        "captures.few.data.subset.max_samples=150",
        "stages.dimension.config.steps=3",
        *(f"captures.{moment}.data.subset.max_samples=300" for moment in training.moments(60).values()),
    )
    assert outcome.exit_code == 0
    results = {(a.stage, a.site): a.result for a in outcome.artifacts}
    for moment in training.moments(60).values():
        overlap = results[f"overlap-{moment}", "readout.weight:grad"]
        assert float(overlap["share"]) > 10 * float(overlap["null"])
        assert results[f"curvature-{moment}", "network"]["converged"]
    assert results["trajectory", "readout.weight:weight"]["n_rows"] == 60
    assert results["dimension", "network"]["n_trained"] > 100


@pytest.mark.slow
def test_finetuning(tmp_path: Path) -> None:
    folder = finetuning.main(str(tmp_path), steps=8)
    moments = list(finetuning.moments(8).values())
    outcome = run_example(
        "finetuning",
        tmp_path,
        f"captures.path.data.source.path={tmp_path}/recordings/{finetuning.NAME}",
        *kept(moments, "name", folder),
        *(f"captures.{moment}.data.subset.max_samples=12" for moment in moments),
        *(f"stages.curvature-{moment}.config.max_rounds=4" for moment in moments),
    )
    assert outcome.exit_code == 0
    results = {(a.stage, a.site): a.result for a in outcome.artifacts}
    site = f"{finetuning.RECORDED[0]}:grad"
    for moment in moments:
        overlap = results[f"overlap-{moment}", site]
        assert float(overlap["share"]) > 100 * float(overlap["null"])


@pytest.mark.slow
def test_compare(tmp_path: Path) -> None:
    outcome = run_example(
        "compare", tmp_path, *(f"captures.{c}.data.subset.max_tokens=3000" for c in ("exact", "half"))
    )
    aligned = [float(a.result["cka"]) for a in outcome.artifacts if a.stage == "cka"]
    assert len(aligned) == 6
    assert all(0.99 < value <= 1.0 + 1e-12 for value in aligned)
    assert outcome.report is not None
    page = Path(outcome.report).read_text()
    assert "exact and half differ beyond both intervals in participation ratio at 0 of 6 sites" in page
    assert "figure-steps-steps" in page


@pytest.mark.slow
def test_compression(tmp_path: Path) -> None:
    """Few texts and layers."""
    outcome = run_example(
        "compression",
        tmp_path,
        "captures.inputs.data.subset.max_samples=60",
        "captures.gradients.data.subset.max_samples=60",
        "captures.judged.data.subset.max_samples=80",
        "captures.judged.data.subset.skip_samples=60",
        "captures.inputs.sites=[encoder.layer.5.intermediate.dense:in:0, encoder.layer.5.output.dense:in:0]",
        "captures.gradients.sites=[encoder.layer.5.intermediate.dense:out:0, encoder.layer.5.output.dense:out:0]",
        "stages.smaller.config.shares=[]",
        "report.figures=[svg]",
    )
    assert outcome.exit_code == 0
    (result,) = (a.result for a in outcome.artifacts if a.stage == "smaller")
    assert result["gives"] == "embeddings"
    view = open_artifact(tmp_path, next(a.id for a in outcome.artifacts if a.stage == "smaller"))
    left = {p["name"]: p["rank_correlation"]["value"] for p in view.result["points"]}
    plain, whitened = (left[f"low_rank (metric: {name}), uniform, 0.8"] for name in ("weights", "outputs"))
    assert whitened > plain
    assert left["two_sided, greedy, 0.8"] > plain
    assert max(value for name, value in left.items() if name.startswith("quantised")) > 0.999
    assert view.result["best"].startswith(("quantised", "of all methods"))  # bits beat ranks for their bytes
    assert "quantised" in {layer["kind"] for layer in view.result["layers"]} <= {"quantised", None}
    assert not view.result["caveats"] or "too good" not in view.result["caveats"][0]
    assert outcome.report is not None
    assert "Networks in fewer numbers" in Path(outcome.report).read_text()
