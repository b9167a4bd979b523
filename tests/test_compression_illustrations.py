"""Figures of compressed networks: sizes, intervals, the chosen one, in the page too."""

from typing import Any

import numpy as np

from tasks.compression_illustrations import compression_illustrations
from tasks.drawing import draw
from tasks.measures import StageArtifact
from tasks.page import PAGE, render
from tests.pages import artifact, report_data


def point(name: str, size: int, value: float | None) -> dict[str, Any]:
    interval = (
        None if value is None else {"value": value, "corrected": None, "low": value - 0.01, "high": None}
    )
    way = name.rpartition(", ")[0] or name
    return {"name": name, "way": way, "stored_bytes": size, "rank_correlation": interval, "kept": 1.0}


def made(best: str = "low_rank, greedy, 0.8") -> StageArtifact:
    points = [
        point("as it is", 4_000_000, 1.0),
        point("low_rank, uniform, 0.8", 3_000_000, 0.92),
        point("low_rank, uniform, 0.6", 2_000_000, 0.83),
        point("low_rank, greedy, 0.8", 3_000_000, 0.94),
        point("two_sided, greedy, 0.6", 2_000_000, None),
    ]
    layers = (
        [
            {"module": f"h.{k}", "kind": "low_rank", "rank": 3 * k or None, "output_error": 0.01 * k or None}
            for k in range(4)
        ]
        if best
        else []
    )
    result = {"points": points, "judged_by": "rank_correlation", "best": best, "layers": layers}
    return artifact("smaller", "compression.model", "network", result)


def test_a_line_for_each_way_and_a_ring_around_the_chosen_one() -> None:
    (shown,) = compression_illustrations([made()])
    frontier, ranks, errors = shown.figure.axes
    names = [text.get_text() for text in shown.figure.legends[0].get_texts()]
    assert names == ["low_rank, uniform", "low_rank, greedy", "two_sided, greedy"]
    ring = next(line for line in frontier.lines if line.get_markersize() == 11)
    np.testing.assert_allclose(ring.get_xydata(), [[3.0, 0.94]])
    assert [bar.get_height() for bar in ranks.patches] == [0, 3, 6, 9]
    assert ranks.lines[0].get_xdata().tolist() == [0]  # stays as it is
    np.testing.assert_allclose(errors.lines[0].get_xydata(), [[1, 0.01], [2, 0.02], [3, 0.03]])
    assert "from 0.01 to 0.03 of its mean square" in shown.description
    assert "low_rank, greedy, 0.8: 3.00 MB, 0.94" in shown.description
    assert "two_sided, greedy, 0.6: 2.00 MB, no number" in shown.description


def test_none_was_chosen() -> None:
    (shown,) = compression_illustrations([made("")])
    assert len(shown.figure.axes) == 1
    assert "None has the wanted size" in shown.caption


def test_the_page_has_a_section() -> None:
    data = report_data()
    assert b'id="smaller"' not in render(data)[PAGE]
    files = render(data._replace(artifacts=(*data.artifacts, made())))
    assert b'id="smaller"' in files[PAGE]
    assert "figures/frontier-smaller.svg" in files
    assert len(draw(next(iter(compression_illustrations([made()]))).figure, "png")) > 5000
