"""Rows reach their place in store order, whatever samples straddle, fail or are missing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.layout import Site, SiteLayout, Space
from tasks.buffers import ShardBuffers, flag_outliers, to_stored

SITES = tuple(
    SiteLayout(site=Site(module=m), space="tokens", width=w, feature_axis=2) for m, w in (("a", 3), ("b", 1))
)


@settings(max_examples=200)
@given(data=st.data())
def test_every_shard_holds_its_rows_and_nothing_else(data: st.DataObject) -> None:
    """Against plain indexing: samples of 0 to 4 shards, batches in any order inside a shard, some that never come.

    What is handed on early holds what the shard holds when it is taken, unless it was recalled.
    """
    counts = data.draw(st.lists(st.integers(0, 17), min_size=1, max_size=25).filter(sum))
    shard_rows, unit_shards = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    space = Space(
        name="tokens",
        n_rows=sum(counts),
        per_sample=None,
        chunk_rows=1,
        shard_rows=shard_rows,
        unit_shards=unit_shards,
    )
    start = np.concatenate([[0], np.cumsum(counts)])
    failed = data.draw(st.sets(st.integers(0, len(counts) - 1)))
    values = {"a:out:0": torch.randn(sum(counts), 3), "b:out:0": torch.randn(sum(counts), 1)}
    expected = {site: v.clone() for site, v in values.items()}
    for sample in failed:
        for v in expected.values():
            v[start[sample] : start[sample + 1]] = torch.nan
    unit = data.draw(st.integers(0, space.n_units - 1))
    early: dict[tuple[int, str], torch.Tensor] = {}

    def hand_on(number: int, site: str, rows: torch.Tensor) -> None:
        early[number, site] = rows.clone()

    buffers = ShardBuffers(space, SITES, unit, "float32", hand_on=hand_on)
    first, last = space.unit_rows(unit)
    inside = [s for s in range(len(counts)) if start[s] < last and start[s + 1] > first and counts[s]]
    for shard in space.unit_shard_range(unit):
        mine = [s for s in inside if max(start[s] // shard_rows, space.unit_shard_range(unit).start) == shard]
        for sample in data.draw(st.permutations(mine)):
            if sample not in failed:
                rows = torch.arange(start[sample], start[sample + 1])
                if buffers.completes(rows):
                    for site in data.draw(st.sets(st.sampled_from(sorted(values)))):
                        buffers.put_early(rows, site, values[site][rows])
                    if data.draw(st.booleans()):  # the forward went wrong further on, and was done again
                        for site in values:
                            buffers.put_early(rows, site, torch.full_like(values[site][rows], 5.0))
                        buffers.recall()
                buffers.put({site: v[rows] for site, v in values.items()}, rows)
        taken, (low, high) = buffers.take(), space.shard_bounds(shard)
        assert taken.number == shard
        for site in taken.early:
            assert torch.equal(early[shard, site], taken.rows[site])
        for site, v in expected.items():
            assert torch.equal(taken.rows[site].nan_to_num(-7.0), v[low:high].nan_to_num(-7.0))


@pytest.mark.parametrize("sets", [1, 2])
def test_memory_is_used_again_only_when_the_shard_before_is_written(sets: int) -> None:
    """So many shard sets for all shards; the hook that waits for the writer comes before the first row of the next shard."""
    space = Space(name="tokens", n_rows=12, per_sample=None, chunk_rows=4, shard_rows=4, unit_shards=3)
    held: list[dict[str, torch.Tensor]] = []
    written: list[list[float]] = []

    def wait() -> None:
        written.extend(
            [rows["b:out:0"].flatten().tolist() for rows in held[len(written) : len(held) + 1 - sets]]
        )

    buffers = ShardBuffers(space, SITES, 0, "float32", wait, sets)
    for shard in range(3):
        rows = torch.arange(4 * shard, 4 * shard + 4)
        buffers.put({"a:out:0": torch.zeros(4, 3), "b:out:0": rows[:, None].float()}, rows)
        held.append(buffers.take().rows)
    wait()
    assert written == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]][: 4 - sets]
    assert len({rows["a:out:0"].data_ptr() for rows in held}) == sets


def test_only_finite_values_that_do_not_fit_are_counted() -> None:
    rows = torch.tensor([1.0, 70000.0, -70000.0, float("inf"), float("nan")])
    assert to_stored(rows, "float16")[1] == 2
    assert to_stored(rows, "float32")[1] == 0


def test_outliers_are_told_from_the_median_of_good_rows() -> None:
    norms = np.array([[1.0], [1.0], [np.nan], [11.0], [9.0]], dtype=np.float32)
    assert flag_outliers(norms, 10.0).ravel().tolist() == [False, False, False, False, False]
    assert flag_outliers(norms, 2.0).ravel().tolist() == [False, False, False, True, False]
