"""The states from which principal components come, one for each engine, and which of them a site takes.

moments    feature x feature products (`moments_state`): shared with every method that needs a covariance
qr         triangular factors (`numerics.triangle`): small singular values too
rows       all rows as they are, where they are few (`numerics.streaming`, never cut)
streaming  a truncated singular value decomposition that goes along (`numerics.streaming`)
sketch     the covariance times random vectors (`numerics.products`); also what a further pass of the last two makes
"""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods import moments_state
from tasks.methods.contract import Block, Inputs, Reduces, State
from tasks.numerics import products, streaming, subspace, triangle
from tasks.numerics.moments import Precision

VERSION = 1
Engine = Literal["moments", "qr", "rows", "streaming", "sketch"]
NARROW, WIDEST = 2048, 8192
"""Features up to which the covariance is formed always, and at most: its decomposition takes feature^3."""
TESTS = 10
"""Random vectors that estimate the error of a pass."""
GIB = 1 << 30


@runtime_checkable
class HasEngine(Protocol):
    """Options of a method that reads these states."""

    @property
    def engine(self) -> Literal["auto"] | Engine: ...

    @property
    def shrink(self) -> bool: ...

    @property
    def memory_gib(self) -> float: ...

    @property
    def seed(self) -> int: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def weight_label(self) -> str | None: ...


class Choice(NamedTuple):
    """An engine and why."""

    engine: Engine
    why: str


def choose(width: int, n_rows: int, rank: int, config: HasEngine) -> Choice:
    """The engine that was asked for, or the one that fits the shape.

    Args:
        width: features.
        n_rows: rows in all.
        rank: directions that a truncating engine keeps.
        config: options.

    Raises:
        MethodError: if its state takes more memory than allowed.
    """
    choice = (
        _automatic(width, n_rows, config) if config.engine == "auto" else Choice(config.engine, "asked for")
    )
    needed = state_bytes(choice.engine, width, n_rows, rank)
    if needed > config.memory_gib * GIB:
        raise MethodError(
            f"engine {choice.engine} ({choice.why}) takes {needed / GIB:.1f} GiB for {width:,} features, {n_rows:,} rows and rank "
            f"{rank}; memory_gib allows {config.memory_gib:g}: allow more, ask for fewer components or a smaller rank, or project "
            "the site when it is captured"
        )
    return choice


def state_bytes(engine: Engine, width: int, n_rows: int, rank: int) -> int:
    """What a worker holds at its peak: two states that become one, and what that takes beside. Decomposing moments takes up to 9 width^2
    numbers, once, where the stage ends."""
    held = {
        "moments": 4 * width,  # both, one of them about the other's shift, and the sum
        "qr": 7 * width,  # both, both as one, what LAPACK makes of that, and its triangle
        "rows": 2 * n_rows,
        "streaming": 4
        * (streaming.capacity(rank) + TESTS),  # both, and both as one; then a pass over all that was kept
        "sketch": 4 * (rank + TESTS),
    }
    return 8 * width * held[engine]


def _automatic(width: int, n_rows: int, config: HasEngine) -> Choice:
    if width <= NARROW:
        return Choice("moments", f"{width} features are no more than {NARROW}")
    if 2 * n_rows <= width and state_bytes("rows", width, n_rows, 0) <= config.memory_gib * GIB:
        return Choice("rows", f"{n_rows} rows are at most half of {width} features")
    if width <= WIDEST and state_bytes("moments", width, n_rows, 0) <= config.memory_gib * GIB:
        return Choice("moments", f"{width} features are no more than {WIDEST}")
    return Choice("streaming", f"a covariance of {width} features takes too long or too much memory")


def start(choice: Choice, inputs: Inputs, rank: int, config: HasEngine) -> State:
    """What the first pass needs; nothing where states are moments, so that other methods share them."""
    width = inputs.widths["x"]
    if choice.engine == "moments":
        return {}
    if choice.engine == "qr":
        return {"triangle": torch.tensor(True)}
    if choice.engine == "sketch":
        return pass_over(
            subspace.start(width, rank, config.seed), torch.zeros(width, dtype=torch.float64), config.seed
        )
    kept = max(1, inputs.n_rows) if choice.engine == "rows" else rank
    return {
        "rank": torch.tensor(kept),
        "shrink": torch.tensor(config.shrink and choice.engine == "streaming"),
    }


def pass_over(q: Tensor, shift: Tensor, seed: int) -> State:
    """What a pass needs that multiplies the covariance by q, and by random vectors that nothing else depends on."""
    generator = torch.Generator().manual_seed(seed ^ 0x5EED)
    test = torch.randn(len(q), TESTS, generator=generator, dtype=torch.float64).to(q.device)
    return {"q": q, "test": test, "shift": shift}


def reduces(carry: State, config: HasEngine) -> Reduces:
    """The functions of a carry's state."""
    if not carry:
        return Reduces(moments_state.partial, moments_state.merge, moments_state.state_config(config))
    options: dict[str, object] = {"weight_label": config.weight_label}
    if "triangle" in carry:
        return Reduces(triangle_partial, triangle.merge, options)
    return Reduces(products_partial if "q" in carry else streaming_partial, merge, options)


def merge(a: State, b: State) -> State:
    """Two states of one kind."""
    if "g" in a:
        return moments_state.merge(a, b)
    if "p" in a:
        return products.merge(a, b)
    return streaming.merge(a, b) if "lost" in a else triangle.merge(a, b)


def triangle_partial(block: Block, carry: State, config: HasEngine) -> State:
    """A triangular factor."""
    return triangle.partial(block["x"], block.weight)


def streaming_partial(block: Block, carry: State, config: HasEngine) -> State:
    """A truncated decomposition."""
    return streaming.partial(block["x"], block.weight, int(carry["rank"]), bool(carry["shrink"]))


def products_partial(block: Block, carry: State, config: HasEngine) -> State:
    """The covariance times the block and the random vectors."""
    return products.partial(
        block["x"], block.weight, torch.cat([carry["q"], carry["test"]], 1), carry["shift"]
    )
