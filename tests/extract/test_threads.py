"""Threads that share a network take turns: neither sees the rows of the other, or ends its forward."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor, nn

from schemas.capture import Precision, Rows
from schemas.layout import Site, SiteLayout
from tasks.extract.batches import Batch
from tasks.extract.collect import collect
from tasks.extract.models import wrap

THREADS, ROUNDS = 4, 20


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
