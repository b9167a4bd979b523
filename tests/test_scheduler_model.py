"""Laws of the simulated unit scheduler."""

import math

import numpy as np
import pytest

from benchmarks.scheduler_model import Plant, Simulated, simulate

RANDOM = np.random.default_rng(0)
UNEVEN = list(RANDOM.gamma(2.0, 3.0, 500))
ROUGH = Plant(
    workers=7,
    window=2,
    loop_seconds=0.05,
    death_rate=1 / 60,
    back_seconds=9.0,
    crash_rate=1 / 200,
    restart_seconds=20.0,
    receipt_seconds=0.01,
)


@pytest.mark.parametrize(("n", "workers"), [(1, 1), (12, 4), (13, 4), (3, 8), (1000, 31)])
def test_equal_units_take_as_many_rounds_as_there_must_be(n: int, workers: int) -> None:
    found = simulate([2.0] * n, Plant(workers=workers))
    assert found.makespan == pytest.approx(2.0 * math.ceil(n / workers))
    assert (found.useful, found.lost, found.away, found.redone) == (2.0 * n, 0, 0, 0)


def test_a_slow_client_is_the_limit() -> None:
    found = simulate([0.01] * 2000, Plant(workers=50, loop_seconds=0.004))
    assert found.makespan == pytest.approx(2000 * 0.004, rel=0.01)
    assert found.client_busy > 0.99


@pytest.mark.parametrize("window", [1, 4, 40])
def test_the_client_spends_its_seconds_on_each_unit_once(window: int) -> None:
    found = simulate([1.0] * 100, Plant(workers=5, window=window, loop_seconds=0.01))
    assert found.client_busy * found.makespan == pytest.approx(100 * 0.01)


def test_a_window_of_one_makes_a_worker_wait_for_the_client() -> None:
    one = simulate([1.0] * 100, Plant(workers=1, window=1, loop_seconds=0.1))
    assert one.makespan == pytest.approx(100 * 1.1)
    two = simulate([1.0] * 100, Plant(workers=1, window=2, loop_seconds=0.1))
    assert two.makespan == pytest.approx(100 + 0.1)  # handing out goes on beside the unit


@pytest.mark.parametrize("plant", [Plant(workers=7), ROUGH])
@pytest.mark.parametrize("seed", range(5))
def test_no_second_is_counted_twice_or_left_out(plant: Plant, seed: int) -> None:
    found = simulate(UNEVEN, plant, seed)
    assert found.useful == pytest.approx(sum(UNEVEN))  # every unit is done, once
    whole = plant.workers * found.makespan
    assert found.useful + found.lost + found.idle + found.away == pytest.approx(whole)
    assert found.utilisation == pytest.approx(found.useful / whole)


def test_the_rough_plant_is_rough() -> None:
    found = simulate(UNEVEN, ROUGH)
    assert found.crashes > 0
    assert found.redone > found.crashes
    assert min(found.lost, found.away, found.idle) > 0


def test_more_workers_are_never_slower() -> None:
    spans = [simulate(UNEVEN, Plant(workers=n)).makespan for n in (1, 2, 3, 5, 8, 20, 100, 600)]
    assert spans == sorted(spans, reverse=True)
    assert spans[0] == pytest.approx(sum(UNEVEN))
    assert spans[-1] == pytest.approx(max(UNEVEN))


def test_no_schedule_beats_the_bounds_and_this_one_is_within_graham_of_them() -> None:
    for n in (2, 5, 16):
        span = simulate(UNEVEN, Plant(workers=n)).makespan
        least = max(sum(UNEVEN) / n, max(UNEVEN))
        assert least <= span * (1 + 1e-12)
        assert span <= sum(UNEVEN) / n + max(UNEVEN)


def over_seeds(plant: Plant) -> list[Simulated]:
    return [simulate([5.0] * 2000, plant, seed) for seed in range(8)]


def test_a_death_costs_half_a_unit_and_the_time_to_come_back() -> None:
    found = over_seeds(Plant(workers=10, death_rate=1e-3, back_seconds=30.0))
    deaths = sum(one.redone for one in found)
    hours = sum(10 * one.makespan - one.away for one in found)
    assert deaths == pytest.approx(1e-3 * hours, rel=0.15)
    assert sum(one.lost for one in found) / deaths == pytest.approx(2.5, rel=0.15)
    assert sum(one.away for one in found) / deaths == pytest.approx(30.0, rel=0.05)


def test_more_deaths_are_slower() -> None:
    spans = [
        np.mean([one.makespan for one in over_seeds(Plant(workers=10, death_rate=r, back_seconds=30.0))])
        for r in (0, 1e-4, 1e-3, 1e-2)
    ]
    assert spans == sorted(spans)


def test_a_restart_keeps_what_has_a_receipt() -> None:
    for one in over_seeds(Plant(workers=10, crash_rate=1 / 300, restart_seconds=50.0)):
        assert one.redone <= 10 * one.crashes  # one unit a worker, at most
        assert one.lost <= 5.0 * one.redone
        assert one.makespan <= 1000 + one.crashes * (50 + 5 + 5) + 5
