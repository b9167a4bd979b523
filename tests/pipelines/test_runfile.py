"""Run files: what is read, what overrides do, and that every mistake is named with its place and cure."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.runfile import load_run, parse_run
from schemas.errors import NotFoundError, SpecError

GOOD = """\
name: demo
root: out
captures:
  docs:
    model:
      kind: transformers
      name: folder
      head: base
    data:
      source: {kind: text, paths: [a.txt], text_column: body}
      subset: {max_samples: 5, seed: 1}
    sites: [residual]
    rows: {positions: all, pooling: none}
    precision: {threads: 1}
    store: {dtype: float16, codec: zstd}
    batch_tokens: 128
    too_long: truncate
  made:
    model: {kind: factory, factory: "pkg.mod:make", arguments: {width: 3}}
    data: {source: {kind: digits, layout: flat}}
    sites: ["**"]
stages:
  pca:
    method: spectrum.pca
    config: {components: 3}
    inputs: {x: {captures: [docs], sites: "*"}}
execution:
  cluster: processes
  workers: 2
report:
  title: Demo
  color_by: module
"""
FREE = {("captures",), ("stages",), ("stages", "pca", "config"), ("stages", "pca", "inputs")}
"""Mappings whose keys the user chooses."""


def test_a_good_file_is_read() -> None:
    run = parse_run(GOOD, "run.yaml")
    assert run.captures["docs"].store.dtype == "float16"
    assert run.stages["pca"].inputs["x"].captures == ("docs",)
    assert parse_run(yaml.safe_dump(run.model_dump(mode="json")), "again.yaml") == run
    assert parse_run(run.model_dump_json(), "again.json") == run


def keys_of(data: object, path: tuple = ()) -> list[tuple]:
    """Key paths whose last key the schema fixes."""
    found = []
    if isinstance(data, dict) and path[-1:] != ("arguments",):
        for key, value in data.items():
            found += [] if path in FREE else [(*path, key)]
            found += keys_of(value, (*path, key)) if (*path, key) != ("stages", "pca", "config") else []
    return found


KEYS = keys_of(yaml.safe_load(GOOD))


@st.composite
def misspelling(draw: st.DrawFn, word: str) -> str:
    """One slip of the finger."""
    at = draw(st.integers(0, len(word) - 1))
    letter = draw(st.sampled_from("aeionrst_"))
    slips = [word[:at] + word[at + 1 :], word[:at] + letter + word[at:], word[:at] + letter + word[at + 1 :]]
    slips += [word[:at] + word[at + 1] + word[at] + word[at + 2 :]] if at + 1 < len(word) else []
    return draw(st.sampled_from(slips).filter(lambda slip: slip not in ("", word)))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_misspelt_key_is_named_with_the_right_one(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(KEYS))
    wrong = data.draw(misspelling(path[-1]))
    document = yaml.safe_load(GOOD)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if wrong in parent or (path[-1], wrong) in {("name", "names")}:
        return
    parent[wrong] = parent.pop(path[-1])
    with pytest.raises(SpecError) as caught:
        parse_run(yaml.safe_dump(document), "run.yaml")
    line = next(
        line for line in str(caught.value).splitlines() if ".".join(map(str, (*path[:-1], wrong))) in line
    )
    assert f"unknown key {wrong!r}" in line
    assert path[-1] in line.partition("nearest:")[2].partition("(of")[0].replace(",", "").split()
    assert line.startswith("run.yaml:")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("head: base", "head: bse", "run.yaml:8: captures.docs.model.head: found 'bse', expected 'base'"),
        (
            "kind: text,",
            "kind: txt,",
            "captures.docs.data.source.kind: found 'txt', expected one of arrays, checkpoints, digits",
        ),
        ("kind: text,", "kind: txt,", "nearest: text"),
        (
            "workers: 2",
            "workers: two",
            "run.yaml:29: execution.workers: found 'two'; input should be a valid integer",
        ),
        ("workers: 2", "workers: 0", "greater than or equal to 1"),
        ("sites: [residual]", "sites: []", "captures.docs: a capture has no sites and no loss"),
        ("sites: [residual]", "sites: residual", "captures.docs.sites: found 'residual'; expected a list"),
        (
            "    sites: [residual]\n",
            "",
            "captures.docs: a capture has no sites and no loss",
        ),
        ("name: demo", "name: a b", "name: found 'a b'"),
        ("name: demo", "name: demo\nname: two", "run.yaml:2: name: found the key twice, first on line 1"),
        ("root: out", "root: [out", "found text that is not YAML"),
        ("root: out", "root: out\nschema_version: 99", "schema_version 99"),
        ("inputs: {x: {captures: [docs]", "inputs: {x: {stage: pac", "there is no stage 'pac'; nearest: pca"),
        ('factory: "pkg.mod:make"', "factory: pkg.mod", "captures.made.model.factory: found 'pkg.mod'"),
    ],
)
def test_mistakes_are_told_with_place_and_cure(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    with pytest.raises(SpecError) as caught:
        parse_run(GOOD.replace(old, new), "run.yaml")
    assert expected in str(caught.value)


def test_only_the_branch_that_was_meant_is_told() -> None:
    with pytest.raises(SpecError) as caught:
        parse_run(GOOD.replace("kind: text, paths", "kind: text, path"), "run.yaml")
    assert str(caught.value).splitlines() == [
        "run.yaml:10: captures.docs.data.source.path: found an unknown key 'path'; nearest: paths (of 6)"
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found nothing"),
        ("- a", "found a list of 1"),
        ("just words", "found 'just words'"),
        ("a: &x [*x]", "not YAML"),
    ],
)
def test_what_is_no_run_at_all(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=r"run\.yaml") as caught:
        parse_run(text, "run.yaml")
    assert words in str(caught.value) or "captures" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_no_text_escapes_as_another_error(text: str) -> None:
    with pytest.raises(SpecError):
        parse_run(text, "run.yaml")


def test_overrides_change_values_also_in_lists_and_in_what_is_absent() -> None:
    run = parse_run(
        GOOD,
        "f",
        [
            "execution.workers=5",
            "captures.docs.sites.0=mlp",
            "report=null",
            "captures.docs.store.shard_rows=64",
        ],
    )
    assert run.execution.workers == 5
    assert run.captures["docs"].sites == ("mlp",)
    assert run.report is None
    assert run.captures["docs"].store.shard_rows == 64


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "execution.wrkers=3",
            "--set execution.wrkers=3: execution.wrkers: found an unknown key 'wrkers'; nearest: workers",
        ),
        ("captures.dosc.batch_tokens=3", "the run has no captures.dosc; nearest: docs"),
        ("captures.docs.sites.7=mlp", "found a list of 1 at captures.docs.sites, which has no 7"),
        ("name.first=x", "found 'demo' at name, which has no 'first'"),
        ("name", "no `key.path=value`"),
        (".=3", "no `key.path=value`"),
        ("name=[", "not YAML"),
    ],
)
def test_wrong_overrides_are_told_as_such(override: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_run(GOOD, "run.yaml", [override])
    assert expected in str(caught.value)


def test_files_that_are_not_there_name_what_is(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(GOOD)
    assert load_run(tmp_path / "run.yaml").name == "demo"
    with pytest.raises(NotFoundError, match=r"nearest: .*run\.yaml"):
        load_run(tmp_path / "rnu.yaml")
    with pytest.raises(NotFoundError):
        load_run(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SpecError, match="not UTF-8"):
        load_run(tmp_path / "bytes.yaml")
