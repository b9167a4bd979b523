"""When a monitor tells that a training fails, before the loss is lost, and how often it cries at healthy ones.

    python -m benchmarks.training_failure [--data FOLDER] [--seeds 3] [--steps 400]

Residual networks of five blocks (without norm layers and with ReLU, LayerNorm before and GELU, tanh) learn digits by plain gradient
descent: the 8 x 8 ones of scikit-learn, or with `--data` the test images of MNIST in the folder `mnist` below it. Failing: the rate grows
by 3 % at each step from 0.02 on until the loss is above 6.9. Healthy: `--steps` steps at the rates 0.02 and 0.1. Told are the step at
which the loss was above 6.9, and by how many steps the first alarm of each monitor, and the first notice of spectral alignment at any
layer, came before. Results go to benchmarks/results/training_failure.json.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import subspan
from benchmarks import protocol
from benchmarks.clustering_sets import mnist
from schemas.training import TrainingEvent

KINDS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
LOST = 6.9
FAILING, GROWTH, HEALTHY = 0.02, 1.03, (0.02, 0.1)
BATCH = 128
MONITORS = ("loss", "gradient_norm", "alignment", "rank")


class Course(NamedTuple):
    """A training."""

    losses: list[float]
    events: list[TrainingEvent]
    numbers: list[dict[str, float]]
    """Of each step."""

    @property
    def highest_alignment(self) -> float:
        """Median over the steps, of the layer where it is highest."""
        names = [name for name in self.numbers[0] if name.startswith("alignment.")]
        return max(float(np.nanmedian([some[name] for some in self.numbers])) for name in names)

    def first(self, monitor: str) -> int | None:
        """Step of the first event of a monitor."""
        return next((event.step for event in self.events if event.monitor == monitor), None)

    @property
    def first_alarm(self) -> int | None:
        """Of any monitor."""
        return next((event.step for event in self.events if event.grade == "alarm"), None)


class Block(nn.Module):
    """x + second(act(first(norm(x)))); a norm layer goes with GELU alone."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if kind == "gelu" else nn.Identity()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.act = KINDS[kind]()

    def forward(self, x: Tensor) -> Tensor:
        """Of any leading axes."""
        out: Tensor = x + self.second(self.act(self.first(self.norm(x))))
        return out


def network(kind: str, features: int, width: int = 128) -> nn.Module:
    """Five blocks between two linear layers, torch's own initial weights."""
    blocks = [Block(width, kind) for _ in range(5)]
    return nn.Sequential(nn.Linear(features, width), *blocks, nn.Linear(width, 10))


def digits() -> tuple[Tensor, Tensor]:
    """1,797 x 64 in [0, 1], and classes."""
    made = load_digits()
    return torch.tensor(made.data / 16, dtype=torch.float32), torch.tensor(made.target)


def images(folder: Path | None) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1], and classes."""
    if folder is None:
        return digits()
    made = mnist(folder / "mnist")
    return torch.tensor(made.x / 255, dtype=torch.float32), torch.tensor(made.kind.astype("int64"))


def train(
    data: tuple[Tensor, Tensor],
    kind: str,
    seed: int,
    rate: float,
    growth: float,
    steps: int,
    width: int = 128,
    layers: tuple[str, ...] = ("**",),
) -> Course:
    """Plain gradient descent, until the loss is lost where the rate grows."""
    x, y = data
    torch.manual_seed(seed)
    model = network(kind, x.shape[1], width)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    draws = torch.Generator().manual_seed(seed + 100)
    losses: list[float] = []
    numbers: list[dict[str, float]] = []
    with subspan.TrainingMonitor(model, layers) as monitor:
        for step in range(steps):
            some = torch.randint(0, len(x), (BATCH,), generator=draws)
            loss = nn.functional.cross_entropy(model(x[some]), y[some])
            optimizer.zero_grad()
            loss.backward()
            losses.append(loss.item())
            numbers.append(monitor.observe(step, losses[-1]))
            if not losses[-1] <= LOST:
                break
            optimizer.param_groups[0]["lr"] = rate * growth**step
            optimizer.step()
    return Course(losses, monitor.events, numbers)


def failing(data: tuple[Tensor, Tensor], kind: str, seed: int, **options: Any) -> dict[str, Any]:
    """When the loss was lost, and how many steps before each monitor told."""
    course = train(data, kind, seed, FAILING, GROWTH, 400, **options)
    lost = len(course.losses) - 1
    leads = {
        name: None if (at := course.first(name)) is None else lost - at for name in (*MONITORS, "not_finite")
    }
    first = course.first_alarm
    return {"lost_at": lost, "lead": None if first is None else lost - first, "leads": leads}


def healthy(data: tuple[Tensor, Tensor], kind: str, seed: int, rate: float, steps: int) -> dict[str, Any]:
    """What was told though nothing was wrong."""
    course = train(data, kind, seed, rate, 1.0, steps)
    told = {
        grade: [f"{e.monitor} {e.layer or ''} {e.step}" for e in course.events if e.grade == grade]
        for grade in ("alarm", "notice")
    }
    about = {"steps": len(course.losses), "last_loss": course.losses[-1]}
    return about | {"highest_alignment": course.highest_alignment} | told


def main() -> None:
    """All networks and seeds; print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder with the folder mnist; digits of scikit-learn without"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pairs", type=int, help="taken and not used, as there is nothing to alternate")
    options = parser.parse_args()
    data, found = images(options.data), {}
    for kind in KINDS:
        for seed in range(options.seeds):
            found[f"{kind} failing {seed}"] = failing(data, kind, seed)
            print(kind, "failing", seed, found[f"{kind} failing {seed}"], flush=True)
            for rate in HEALTHY:
                name = f"{kind} healthy {rate:g} {seed}"
                found[name] = healthy(data, kind, seed, rate, options.steps)
                print(name, found[name], flush=True)
    results = {"digits" if options.data is None else "mnist": found, "environment": protocol.environment(1)}
    print(f"saved {protocol.save('training_failure', protocol.saved('training_failure') | results)}")


if __name__ == "__main__":
    main()
