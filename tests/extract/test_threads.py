"""Threads that share a network take turns, those with a copy each do not: neither sees the rows of the other."""

import gc
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from time import sleep
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

from schemas.capture import Precision, Rows
from schemas.layout import Site, SiteLayout
from tasks.extract.batches import Batch
from tasks.extract.collect import collect
from tasks.extract.draws import draws
from tasks.extract.guard import settle, undrawn
from tasks.extract.models import Network, wrap
from tasks.extract.replica import replica
from tasks.extract.turns import TakeTurns, Turns
from tests.helpers import trust_tests

THREADS, ROUNDS = 4, 20


def nothing(_: Network) -> None:
    """No look at what a network draws."""


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    trust_tests(monkeypatch)


class Patient(nn.Module):
    """Waits between its two parts, so that forwards of several threads would overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        torch.mm(torch.ones(300, 300), torch.ones(300, 300))  # lets other threads run
        out: Tensor = self.last(hidden)
        return out


def test_rows_are_those_of_the_own_batch() -> None:
    net = wrap(Patient())
    sites = [
        SiteLayout(site=Site(module=name), space="sample", width=3, feature_axis=1)
        for name in ("first", "last")
    ]
    together = Barrier(THREADS)

    def work(thread: int) -> bool:
        x = torch.full((5, 3), float(thread))
        together.wait()
        found = [collect(net, Batch({"": x}), sites, Rows(), Precision()) for _ in range(ROUNDS)]
        return all(torch.equal(values, x) for rows in found for values in rows.values())

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, range(THREADS))) == [True] * THREADS


class Meets(nn.Module):
    """Returns only when two forwards are in it."""

    meeting = Barrier(2)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.meeting.wait(20)
        self.seen += 1
        out: Tensor = self.scale(x)
        return out


def test_copies_of_threads_run_at_the_same_time_and_share_their_weights() -> None:
    net, ready = wrap(Meets()), Barrier(2)
    site = SiteLayout(site=Site(module="scale"), space="sample", width=3, feature_axis=1)

    def work(thread: int) -> tuple[Network, bool]:
        own = replica(net, nothing)  # waits for forwards under way
        ready.wait(20)
        x = torch.full((5, 3), float(thread))
        rows = collect(own, Batch({"": x}), [site], Rows(), Precision())
        return own, torch.equal(rows["scale:out:0"], net.module.scale(x).detach())

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, range(2)))
    assert [right for _, right in found] == [True, True]
    one, two = (own for own, _ in found)
    assert one.own
    assert one.module is not two.module
    assert one.module.scale.weight is two.module.scale.weight is net.module.scale.weight
    assert (float(one.module.seen), float(two.module.seen), float(net.module.seen)) == (1.0, 1.0, 0.0)


def test_a_thread_has_one_copy_of_a_network() -> None:
    net, other = wrap(Patient()), wrap(Patient())
    assert replica(net, nothing).module is replica(net, nothing).module
    assert replica(other, nothing).module is not replica(net, nothing).module


class Draws(nn.Module):
    """Adds noise."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x + torch.rand(1))
        return out


def test_a_copy_that_draws_or_fails_must_take_turns() -> None:
    site = SiteLayout(site=Site(module="last"), space="sample", width=3, feature_axis=1)
    batch, nets = Batch({"": torch.zeros(5, 3)}), [wrap(Draws()), wrap(nn.Sequential(nn.Linear(2, 2)))]
    state = torch.default_generator.get_state()
    for net in nets:
        with pytest.raises(TakeTurns):
            collect(replica(net, nothing), batch, [site], Rows(), Precision())
    collect(nets[0], batch, [site], Rows(), Precision())
    assert torch.equal(state, torch.default_generator.get_state())


class Overlaps(nn.Module):
    """The first forward draws while the second is under way, and ends after it."""

    begun, drew, ended = Event(), Event(), Event()

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if float(x[0, 0]) == 0.0:
            self.begun.wait(20)
            x = x + torch.rand(1)
            self.drew.set()
            self.ended.wait(20)
        else:
            self.begun.set()
            self.drew.wait(20)
        out: Tensor = self.last(x)
        return out


