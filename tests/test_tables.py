"""Tables of sites and of stages: what is in a cell, and what is said once."""

from tasks.measures import site_rows
from tasks.tables import measure_notes, measure_tables, stage_tables
from tests.pages import artifact, artifacts, bert, interval, series, story

LAYERS = [f"h.{n}:out:0" for n in range(4)]


def test_few_measures_are_one_table() -> None:
    (table,) = measure_tables(site_rows(artifacts(bert())))
    assert [heading for heading, _ in table.headings] == [
        "Site", "Participation ratio", "Effective rank", "Stable rank", "For 90 %", "Anisotropy", "Top 10",
    ]  # fmt: skip
    assert measure_tables([]) == []


def test_many_measures_are_a_table_for_each_group() -> None:
    tables = measure_tables(site_rows(story(LAYERS)))
    assert [table.title for table in tables] == [
        "Linear dimension",
        "Intrinsic dimension",
        "Evenness of directions",
        "Classes",
    ]
    assert all(len(table.headings) <= 9 and len(table.rows) == 4 for table in tables)
    classes = {
        heading: cell for (heading, _), cell in zip(tables[3].headings, tables[3].rows[3], strict=True)
    }
    assert (classes["VCI"].text, classes["VCI"].note, classes["VCI"].null) == (
        "0.300",
        "[0.294, 0.306]",
        "chance 0.950",
    )
    assert (classes["NC4"].text, classes["NC4"].note) == ("50 %", "[40, 60]")


def test_the_plain_ratio_is_beside_the_one_without_bias() -> None:
    result = {"participation_ratio": 40.0, "participation_ratio_unbiased": 50.0}
    (table,) = measure_tables(site_rows([artifact("s", "spectrum.summary", LAYERS[0], result)]))
    assert (table.rows[0][1].text, table.rows[0][1].null) == ("50", "plain 40.0")


def test_caveats_name_their_method_where_several_speak() -> None:
    def speak(*methods: str) -> list[str]:
        made = [artifact(m, m, LAYERS[0], {"effective_rank": 2.0, "caveats": ["few rows"]}) for m in methods]
        return measure_notes(site_rows(made))

    assert "Few rows." in speak("spectrum.pca", "spectrum.summary")
    assert "Few rows (pca, summary, rank)." in speak("spectrum.pca", "spectrum.summary", "spectrum.rank")


def test_a_number_with_its_interval_is_one_column() -> None:
    result = {"nc1": interval(2.0), "share": 0.5, "share_low": 0.4, "share_high": 0.6, "none": None, "low": 3}
    (table,) = stage_tables([artifact("c", "mine.collapse", LAYERS[0], result)])
    assert [heading for heading, _ in table.headings] == ["Site", "nc1", "share", "none", "low"]
    assert [(cell.text, cell.note) for cell in table.rows[0][1:]] == [
        ("2.00", "[1.80, 2.20]"),
        ("0.50", "[0.40, 0.60]"),
        ("–", ""),
        ("3", ""),
    ]


def test_of_many_fields_those_equal_everywhere_are_said_once() -> None:
    def one(n: int) -> dict:
        same = {f"same_{k}": k for k in range(8)}
        return {**same, "label": "digit", "nothing": None, **{f"other_{k}": n + k for k in range(14)}}

    (table,) = stage_tables([artifact("c", "mine.method", site, one(n)) for n, site in enumerate(LAYERS)])
    assert len(table.headings) == 13
    assert table.notes[0].startswith("The same everywhere: same 0 0, same 1 1,")
    assert table.notes[0].endswith("label digit.")
    assert "nothing" not in table.notes[0]
    assert table.notes[1] == "Also in the artifacts: other 12, other 13."


def test_members_of_a_series_have_the_names_of_the_run() -> None:
    members = [("a" * 20, LAYERS[0]), ("b" * 20, LAYERS[1])]
    nearest = [f"{capture[:8]} {site}" for capture, site in members]
    made = series("d", "geometry.subspace_distances", members, {"nearest": nearest, "overlap": 0.5}, {})
    (table,) = stage_tables([made], {"a" * 20: "before", "b" * 20: "after"})
    cells = {heading: cell.text for (heading, _), cell in zip(table.headings, table.rows[0], strict=True)}
    assert cells["nearest"] == "before h.0, after h.1"
    assert cells["Site"] == "h.0 | h.1"
