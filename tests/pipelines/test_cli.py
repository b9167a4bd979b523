"""The command line as users meet it: exit codes, what goes where, and that nothing is loaded for nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import subspan
from pipelines.cli import main
from pipelines.plan import make_plan
from pipelines.results import show_results, telling_columns
from pipelines.serial import run_serial
from schemas.outcome import ArtifactOutcome, RunOutcome
from tasks.methods.spectrum import pca as spectrum_pca
from tasks.store.location import Location
from tasks.store.paths import capture_path
from tests.pipelines.runs import vectors_run

TOP = Path(__file__).resolve().parent.parent.parent
HEAVY = ("torch", "transformers", "prefect", "dask", "distributed", "matplotlib", "zarr", "sklearn")


class Done:
    """A finished small run, shared by the tests that only read."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "out"
        run = vectors_run(self.root, n=40, stages={"pca": {"method": "spectrum.pca"}})
        run = run.model_copy(update={"report": type(run).model_fields["report"].default})
        self.file = folder / "run.yaml"
        self.file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
        self.outcome: RunOutcome = run_serial(run)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(tmp_path_factory.mktemp("cli"))


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """The JSON that a command writes, which is all it writes."""
    assert main([*map(str, words), "--json"]) in (0, 2)
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a refused command says: on stderr, without a traceback."""
    assert main(list(map(str, words))) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.startswith("subspan: ")
    return captured.err


def modules_after(*words: object) -> tuple[int, list[str], str]:
    """Exit code, heavy packages loaded, and stderr of a command in a fresh interpreter."""
    code = (
        "import sys\nfrom pipelines.cli import main\ncode = main(sys.argv[1:])\n"
        f"sys.stderr.write('\\nLOADED ' + ' '.join(n for n in {HEAVY!r} if n in sys.modules))\nsys.exit(code)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=TOP, capture_output=True, text=True, timeout=120
    )
    said, _, loaded = ran.stderr.rpartition("LOADED")
    return ran.returncode, loaded.split(), said


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["sites", "--help"], ["run", "absent.yaml"]]
)
def test_help_and_refusals_load_nothing_heavy(words: list[str]) -> None:
    code, loaded, said = modules_after(*words)
    assert (code, loaded) == (int("absent.yaml" in words), []), said


@pytest.mark.parametrize("command", ["status", "ls", "show", "verify"])
def test_what_reads_files_loads_no_torch(done: Done, command: str) -> None:
    words = {"show": [done.outcome.captures[0].id], "verify": ["all"]}.get(command, [])
    code, loaded, said = modules_after(command, *words, "--root", done.root)
    assert code == 0, said
    assert loaded == []


def test_a_finished_run_answers_at_once(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "run", done.file, "--serial")
    assert (found["forwards"], found["shards_read"], found["failures"]) == (0, 0, 0)
    assert [c["computed"] for c in found["captures"]] == [False]
    assert main(["run", str(done.file), "--serial"]) == 0
    shown = capsys.readouterr().out
    assert done.outcome.captures[0].id in shown
    assert str(done.outcome.report) in shown
    assert "To do:" not in shown


def test_the_plan_tells_the_memory_of_all_threads_and_nothing_where_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(vectors_run(tmp_path / "out", n=40).model_dump(mode="json")))
    threads = ["--set", "execution.cluster=threads", "--set", "execution.workers=2"]
    assert main(["plan", str(file), *threads]) == 0
    assert re.search(r" Memory: about \d[\d.]* MB in 2 threads of one process\.", capsys.readouterr().out)
    assert main(["run", str(file), *threads, "--set", "execution.worker_memory_bytes=1000"]) == 1
    shown = capsys.readouterr()
    assert "To do:" not in shown.out
    assert "up to 2 units at a time" in shown.err


def test_a_run_tells_its_plan_first_and_how_to_open_what_it_made_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"pca": {"method": "spectrum.pca"}, "summary": {"method": "spectrum.summary"}}
    file = tmp_path / "run.yaml"
    run = vectors_run(tmp_path / "out", n=40, stages=stages)
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    assert main(["run", str(file), "--serial"]) == 0
    shown = capsys.readouterr().out
    first, *_ = lines = shown.splitlines()
    assert first.startswith("To do: 3 units, 6 artifacts. To write: at most ")
    assert " Memory of one worker: about " in first
    assert "Time of the captures: about" in first
    assert "from the dry run of a few samples" in first
    assert {"pca (spectrum.pca)", "summary (spectrum.summary)"} <= set(map(str.strip, lines))
    assert sum(line.startswith("first:out:0") for line in lines) == 2
    code = "".join(f"{line.strip()}\n" for line in lines[lines.index("Open it with:") + 1 :])
    assert str(tmp_path / "out") in code
    ran = subprocess.run(
        [sys.executable, "-c", code + "print(capture.id, artifact.id)"],
        capture_output=True,
        text=True,
        cwd=TOP,
    )
    capture, artifact = ran.stdout.split()
    assert capture == make_plan(run).captures[0].id
    assert (tmp_path / "out" / "artifacts" / artifact).exists()


def test_every_method_has_a_table_of_what_differs_between_its_sites(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def made(stage: str, site: str, **result: object) -> ArtifactOutcome:
        return ArtifactOutcome(stage=stage, site=site, id="x", method=f"m.{stage}", result=result)

    artifacts = [
        made("one", "a", n=5, p=1.0, q=1.0, r=2.0, effective_rank=0.1),
        made("two", "a", n=5, p=3.0, anisotropy=0.3, yes=True),
        made("one", "b", n=5, p=2.0, q=2.0, r=3.0, effective_rank=0.2),
        made("two", "b", n=5, p=4.0, anisotropy=0.2, yes=False).model_copy(update={"partner": "c"}),
    ]
    assert telling_columns(artifacts[::2]) == ["effective_rank", "p", "q", "r"]
    show_results(artifacts, most=2)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["one", "(m.one)"],
        ["site", "effective", "rank", "p"],
        ["a", "0.1", "1"],
        ["b", "0.2", "2"],
        ["two", "(m.two)"],
        ["site", "anisotropy", "p"],
        ["a", "0.3", "3"],
        ["b", "|", "c", "0.2", "4"],
    ]
    both = made("one", "a", ratio=1.0, ratio_unbiased=1.1)
    assert telling_columns([both]) == ["ratio_unbiased"]


def test_a_long_table_says_how_much_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    every = [
        ArtifactOutcome(stage="s", site=f"h.{n}", id="x", method="m", result={"p": float(n)})
        for n in range(30)
    ]
    show_results(every)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("h.23 ")
    assert lines[-1] == "and 6 more, in the report and in the answer of --json"


def test_a_method_that_runs_often_has_a_table_with_its_stages(capsys: pytest.CaptureFixture[str]) -> None:
    def made(stage: str, method: str, site: str, **result: object) -> ArtifactOutcome:
        return ArtifactOutcome(stage=stage, site=site, id="x", method=method, result=result)

    late = ["much came late", "few samples"]
    show_results(
        [
            made("begin", "hessian", "network", largest=0.5, converged=True, caveats=("few samples",)),
            made("end", "hessian", "network", largest=4.0, converged=False),
            made("size", "dimension", "network", dimension=None, dimension_above=30, caveats=late),
            made("path", "trajectory", "a", first_share=0.9),
        ]
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["hessian"],
        ["stage", "site", "largest", "converged"],
        ["begin", "network", "0.5", "yes"],
        ["end", "network", "4", "no"],
        ["size", "(dimension)"],
        ["site", "dimension", "dimension", "above"],
        ["network", "-", "30"],
        ["path", "(trajectory)"],
        ["site", "first", "share"],
        ["a", "0.9"],
        ["begin,", "size:", "few", "samples"],
        ["size:", "much", "came", "late"],
    ]


def test_the_plan_tells_units_and_bytes(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "plan", done.file)
    expected = make_plan(vectors_run(done.root, n=40, stages={"pca": {"method": "spectrum.pca"}}))
    assert found["captures"][0]["id"] == expected.captures[0].id == done.outcome.captures[0].id
    assert found["finished"] is True
    changed = answer(capsys, "plan", done.file, "--set", "captures.vectors.store.dtype=float16")
    assert changed["captures"][0]["id"] != expected.captures[0].id
    assert changed["bytes_on_disk"] > 0
    assert main(["plan", str(done.file)]) == 0
    assert "Nothing to compute" in capsys.readouterr().out


def test_the_plan_rests_on_the_dry_run_then_on_receipts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = vectors_run(tmp_path / "out", n=64)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    found = answer(capsys, "plan", file)["estimate"]
    assert found["basis"] == ["the dry run of a few samples, forwards alone"]
    assert (found["workers"], found["seconds"] > 0) == (2, True)
    outcome = run_serial(run)
    root, capture = Location(str(tmp_path / "out")), outcome.captures[0].id
    root.delete(f"captures/{capture}.manifest.json")
    root.delete(f"captures/{capture}.receipts/sample-000002.json")
    (basis,) = answer(capsys, "plan", file)["estimate"]["basis"]
    assert basis.startswith("3 finished units of this capture, ")
    assert basis.endswith(" tokens/s a worker")
    changed = answer(capsys, "plan", file, "--set", "captures.vectors.store.dtype=float16")
    (basis,) = changed["estimate"]["basis"]
    assert basis.startswith(f"3 finished units of capture {capture}, the same network and sites, ")


def test_the_plan_is_refused_like_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = vectors_run(tmp_path / "out", n=40)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    little = ("--set", f"execution.worker_memory_bytes={100 << 20}", "--serial")
    assert main(["plan", str(file), *little]) == 1
    planned = capsys.readouterr()
    assert main(["run", str(file), *little]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == planned.err.strip()
    assert "this process has 100 MiB" in planned.err
    assert "Time: not known" in planned.out
    assert not (tmp_path / "out").exists()


def test_failed_samples_are_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = vectors_run(tmp_path / "out", n=20, network={"fragile": True})
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    assert main(["run", str(file), "--serial", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["failures"] == 2


def test_status_and_listing(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    for found in (
        answer(capsys, "status", "--root", done.root),
        answer(capsys, "status", done.file),
        answer(capsys, "ls", "--root", done.root),
    ):
        capture = found["captures"][0]
        assert (capture["id"], capture["sealed"]) == (done.outcome.captures[0].id, True)
        assert capture["units"] == capture["units_done"] > 1
        assert {a["id"] for a in found["artifacts"]} == {a.id for a in done.outcome.artifacts}
        assert [r["run"]["name"] for r in found["runs"]] == ["vectors"]
    assert main(["ls", "--root", str(done.root)]) == 0
    shown = capsys.readouterr().out
    assert all(made.id in shown for made in done.outcome.artifacts)


def test_status_of_a_capture_that_is_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_serial(vectors_run(tmp_path, n=40))
    root, capture = Location(str(tmp_path)), outcome.captures[0].id
    root.delete(f"captures/{capture}.manifest.json")
    root.delete(f"captures/{capture}.receipts/sample-000001.json")
    found = answer(capsys, "status", "--root", tmp_path)["captures"][0]
    assert found["sealed"] is False
    assert found["units_done"] == found["units"] - 1


def test_show_takes_the_first_letters(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    capture, artifact = done.outcome.captures[0].id, done.outcome.artifacts[0].id
    assert answer(capsys, "show", capture[:8], "--root", done.root)["spec"]["layout"]["n_samples"] == 40
    assert answer(capsys, "show", artifact, "--root", done.root)["stage"]["method"] == "spectrum.pca"
    run = answer(capsys, "ls", "--root", done.root)["runs"][0]["id"]
    assert answer(capsys, "show", run, "--root", done.root)["what"] == "run"
    assert main(["show", artifact, "--root", str(done.root)]) == 0
    assert yaml.safe_load(capsys.readouterr().out.partition("\n")[2])["id"] == artifact
    assert "nearest:" in refused(capsys, "show", "zzzz", "--root", done.root)


def test_captures_go_by_the_names_of_run_files(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    capture = done.outcome.captures[0]
    found = answer(capsys, "show", capture.name, "--root", done.root)
    assert (found["id"], found["names"]) == (capture.id, [capture.name])
    (checked,) = answer(capsys, "verify", capture.name, "--root", done.root)
    assert (checked["id"], checked["damage"]) == (capture.id, [])
    assert main(["status", "--root", str(done.root)]) == 0
    assert capture.name in capsys.readouterr().out
    assert f"nearest: {capture.name}" in refused(capsys, "show", f"{capture.name}s", "--root", done.root)


def test_verify_names_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_serial(
        vectors_run(tmp_path, n=40, stages={"pca": {"method": "spectrum.pca", "sites": "last"}})
    )
    assert main(["verify", "all", "--root", str(tmp_path)]) == 0
    assert "2 of 2 are whole" in capsys.readouterr().out
    shard = next((tmp_path / capture_path(outcome.captures[0].id)).glob("sites/last*/activation/c/0/0"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert main(["verify", "all", "--root", str(tmp_path)]) == 2
    assert "its bytes changed" in capsys.readouterr().out
    found = answer(capsys, "verify", outcome.captures[0].id[:10], "--root", tmp_path)
    assert [d["path"] for entry in found for d in entry["damage"]] == [str(shard.relative_to(tmp_path))]


def test_verify_names_what_is_open_and_what_was_sealed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = vectors_run(tmp_path, n=40, stages={"pca": {"method": "spectrum.pca", "sites": "last"}})
    capture = run_serial(run).captures[0].id
    root = Location(str(tmp_path))
    root.delete(f"captures/{capture}.manifest.json")
    assert main(["verify", "all", "--root", str(tmp_path)]) == 2
    shown = capsys.readouterr().out
    assert f"captures/{capture}.manifest.json" in shown
    assert "was made from the sealed capture" in shown
    root.delete("names", recursive=True)
    root.delete("artifacts", recursive=True)
    assert main(["verify", "all", "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert capture in shown
    assert "open (not sealed)" in shown
    assert "0 of 0 are whole" in shown
    (found,) = answer(capsys, "verify", "all", "--root", tmp_path)
    assert (found["id"], found["state"], found["damage"]) == (capture, "open (not sealed)", [])


def test_the_report_is_made_again(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(str(done.outcome.report))
    before = page.read_bytes()
    page.unlink()
    url = answer(capsys, "report", done.file)["report"]
    assert Path(url) == page
    run = answer(capsys, "ls", "--root", done.root)["runs"][0]["id"]
    page.unlink()
    assert answer(capsys, "report", run, "--root", done.root)["report"] == url
    assert b"vectors" in before
    assert b"vectors" in page.read_bytes()


def test_the_report_of_a_run_that_is_not_done(
    tmp_path: Path, done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "report", done.file, "--set", f"root={tmp_path}")
    assert "not finished" in said
    assert "subspan run" in said
    assert "nearest" in refused(capsys, "report", "nothing", "--root", done.root)


def test_methods_are_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "methods")
    by_name = {method["name"]: method for method in found}
    assert {"spectrum.pca", "spectrum.summary"} <= by_name.keys()
    pca = by_name["spectrum.pca"]
    assert (pca["family"], pca["kind"], pca["version"]) == ("spectrum", "reduce", spectrum_pca.VERSION)
    assert (pca["seeds"], pca["reference"]) == (list(spectrum_pca.SEEDS), spectrum_pca.REFERENCE)
    assert pca["reads"].keys() == spectrum_pca.READS.keys()
    assert pca["options"][0].keys() == {"name", "type", "default", "meaning"}
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    for wanted in ("family", "reads", "seeds", "reference", ", ".join(map(str, spectrum_pca.SEEDS))):
        assert wanted in shown
    assert main(["methods", "spectrum.pca"]) == 0
    assert "| `components` |" in capsys.readouterr().out
    assert "spectrum.pca" in refused(capsys, "methods", "spectrum.pac")
    family = [method["name"] for method in answer(capsys, "methods", "spectrum")]
    assert "spectrum.pca" in family
    assert all(name.startswith("spectrum.") for name in family)


def test_sites_and_parameters_with_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.extract.nets import save

    folder = save("gpt2", tmp_path / "gpt2", head=True)
    found = answer(
        capsys, "sites", folder, "--head", "causal-lm", "--input-shape", "6", "--input-dtype", "int64"
    )
    assert "transformer.h.0:out:0" in {row["site"] for row in found}
    names = answer(capsys, "sites", folder, "--head", "causal-lm", "--parameters")
    shapes = {row["parameter"]: row["shape"] for row in names}
    assert shapes["transformer.h.0.attn.c_attn.weight"].count(" x ") == 1
    assert "leave the head out" in refused(capsys, "sites", "tests.factories:squares", "--head", "causal-lm")


def test_sites_of_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pipelines.probe")
    found = answer(capsys, "sites", "tests.factories:squares", "--input-shape", "8")
    assert any("first" in str(row) for row in found)
    assert "write for example 3,224,224" in refused(
        capsys, "sites", "tests.factories:squares", "--input-shape", "a"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rnu"], "run"),
        (["run"], "RUN_FILE"),
        (["run", "absent.yaml"], "there is no run file 'absent.yaml'"),
        (["plan", "x.yaml", "--colour"], "--colour"),
        (["verify", "zzzz", "--root", "nowhere"], "nothing called 'zzzz'"),
    ],
)
def test_refusals_are_one_message(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(capsys, *words)


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "absent.yaml", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_misspelt_key_names_file_line_and_cure(
    tmp_path: Path, done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(done.file.read_text().replace("batch_samples:", "batch_sampels:"))
    said = refused(capsys, "plan", file)
    assert f"{file}:" in said
    assert (
        "captures.vectors.batch_sampels: found an unknown key 'batch_sampels'; nearest: batch_samples" in said
    )


def test_what_nobody_foresaw_is_no_traceback_either(
    done: Done, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("pipelines.status.root_status", broken)
    assert "unexpected ZeroDivisionError: planted; --debug shows where" in refused(capsys, "ls")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.status.root_status", stopped)
    assert main(["ls"]) == 130


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == subspan.__version__


@pytest.mark.parametrize("answer", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_error(answer: list[str]) -> None:
    """As `| head -1`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "subspan", "methods", *answer],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_whose_reader_has_gone_is_no_refusal() -> None:
    code = "import sys\nfrom pipelines.cli import main\nsys.exit(main(['--help']))"
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=TOP, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_what_a_detector_decided_is_shown_where_it_is_the_same_everywhere() -> None:
    days = [
        ArtifactOutcome(
            stage="s",
            site="x",
            id="i",
            method="anomaly.calibrated",
            result={"chance": 0.01, "discovered": 8, "flagged": 1.0, "threshold_p": p},
        )
        for p in (0.1, 0.2)
    ]
    assert telling_columns(days) == ["discovered", "flagged", "threshold_p"]


def test_columns_of_classes_and_maps_begin_with_what_they_are_read_for() -> None:
    def columns(method: str, result: dict[str, float]) -> list[str]:
        made = ArtifactOutcome(stage="s", site="h.0:out:0", id="x", method=method, result=result)
        return telling_columns([made])

    assert (
        columns("geometry.neural_collapse", {"cdnv_rows": 1.0, "cosine_error": 2.0, "nc1": 3.0})[0] == "nc1"
    )
    assert columns("geometry.umap", {"distances": 0.5, "trustworthiness": 0.9})[0] == "trustworthiness"


def test_an_outcome_has_the_caveats_of_its_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"summary": {"method": "spectrum.summary"}}
    outcome = run_serial(vectors_run(tmp_path, n=40, stages=stages))
    said = {a.id: list(a.result["caveats"]) for a in subspan.list_artifacts(str(tmp_path))}
    assert all(said.values())
    assert {a.id: a.result["caveats"] for a in outcome.artifacts} == said
    show_results(outcome.artifacts)
    assert next(iter(said.values()))[0] in capsys.readouterr().out
