"""Small networks and data sets that tests name in run files; importable wherever workers run."""

import os
import random
import threading
import time
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn


class Squares(nn.Module):
    """Three layers over vectors; sample 7 of `vectors` makes `fragile` raise and sample 11 gives NaN."""

    def __init__(self, width: int, fragile: bool, pause: float) -> None:
        super().__init__()
        self.first = nn.Linear(width, 2 * width)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Linear(2 * width, width)
        self.fragile, self.pause = fragile, pause

    def forward(self, x: Tensor) -> Tensor:
        if self.pause:
            time.sleep(self.pause)
        if self.fragile and bool((x[:, 0] == 7.0).any()):
            raise ValueError("this network does not take sevens")
        hidden = self.act(self.first(x))
        if self.fragile:
            hidden = hidden.masked_fill((x[:, 0] == 11.0)[:, None], float("nan"))
        out: Tensor = self.last(hidden)
        return out


def squares(width: int = 8, fragile: bool = False, pause: float = 0.0, seed: int = 0) -> nn.Module:
    """The network; `pause` seconds per forward make a unit long enough to be killed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Squares(width, fragile, pause)


def unseeded(width: int = 8) -> nn.Module:
    """Other weights each time it is called."""
    return nn.Sequential(nn.Linear(width, width))


class Counter(nn.Module):
    """Adds the number of its forwards to what it returns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.first(x + self.calls)
        return out


def counter(width: int = 8) -> nn.Module:
    """The network."""
    return Counter(width)


class Vectors(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Sample i is a vector whose first value is i, labelled i mod 3."""

    def __init__(self, n: int, width: int) -> None:
        generator = np.random.default_rng(0)
        self.values = torch.from_numpy(generator.standard_normal((n, width)).astype(np.float32))
        self.values[:, 0] = torch.arange(n)
        self.fingerprint = f"vectors-{n}-{width}"

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.values[index], index % 3


def vectors(n: int = 100, width: int = 8) -> Vectors:
    """The data set."""
    return Vectors(n, width)


def dying(width: int = 8) -> nn.Module:
    """A factory that raises."""
    raise RuntimeError(f"no network of width {width} today")


def with_parameters(shapes: dict[str, list[int]]) -> nn.Module:
    """A network that is nothing but seeded parameters of these names."""
    top = nn.Module()
    for seed, (name, shape) in enumerate(shapes.items()):
        *path, last = name.split(".")
        owner = top
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        owner.register_parameter(last, nn.Parameter(values))
    return top


class Killer(nn.Module):
    """Ends its own process in the forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 3:  # the dry run's batches are smaller
            os._exit(9)
        out: Tensor = self.first(x)
        return out


def killer(width: int = 8) -> nn.Module:
    """A network that kills every worker it meets."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Killer(width)


class Scaled(nn.Module):
    """Multiplies its input."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x * self.factor)
        return out


def scaled(factor: float = 60000.0) -> nn.Module:
    """A network whose output leaves the range of float16 here and there."""
    return Scaled(factor)


class Awkward(nn.Module):
    """Two layers of which several threads cannot simply run copies."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.last = nn.Linear(width, width)
        self.kind = kind
        if kind == "holds a lock":
            self.lock = threading.Lock()
        if kind == "calls what it was made with":
            first = self.first
            self.call_first = lambda x: first(x)
        if kind == "hook with a variable":
            kept: dict[str, Tensor] = {}
            self.first.register_forward_hook(lambda _, given, __: kept.update(skip=given[0]))
            self.last.register_forward_hook(lambda _, __, out: out + kept["skip"])

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.call_first(x) if self.kind == "calls what it was made with" else self.first(x)
        if self.kind == "swaps its weights":
            kept, self.last.weight.data = self.last.weight.data, self.last.weight.data * x[0, 0]
            time.sleep(1e-3)
            hidden = self.last(hidden)
            self.last.weight.data = kept
        if self.kind == "raises now and then" and bool((x[:, 0] == 37).any()):
            raise ValueError("no thirty-sevens")
        if self.kind == "seeds itself":
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002
        if self.kind == "seeds numpy":
            np.random.seed(0)  # noqa: NPY002
            hidden = hidden + torch.from_numpy(np.random.standard_normal(8).astype(np.float32))  # noqa: NPY002
        if self.kind == "seeds and restores":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                hidden = hidden + torch.randn(8)
        if self.kind in ("draws from torch", "seeds itself") or (
            self.kind == "draws now and then" and (x[:, 0] == 37).any()
        ):
            hidden = hidden + torch.rand_like(hidden)
        if self.kind == "draws from numpy":
            hidden = hidden + float(np.random.random())  # noqa: NPY002
        if self.kind == "draws from random":
            hidden = hidden + random.random()
        if self.kind == "hook with a variable":
            time.sleep(1e-3)
        out: Tensor = self.last(hidden)
        return out


def awkward(kind: str, width: int = 8) -> nn.Module:
    """The network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Awkward(width, kind)


class Noisy(torch.utils.data.Dataset[Tensor]):
    """Seeds the generators to make an item, and keeps its place meanwhile: two threads must not be in it at a time."""

    fingerprint = "noisy"

    def __init__(self, n: int, width: int) -> None:
        self.n, self.width, self.place = n, width, -1

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        self.place = index
        torch.manual_seed(index)
        time.sleep(1e-3)
        values = torch.randn(self.width)
        values[0] = self.place
        return values


def noisy(n: int = 100, width: int = 8) -> Noisy:
    """The data set."""
    return Noisy(n, width)


class Expert(nn.Module):
    """Two layers of a mixture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(nn.functional.relu(self.up(x)))
        return y


class Mixture(nn.Module):
    """Four experts, of which a row takes the two likeliest."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert(width) for _ in range(4))
        self.router = nn.Linear(width, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        chance = self.router(x).softmax(-1)
        top = torch.zeros_like(chance).scatter(-1, chance.topk(2, dim=-1).indices, 1.0) * chance
        top = top / top.sum(-1, keepdim=True)
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return (outputs * top[..., None, :]).sum(-1)


def mixture(width: int = 8, seed: int = 0) -> nn.Module:
    """A classifier with a mixture of experts, of which two and two are nearly alike."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        OrderedDict(first=nn.Linear(width, width), moe=Mixture(width), last=nn.Linear(width, 3))
    )
    for one, two in ((0, 1), (2, 3)):
        for name, value in net.moe.experts[one].named_parameters():
            net.moe.experts[two].get_parameter(name).data = value.detach() + 0.01 * torch.randn_like(value)
    return net


def encoder(folder: str) -> nn.Module:
    """A network of transformers, as a factory of one's own would make it."""
    from transformers import AutoModel

    made: nn.Module = AutoModel.from_pretrained(folder).eval()
    return made
