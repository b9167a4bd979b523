"""The page: whole, self-contained, honest about what is missing, not broken by what it does not know."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.runfile import load_run
from schemas.outcome import ArtifactOutcome, CaptureOutcome, RunOutcome
from schemas.receipts import Failure
from schemas.run import RunSpec
from tasks.page import PAGE, RUN_FILE, render, run_yaml, write_report
from tasks.store.artifacts import write_artifact
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of
from tests.pages import (
    CAPTURE,
    RUN,
    artifact,
    artifacts,
    bert,
    capture,
    report_data,
    sample_map,
    series,
    story,
)

VOID = {"meta", "br", "path", "use", "rect", "img", "link"}


class Reader(HTMLParser):
    """Collects ids, links, text, and complains of tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"]] if given.get("id") else []
        self.loaded += [given[key] or "" for key in ("src", "srcset", "data") if key in given]
        self.links += [given.get("href") or ""] if tag == "a" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(files: dict[str, bytes]) -> Reader:
    return Reader(files[PAGE].decode())


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """The page of a run that has everything."""
    return render(report_data())


ONLY_SVG = RunSpec.model_validate({**RUN, "report": {"figures": ["svg"]}})


def test_the_page_is_whole_and_self_contained(whole: dict[str, bytes]) -> None:
    page = read(whole)
    html = whole[PAGE].decode()
    assert page.loaded == []
    assert "<script" not in html
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert {link for link in page.links if not link.startswith("#")} <= whole.keys()
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_figures_lie_beside_it_and_have_descriptions(whole: dict[str, bytes]) -> None:
    names = {"profiles", "heat-map", "spectra", "scree", "samples"}
    assert {f"figures/{name}.{kind}" for name in names for kind in ("png", "svg")} | {
        PAGE,
        RUN_FILE,
    } == whole.keys()
    html = whole[PAGE].decode()
    assert len(re.findall(r'<svg role="img" aria-label="[^"]{20,}"', html)) == len(names)
    assert whole["figures/spectra.png"].startswith(b"\x89PNG")


def test_what_was_measured_is_told(whole: dict[str, bytes]) -> None:
    text = read(whole).text
    assert "The dimension of the residual stream peaks at the embedding" in text
    assert "1 of 400 samples failed" in text
    assert "module.<script>" in text
    assert "too many rows" in text
    assert "A <b>title</b> & more" in text
    assert "w" * 64 in text
    assert "Rows depend." in text
    assert "5,000 rows of 32 features at every site." in text
    assert "Tokens of one text resemble each other" in text


def test_equal_results_give_equal_pages(whole: dict[str, bytes]) -> None:
    assert render(report_data()) == whole


def test_the_run_file_beside_it_repeats_the_run(whole: dict[str, bytes]) -> None:
    assert RunSpec.model_validate(yaml.safe_load(whole[RUN_FILE])) == RunSpec.model_validate(RUN)


@pytest.mark.parametrize(
    "changes",
    [
        {"artifacts": ()},
        {"captures": ()},
        {"sample_map": None},
        {"artifacts": (), "captures": (), "sample_map": None},
        {"sample_map": sample_map(50, 0, None)},
        {"run": RunSpec.model_validate({**RUN, "report": None})},
        {"artifacts": artifacts(["conv1:out:0"]), "captures": (capture(["conv1:out:0"]),)},
        {"artifacts": artifacts(bert(2), width=1)},
        {"artifacts": artifacts(bert(2), rows=3)},
    ],
    ids=[
        "no stages",
        "no captures",
        "no map",
        "nothing",
        "no label",
        "no options",
        "one site",
        "one feature",
        "few rows",
    ],
)
def test_what_is_absent_is_left_out(changes: dict) -> None:
    page = read(render(report_data(**{"run": ONLY_SVG, **changes})))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_dollar_signs_are_told_as_they_are() -> None:
    failed = capture(bert(), failures=(Failure(sample=7, key="costs $5", reason="the network gave NaN"),))
    page = render(report_data()._replace(captures=(failed,)))[PAGE].decode()
    assert "costs $5" in page
    assert r"costs \$5" not in page


