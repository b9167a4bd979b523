"""A graph as an input of a stage: planned, refused early, named by its content, and the same as when the method is called by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.plan import make_plan
from pipelines.serial import run_serial
from schemas.errors import DataError, MethodError, NotFoundError, SpecError, SubspanError, UnknownNameError
from schemas.run import RunSpec
from schemas.stage import ResolvedStage
from subspan import open_artifact, open_capture
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.clustering import attributed_graph
from tasks.methods.contract import Block, Edges, Inputs
from tasks.store.edges import edges_ref
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.pipelines.runs import vectors_run

N = 60
RING = [(k, (k + 1) % N) for k in range(N)] + [(k, (k + 3) % N) for k in range(N)]
OPTIONS: dict[str, Any] = {"clusters": 3, "label": "label"}


def write(folder: Path, lines: list[tuple[Any, ...]], header: str = "source,target") -> Path:
    path = folder / "edges.csv"
    path.write_text("\n".join([header, *(",".join(map(str, line)) for line in lines)]) + "\n")
    return path


def run_of(root: Path, edges: Any, **stage: Any) -> RunSpec:
    groups = {
        "method": "clustering.attributed_graph",
        "sites": "act",
        "config": OPTIONS,
        "inputs": {"x": {"sites": "act"}, "graph": {"edges": str(edges)}},
        **stage,
    }
    return vectors_run(root / "root", N, stages={"groups": groups})


def test_it_is_what_the_method_makes_of_the_rows(tmp_path: Path) -> None:
    outcome = run_serial(run_of(tmp_path, write(tmp_path, RING)))
    view = open_artifact(tmp_path / "root", outcome.artifacts[0].id)
    rows = open_capture(tmp_path / "root", "vectors").site("act")
    index = torch.arange(N)
    block = Block(
        {"x": torch.from_numpy(rows["activation"].values)}, index, 0 * index, index, {"label": index % 3}
    )
    ends = torch.tensor(sorted(sorted(pair) for pair in RING))
    graph = Edges(ends, torch.ones(len(ends), dtype=torch.float64))
    inputs = Inputs({"x": 8}, N, N, {"label": ("0", "1", "2")}, graphs={"graph": graph})
    result, arrays = attributed_graph.solve(block, inputs, attributed_graph.Config(**OPTIONS))
    assert view.result == result.model_dump(mode="json")
    np.testing.assert_array_equal(view.arrays["cluster"], arrays["cluster"].values)
    assert view.artifact.stage.graphs["graph"].url.endswith("edges.csv")
    assert run_serial(run_of(tmp_path, tmp_path / "edges.csv")).artifacts[0].id == view.id


def test_another_content_is_another_artifact_and_another_place_is_not(tmp_path: Path) -> None:
    def planned() -> str:
        return make_plan(run_of(tmp_path, tmp_path / "edges.csv")).stages[0].id

    write(tmp_path, RING)
    first = planned()
    (tmp_path / "moved").mkdir()
    moved = write(tmp_path / "moved", RING)
    assert make_plan(run_of(tmp_path, moved)).stages[0].id == first
    run_serial(run_of(tmp_path, moved))
    write(tmp_path / "moved", RING[:-1])
    other = make_plan(run_of(tmp_path, moved)).stages[0]  # the kept plan is of the other content
    assert other.id != first
    assert not other.done
    assert planned() == first


def test_a_stage_without_a_graph_is_written_as_before() -> None:
    stage = ResolvedStage(method="spectrum.pca", version=1, config={})
    assert stage.model_dump(mode="json").keys() == {"method", "version", "config", "rows", "artifacts"}


@pytest.mark.parametrize(
    ("lines", "kind", "said"),
    [
        (
            [(0, 1), (0, 60), (61, 62)],
            UnknownNameError,
            "3 of 5 ids in .* are keys of no sample .*'61', '60', '62'; nearest",
        ),
        ([("a", 1)], UnknownNameError, "1 of 2 ids"),
        ([], DataError, "holds no edges"),
        ([(3, 3)], DataError, "joins nothing: of 1 lines 1 lead from a sample to itself"),
        ([(0, 1, 2)], DataError, "cannot be read as edges"),
    ],
)
def test_the_plan_refuses(tmp_path: Path, lines: list[tuple[Any, ...]], kind: type, said: str) -> None:
    path = write(tmp_path, lines)
    with pytest.raises(kind, match=f"(?s)stage 'groups' at act.*{said}"):
        make_plan(run_of(tmp_path, path))


def test_the_plan_refuses_what_is_connected_wrongly(tmp_path: Path) -> None:
    path = write(tmp_path, RING)
    cases: list[tuple[type[SubspanError], str, RunSpec]] = [
        (NotFoundError, "no file of edges", run_of(tmp_path, tmp_path / "gone.csv")),
        (DataError, "no file of edges by its name", run_of(tmp_path, tmp_path / "edges.json")),
        (
            SpecError,
            "takes a file of edges and nothing else, found nothing",
            run_of(tmp_path, path, inputs={}),
        ),
        (
            SpecError,
            "takes a file of edges and nothing else, found .*stage",
            run_of(tmp_path, path, inputs={"graph": {"edges": str(path), "stage": "groups"}}),
        ),
        (
            SpecError,
            "port 'x' of clustering.attributed_graph takes no graph, found edges: 'e.csv'; ports that do: graph",
            run_of(tmp_path, path, inputs={"x": {"edges": "e.csv"}, "graph": {"edges": str(path)}}),
        ),
        (MethodError, "160 clusters need", run_of(tmp_path, path, config={"clusters": 160})),
    ]
    for kind, said, run in cases:
        with pytest.raises(kind, match=said):
            make_plan(run)


def of_capture(root: Location, lines: str, method: str = "clustering.attributed_graph", **made: Any) -> Any:
    """The artifact of a stage over captures that were made by hand."""
    root.write("edges.csv", f"source,target\n{lines}".encode())
    rng = np.random.default_rng(0)
    count = made.pop("captures", 1)
    names = made.pop("names", [None] * count)
    specs = [
        make_capture(root, {"a": rng.random((12, 4))}, keys=names[k], name=f"n{k}", **made)
        for k in range(count)
    ]
    graph = {"graph": edges_ref(f"{root.url}/edges.csv")}
    stage = stage_of(method, {"x": [rows_ref(spec) for spec in specs]}, graphs=graph, clusters=2)
    return run_stages(root, [stage], serial)[stage.id]


def test_samples_of_several_captures_are_laid_end_to_end(tmp_path: Path) -> None:
    names = [[f"{letter}{k}" for k in range(12)] for letter in "pq"]
    lines = "".join(f"p{k},q{k}\n" for k in range(12)) + "p0,p1\n"
    made = of_capture(Location(str(tmp_path)), lines, captures=2, names=names)
    assert made.result["n_rows"] == 24
    assert (made.result["edges"], made.result["parts"], made.result["ids"]) == (13, 11, "key")


def test_rows_of_the_data_name_samples_whose_keys_do_not(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    made = of_capture(root, "0,1\n1,2\n11,11\n", failed=(2,))
    assert (made.result["ids"], made.result["edges"]) == ("row", 1)
    assert any("1 edges lead to samples without rows" in note for note in made.result["caveats"])
    with pytest.raises(
        UnknownNameError, match=r"neither keys nor rows .*'12'; its 12 samples are rows 0 to 11"
    ):
        of_capture(root, "0,12\n")
    with pytest.raises(UnknownNameError, match=r"2 captures are read: rows of the data could be of each"):
        of_capture(root, "0,1\n", captures=2, names=[None, [f"other{k}" for k in range(12)]])
    with pytest.raises(DataError, match=r"12 sample keys occur in more than one of .*'sample-0000'"):
        of_capture(root.child("same"), "0,1\n", captures=2)


def test_rows_that_are_not_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        MethodError, match=r"has 2 to 2 rows of a sample, a graph .* pool them in the capture"
    ):
        of_capture(Location(str(tmp_path)), "0,1\n", sample_of_row=np.arange(12) // 2)


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    spec = make_capture(root, {"a": np.random.default_rng(0).random((12, 4))})
    root.write("edges.csv", b"source,target\n0,1\n")
    graph = {"graph": edges_ref(f"{root.url}/edges.csv")}
    stage = stage_of("clustering.attributed_graph", {"x": rows_ref(spec)}, graphs=graph, clusters=2)
    root.write("edges.csv", b"source,target\n0,2\n")
    with pytest.raises(DataError, match="changed since the run was planned"):
        run_stages(root, [stage], serial)
    with pytest.raises(MethodError, match="stage or a file of edges, as it takes"):
        run_stages(root, [stage.model_copy(update={"graphs": {}})], serial)


def test_the_subspaces_of_the_clusters_follow(tmp_path: Path) -> None:
    run = run_of(tmp_path, write(tmp_path, RING))
    bases = {"method": "clustering.bases", "sites": "act", "inputs": {"clusters": {"stage": "groups"}}}
    plain = run.model_dump(mode="json")
    plain["stages"]["bases"] = bases
    outcome = run_serial(RunSpec.model_validate(plain))
    made = {open_artifact(tmp_path / "root", a.id).artifact.stage.method: a.id for a in outcome.artifacts}
    arrays = open_artifact(tmp_path / "root", made["clustering.bases"]).arrays
    groups = open_artifact(tmp_path / "root", made["clustering.attributed_graph"]).arrays
    np.testing.assert_array_equal(arrays["cluster"], groups["cluster"])