def test_a_forward_that_drew_does_not_stand_when_another_noticed_first() -> None:
    site = SiteLayout(site=Site(module="last"), space="sample", width=3, feature_axis=1)
    state, net, ready = torch.default_generator.get_state(), wrap(Overlaps()), Barrier(2)

    def work(thread: int) -> bool:
        own = replica(net, nothing)
        ready.wait(20)
        try:
            collect(own, Batch({"": torch.full((5, 3), float(thread))}), [site], Rows(), Precision())
        except TakeTurns:
            return True
        finally:
            if thread == 1:
                Overlaps.ended.set()
        return False

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [True, True]
    with pytest.raises(TakeTurns):  # until one had its turn
        collect(replica(wrap(Patient()), nothing), Batch({"": torch.ones(5, 3)}), [site], Rows(), Precision())
    collect(wrap(Patient()), Batch({"": torch.ones(5, 3)}), [site], Rows(), Precision())
    assert torch.equal(state, torch.default_generator.get_state())
    collect(replica(wrap(Patient()), nothing), Batch({"": torch.ones(5, 3)}), [site], Rows(), Precision())


def test_generators_get_back_what_they_had_before_the_first_that_drew_began() -> None:
    state = torch.default_generator.get_state()
    earlier, later = undrawn(), undrawn()
    for forward in (earlier, later):
        forward.__enter__()
        torch.rand(1)
    for forward in (later, earlier):
        with pytest.raises(TakeTurns):
            forward.__exit__(None, None, None)
    settle()
    assert torch.equal(state, torch.default_generator.get_state())


def test_copies_go_with_their_network() -> None:
    net = wrap(nn.Linear(3, 3))
    module, copied = ref(net.module), ref(replica(net, nothing).module)
    assert copied() is not None
    del net
    gc.collect()
    assert (module(), copied()) == (None, None)


def test_who_holds_turns_alone_is_alone() -> None:
    turns, inside, worst = Turns(), [0], [0]

    def work(thread: int) -> None:
        for _ in range(200):
            with turns.alone() if thread == 0 else turns.together():
                inside[0] += 1
                if thread == 0:
                    worst[0] = max(worst[0], inside[0])
                    sleep(1e-5)
                    worst[0] = max(worst[0], inside[0])
                inside[0] -= 1

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert worst == [1]


def test_who_waits_to_be_alone_comes_before_later_ones() -> None:
    turns, order = Turns(), []
    entered, leave = Event(), Event()

    def first() -> None:
        with turns.together():
            entered.set()
            leave.wait(20)

    def alone() -> None:
        with turns.alone(), turns.alone(), turns.together():
            order.append("alone")

    def later() -> None:
        with turns.together():
            order.append("later")

    with ThreadPoolExecutor(3) as pool:
        pool.submit(first)
        entered.wait(20)
        waiting = pool.submit(alone)
        while not turns._waiting:
            sleep(1e-3)
        last = pool.submit(later)
        sleep(0.05)
        assert order == []
        leave.set()
        waiting.result(20)
        last.result(20)
    assert order == ["alone", "later"]


def test_what_is_random_is_seen_and_attention_is_not() -> None:
    x = torch.ones(2, 3, 4)
    layer = nn.TransformerEncoderLayer(4, 2, batch_first=True).eval()
    assert not draws(lambda: layer(x))
    assert not draws(lambda: nn.functional.scaled_dot_product_attention(x, x, x))
    assert not draws(lambda: nn.functional.dropout(x, 0.5, training=False))
    assert draws(lambda: nn.functional.dropout(x, 0.5))
    assert draws(lambda: nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5))
    assert draws(lambda: x.clone().uniform_())
    with torch.inference_mode():
        assert draws(lambda: torch.randperm(3))