def test_formats_are_those_asked_for() -> None:
    assert not any(name.endswith(".png") for name in render(report_data(run=ONLY_SVG, sample_map=None)))


def test_an_unknown_method_gets_a_table_of_its_result() -> None:
    result = {
        "dimension": 7.25,
        "nested": {"left": 1, "right": None},
        "few": [1, 2],
        "many": list(range(50)),
        "ok": True,
    }
    odd = artifact("odd", "mine.odd", "h.0:out:0", result)
    text = read(render(report_data(artifacts=(odd,), sample_map=None))).text
    for expected in ("odd (mine.odd, version 1)", "nested: left", "1, 2", "50 values", "7.2", "yes"):
        assert expected in text


def test_measures_at_single_depths_beside_deep_spectra() -> None:
    spectra = tuple(
        artifact(
            "s", "spectrum.subspace", f"h.{i}:out:0", {"trace": 9.0}, {"eigenvalue": np.array([2.0, 1.0])}
        )
        for i in range(3)
    )
    single = tuple(
        artifact("p", "probe.linear", f"{name}:out:0", {"accuracy": 0.5}) for name in ("head", "tail")
    )
    files = render(report_data(artifacts=(*spectra, *single), sample_map=None, run=ONLY_SVG))
    assert {"figures/spectra.svg", "figures/heat-map.svg"} <= files.keys()
    assert "figures/profiles.svg" not in files


def test_hundreds_of_sites() -> None:
    sites = [
        f"h.{layer}{part}:out:0" for layer in range(60) for part in ("", ".attn", ".mlp", ".ln_1", ".ln_2")
    ]
    files = render(report_data(sites, run=ONLY_SVG))
    page = read(files)
    assert page.text.count("h.59.ln_2") >= 2
    assert len(files[PAGE]) < 4_000_000


def stored(tmp_path: Path) -> tuple[Location, RunOutcome, RunSpec]:
    """A sealed capture and its artifact below a root, and the outcome that names them."""
    root = Location(str(tmp_path))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 4)) * [5, 3, 1, 1] + 10
    spec = make_capture(
        root, {"h.0": rows, "h.1": rows}, np.repeat(np.arange(10), 4), {"module": list("aabbccaabb")}
    )
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    stage = stage_of("spectrum.pca", {"x": rows_ref(spec, "h.1")})
    planned = artifact("pca", "spectrum.pca", "h.1:out:0", {"width": 4}).artifact
    made = write_artifact(
        root,
        planned.model_copy(update={"id": stage.id, "stage": stage, "rows_used": 40}),
        {
            "eigenvalue": (values[::-1].copy(), ("order",)),
            "components": (vectors.T[::-1].copy(), ("component", "feature")),
            "explained": (values[::-1] / values.sum(), ("component",)),
            "mean": (rows.mean(0), ("feature",)),
        },
        {},
    )
    outcome = RunOutcome(
        run="demo",
        root=root.url,
        captures=(CaptureOutcome(name="docs", id=spec.id, rows={"tokens": 40}),),
        artifacts=(ArtifactOutcome(stage="pca", site="h.1:out:0", id=made.id, method="spectrum.pca"),),
    )
    return root, outcome, RunSpec.model_validate(RUN)


def test_it_is_written_from_stores_and_the_page_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, outcome, run = stored(tmp_path)
    order: list[str] = []
    write = Location.write

    def noted(self: Location, path: str, data: bytes, **rest: bool) -> None:
        order.append(path)
        write(self, path, data, **rest)

    monkeypatch.setattr(Location, "write", noted)
    plan = type("Plan", (), {"run": run})()
    url = write_report(root, outcome, plan, "reports/demo/report.html")
    assert url == f"{root.url}/reports/demo/report.html"
    assert order[-1] == "reports/demo/report.html"
    page = Reader(Path(url).read_text())
    assert "coloured by module" in page.text
    assert (tmp_path / "reports/demo/figures/samples.svg").exists()


