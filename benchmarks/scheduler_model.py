"""The unit scheduler as a model: one client that hands out units through a bounded window, workers that die and come back, restarts.

What is modelled: the flow's process submits `window` units per worker and another one for each that comes back; every one costs it
`loop_seconds`, one after the other. A free worker takes the oldest unit that was submitted. A worker that dies loses its unit, which is
taken up by another, and is away for `back_seconds`. When the flow's process ends, what is under way is lost; it comes back after
`restart_seconds` and after reading each receipt. What is not modelled: units that wait at a worker while another is free (Dask's
stealing is taken as perfect), and a network or store that more workers slow down.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

FINISH, OFFER, DIE, BACK, CRASH, RESUME = range(6)


@dataclass(frozen=True)
class Plant:
    """Who works, and what goes wrong. All times in seconds, all rates per second."""

    workers: int
    window: int = 4
    loop_seconds: float = 0.0
    """Of the client, for each unit."""
    death_rate: float = 0.0
    """Of one worker."""
    back_seconds: float = 0.0
    crash_rate: float = 0.0
    """Of the client or the scheduler."""
    restart_seconds: float = 0.0
    receipt_seconds: float = 0.0
    """Reading one, when the client comes back."""


class Simulated(NamedTuple):
    """What came out. Worker-seconds: useful + lost + idle + away = workers times makespan."""

    makespan: float
    useful: float
    lost: float
    """In units that were not finished."""
    idle: float
    away: float
    """Dead, or while the client was."""
    redone: int
    """Times a unit was begun again."""
    most_deaths: int
    """Of workers under one unit."""
    crashes: int
    client_busy: float
    """Share of the makespan."""

    @property
    def utilisation(self) -> float:
        """Share of all worker-seconds that was useful."""
        return self.useful / (self.useful + self.lost + self.idle + self.away)


@dataclass
class _Worker:
    since: float = 0.0
    """When it began what it does: a unit, idling, being away."""
    unit: int | None = None
    there: bool = True
    life: int = 0
    """Tells events of an earlier life, or an earlier unit, from those that count."""


@dataclass
class _State:
    plant: Plant
    times: Sequence[float]
    random: np.random.Generator
    now: float = 0.0
    events: list[tuple[float, int, int, int, int]] = field(default_factory=list)
    number: int = 0
    todo: deque[int] = field(default_factory=deque)
    """Not submitted."""
    offered: deque[int] = field(default_factory=deque)
    """Submitted, and nobody's yet."""
    free: deque[int] = field(default_factory=deque)
    workers: list[_Worker] = field(default_factory=list)
    done: int = 0
    epoch: int = 0
    client_free: float = 0.0
    client_seconds: float = 0.0
    useful: float = 0.0
    lost: float = 0.0
    idle: float = 0.0
    away: float = 0.0
    redone: int = 0
    crashes: int = 0
    deaths: dict[int, int] = field(default_factory=dict)

    def at(self, time: float, kind: int, which: int = 0, life: int = 0) -> None:
        self.number += 1
        heapq.heappush(self.events, (time, self.number, kind, which, life))

    def submit(self) -> None:
        """The client submits another unit where there is one; its seconds of a unit, until it is back, are spent here."""
        if not self.todo:
            return
        begin = max(self.now, self.client_free)
        self.client_free = begin + self.plant.loop_seconds
        self.client_seconds += self.plant.loop_seconds
        self.at(self.client_free, OFFER, self.todo.popleft(), self.epoch)

    def begin(self) -> None:
        """Free workers take what is offered."""
        while self.offered and self.free:
            which, unit = self.free.popleft(), self.offered.popleft()
            worker = self.workers[which]
            self.idle += self.now - worker.since
            worker.unit, worker.since, worker.life = unit, self.now, worker.life + 1
            self.at(self.now + self.times[unit], FINISH, which, worker.life)

    def rest(self, which: int) -> None:
        """A worker is free from now on."""
        worker = self.workers[which]
        worker.unit, worker.there, worker.since = None, True, self.now
        self.free.append(which)

    def mortal(self, which: int) -> None:
        """Draw when a worker dies."""
        if self.plant.death_rate:
            self.at(self.now + self.random.exponential(1 / self.plant.death_rate), DIE, which)

    def doomed(self) -> None:
        """Draw when the client dies."""
        if self.plant.crash_rate:
            self.at(self.now + self.random.exponential(1 / self.plant.crash_rate), CRASH)

    def leave(self, which: int) -> int | None:
        """A worker is away from now on; the unit that it had."""
        worker = self.workers[which]
        unit = worker.unit
        if unit is None:
            self.idle += self.now - worker.since
            self.free.remove(which)
        else:
            self.lost += self.now - worker.since
            self.redone += 1
        worker.unit, worker.there, worker.since, worker.life = None, False, self.now, worker.life + 1
        return unit


