"""What the papers say is true: their Python runs, their YAML is valid, the generated pages are current."""

import re
from pathlib import Path

import pytest
import yaml

from pipelines.methods_page import methods_page
from pipelines.options_page import options_page
from pipelines.runfile import load_run
from pipelines.serial import run_serial
from schemas.run import RunSpec

TOP = Path(__file__).resolve().parent.parent
PAPERS = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]


def blocks(paper: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", paper.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small version of the demo has run."""
    folder = tmp_path_factory.mktemp("docs")
    overrides = ["captures.minilm.data.subset.max_tokens=1500", f"root={folder / 'subspan-out'}"]
    run_serial(load_run(TOP / "examples" / "demo.yaml", overrides))
    return folder


@pytest.mark.parametrize("paper", [p for p in PAPERS if blocks(p, "python")], ids=lambda p: p.name)
def test_python_in_the_papers_runs(paper: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    names: dict[str, object] = {}
    for block in blocks(paper, "python"):
        exec(compile(block, paper.name, "exec"), names)


def test_yaml_in_the_readme_is_a_run() -> None:
    found = blocks(TOP / "README.md", "yaml")
    assert found
    for block in found:
        RunSpec.model_validate(yaml.safe_load(block))


@pytest.mark.parametrize("paper", PAPERS, ids=lambda p: p.name)
def test_run_files_in_the_papers_are_runs(paper: Path) -> None:
    for block in blocks(paper, "yaml"):
        if "name:" in block.splitlines()[0]:
            RunSpec.model_validate(yaml.safe_load(block))


def test_generated_pages_are_current() -> None:
    assert (TOP / "docs" / "options.md").read_text() == options_page(), "make docs"
    assert (TOP / "docs" / "methods.md").read_text() == methods_page(), "make docs"


def test_links_between_papers_lead_somewhere() -> None:
    for paper in [*PAPERS, TOP / "ARCHITECTURE.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", paper.read_text()):
            assert (paper.parent / target).exists(), f"{paper.name} links to {target}"