@pytest.mark.parametrize(("error", "warned"), [(2e-7, False), (0.2, True)])
def test_gradients_that_are_off_are_told(error: float, warned: bool) -> None:
    one = capture(bert())
    receipts = tuple(r.model_copy(update={"max_gradient_error": error}) for r in one.receipts)
    receipts = tuple(r.model_copy(update={"batches": 3}) for r in receipts)
    seen = {"looped": ("cell.weight",), "weighed": 2}
    looped = (receipts[0].model_copy(update=seen), *receipts[1:])
    text = read(render(report_data()._replace(captures=(one._replace(receipts=looped),)))).text
    assert f"within {error:.1e} of those of plain autograd" in text
    assert ("more than rounding explains" in text) is warned
    assert "took a pass for each sample, such as cell.weight" in text
    assert f"Of {3 * len(receipts)} batches" in text
    assert "2 took four passes or more" in text


EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.yaml"))
ODD: dict[str, Any] = {
    "model": {"kind": "factory", "factory": "tests.factories:squares"},
    "data": {"source": {"kind": "digits"}},
    "loss": {"kind": "mse"},
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_run_beside_a_report_is_the_run(path: Path) -> None:
    run = load_run(path)
    assert RunSpec.model_validate(yaml.safe_load(run_yaml(run))) == run


@pytest.mark.parametrize(
    "keep",
    [{"kind": kind} for kind in ("exact", "kronecker", "global", "sketch", "norms")]
    + [{"kind": "factors", "rank": 2}],
)
def test_kinds_survive_where_all_is_default(keep: dict[str, Any]) -> None:
    captures = {"odd": {**ODD, "parameter_gradients": {"keep": keep}}}
    run = RunSpec.model_validate({**RUN, "captures": captures})
    again = RunSpec.model_validate(yaml.safe_load(run_yaml(run)))
    assert again == run
    assert again.captures["odd"].parameter_gradients == run.captures["odd"].parameter_gradients


OTHER = "e" * 20
LAYERS = [f"h.{layer}:out:0" for layer in range(4)]


def two_captures() -> dict[str, bytes]:
    """The page of many methods over two captures, and of what was made from both."""
    overlap = np.full((4, 4), 0.25) + 0.75 * np.eye(4)
    members = [(CAPTURE, site) for site in LAYERS]
    between = series("dist", "geometry.subspace_distances", members, {"overlap": 0.25}, {"overlap": overlap})
    made = (*story(LAYERS), *story(LAYERS, OTHER, factor=2.0), between)
    both = (capture(LAYERS), capture(LAYERS, name="later", capture_id=OTHER))
    return render(report_data(artifacts=made, captures=both, sample_map=None, run=ONLY_SVG))


def test_many_measures_are_told_in_groups_and_captures_side_by_side() -> None:
    files = two_captures()
    page = read(files)
    groups = ("linear", "intrinsic", "evenness", "classes")
    assert {f"figures/profiles-{group}.svg" for group in groups} <= files.keys()
    assert "figures/between-dist.svg" in files
    assert {"depth", "side-by-side", "sites", "between"} <= set(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert page.text.count("≠ ") > 4
    assert "docs and later" in page.text
    assert "[36, 44]" in page.text
    assert "over 4 sites" in page.text
    assert CAPTURE[:8] not in page.text.partition("Where this comes from")[0]


def test_one_capture_has_no_side_by_side() -> None:
    made = story(LAYERS)
    text = read(
        render(report_data(artifacts=made, captures=(capture(LAYERS),), sample_map=None, run=ONLY_SVG))
    ).text
    assert "Side by side" not in text
    assert "≠" not in text
    assert "Intrinsic dimension" in text
    assert "too low where they are high" in text


def test_a_series_alone_is_a_page() -> None:
    members = [(CAPTURE, site) for site in LAYERS]
    alone = series("flag", "geometry.flag_mean", members, {"dimension": 3}, {"basis": np.ones((2, 3))})
    text = read(render(report_data(artifacts=(alone,), sample_map=None, run=ONLY_SVG))).text
    assert "h.0 | 2 more | h.3" in text
    assert "Between sites" not in text