def simulate(times: Sequence[float], plant: Plant, seed: int = 0) -> Simulated:
    """Run all units of these seconds, in order.

    Takes about five microseconds for each unit and event.
    """
    state = _State(plant, times, np.random.default_rng(seed))
    state.todo.extend(range(len(times)))
    state.workers = [_Worker() for _ in range(plant.workers)]
    state.free.extend(range(plant.workers))
    for which in range(plant.workers):
        state.mortal(which)
    state.doomed()
    _fill_window(state)
    while state.done < len(times):
        state.now, _, kind, which, life = heapq.heappop(state.events)
        STEPS[kind](state, which, life)
        state.begin()
    return _result(state)


def _fill_window(state: _State) -> None:
    for _ in range(min(len(state.todo), state.plant.window * state.plant.workers)):
        state.submit()


def _finish(state: _State, which: int, life: int) -> None:
    worker = state.workers[which]
    if worker.life != life or worker.unit is None:
        return
    state.useful += state.now - worker.since
    state.done += 1
    state.rest(which)
    state.submit()


def _offer(state: _State, unit: int, epoch: int) -> None:
    if epoch == state.epoch:
        state.offered.append(unit)


def _die(state: _State, which: int, _: int) -> None:
    if state.workers[which].there:
        unit = state.leave(which)
        if unit is not None:
            state.deaths[unit] = state.deaths.get(unit, 0) + 1
            state.offered.appendleft(unit)
        state.at(state.now + state.plant.back_seconds, BACK, which, state.workers[which].life)
    state.mortal(which)


def _back(state: _State, which: int, life: int) -> None:
    worker = state.workers[which]
    if worker.life == life and not worker.there:
        state.away += state.now - worker.since
        state.rest(which)


def _crash(state: _State, _: int, __: int) -> None:
    """The client is gone: all workers stop; what has no receipt will be done again, by the order of units."""
    under_way = [state.leave(which) for which, worker in enumerate(state.workers) if worker.there]
    waiting = [unit for _, _, kind, unit, epoch in state.events if kind == OFFER and epoch == state.epoch]
    again = [unit for unit in under_way if unit is not None]
    state.todo = deque(sorted([*again, *waiting, *state.offered, *state.todo]))
    state.offered.clear()
    state.epoch += 1
    state.crashes += 1
    for worker in state.workers:
        worker.life += 1
    pause = state.plant.restart_seconds + state.plant.receipt_seconds * state.done
    state.at(state.now + pause, RESUME)


def _resume(state: _State, _: int, __: int) -> None:
    for which, worker in enumerate(state.workers):
        state.away += state.now - worker.since
        state.rest(which)
    state.client_free = state.now
    _fill_window(state)
    state.doomed()


STEPS = {FINISH: _finish, OFFER: _offer, DIE: _die, BACK: _back, CRASH: _crash, RESUME: _resume}


def _result(state: _State) -> Simulated:
    for worker in state.workers:
        rest = state.now - worker.since
        if not worker.there:
            state.away += rest
        elif worker.unit is None:
            state.idle += rest
    return Simulated(
        makespan=state.now,
        useful=state.useful,
        lost=state.lost,
        idle=state.idle,
        away=state.away,
        redone=state.redone,
        most_deaths=max(state.deaths.values(), default=0),
        crashes=state.crashes,
        client_busy=min(1.0, state.client_seconds / state.now) if state.now else 0.0,
    )
