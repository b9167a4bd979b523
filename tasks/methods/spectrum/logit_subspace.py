"""Next-token distributions in as few numbers as the unembedding has rank: which tokens to keep, and how exactly they give all others back.

Connect the final hidden states (`lm_head:in:0`) or the logits (`lm_head:out:0`). Log-probabilities lie in the span of the unembedding's
columns and the constant, so that those of width + 1 tokens tell all; the tokens are chosen by a pivoted QR decomposition, and each row's
distribution is compared with what its numbers give back. Arrays: `tokens`, the chosen ones; `singular_value`, of the unembedding with a
constant column. `tasks.numerics.logit_subspace.expand` gives distributions back. The unembedding is held four times in memory as float64
while tokens are chosen (1.3 GiB for 50,000 tokens and 768 features), and kept as it is stored until the stage is done.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import logit_subspace

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {"tokens": ("number",), "singular_value": ("order",)}
REFERENCE = (
    "Better language model inversion by compactly representing next-token distributions (2025): logits in a subspace of the width of the "
    "hidden state; pivots: Businger, Golub, Numerische Mathematik 7 (1965) 269"
)
SEEDS = (166,)
MOST_BYTES = 1 << 34
TILE = 1 << 23
"""Numbers of a piece of log-probabilities."""


class Config(Frozen):
    """What is read of the network, and what rows are."""

    weight: str = "{module}.weight"
    """The unembedding, [tokens, features]."""
    bias: str | None = None
    """Its bias, where it has one, such as `{module}.bias`."""
    rows: Literal["auto", "hidden", "logits"] = "auto"
    """Whether rows are hidden states or logits (log-probabilities are logits too); auto: by their width."""
    random: bool = Field(default=False)
    """Also tell how errors would grow with randomly chosen tokens, which costs another decomposition."""
    seed: int = 0
    """Of the random tokens."""


class Result(Frozen):
    """Errors are of natural logarithms of probabilities, the largest over tokens and rows: certificates rather than estimates."""

    n_rows: int
    tokens: int
    """Of the vocabulary."""
    width: int
    """Features of the hidden state."""
    numbers: int
    """That are kept of a distribution: the rank of the unembedding with a constant column."""
    compression: float
    """Tokens over numbers."""
    condition: float
    """Of the chosen rows of the unembedding."""
    growth: float
    """No log-probability is further off than this times the largest error of a kept number."""
    growth_random: float | None
    """The same for randomly chosen tokens; None where not asked for, or where they do not tell the others."""
    error: float | None
    """Largest difference of a log-probability that is given back; None without rows."""
    error_rms: float | None
    """Root mean square over rows of each row's largest difference."""
    divergence: float | None
    """Largest Kullback-Leibler divergence of what is given back from the distribution itself, in nats."""
    error_float32: float | None
    """`error` where the kept numbers are rounded to float32."""
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """What is read of the network."""
    return (config.weight,) if config.bias is None else (config.weight, config.bias)


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameters do not fit rows or each other, or are too large to decompose.
    """
    weight = inputs.weights[config.weight]
    if weight.ndim != 2 or inputs.widths["x"] not in _widths(weight, config):
        raise MethodError(
            f"{config.weight} has the shape {tuple(weight.shape)}, expected [tokens, features] of which rows of "
            f"{inputs.widths['x']} features are the logits or the hidden states; connect lm_head:in:0 or lm_head:out:0"
        )
    if config.bias is not None and inputs.weights[config.bias].shape != weight.shape[:1]:
        raise MethodError(
            f"{config.bias} has the shape {tuple(inputs.weights[config.bias].shape)}, expected {tuple(weight.shape[:1])}"
        )
    if 4 * 8 * weight.numel() > MOST_BYTES:
        raise MethodError(
            f"{config.weight} of {weight.numel():,} numbers takes {32 * weight.numel():,} bytes to decompose, at most {MOST_BYTES:,} are "
            "used; name a smaller network"
        )


def start(inputs: Inputs, config: Config) -> State:
    """The choice of tokens, and the unembedding as it is stored."""
    weight = inputs.weights[config.weight]
    found = logit_subspace.choose(weight)
    carry = {
        "weight": weight.float() if weight.dtype == torch.bfloat16 else weight,
        "tokens": found.tokens,
        "solver": found.solver,
        "values": found.values,
        "certificate": torch.tensor([found.condition, found.growth], dtype=torch.float64),
    }
    if config.bias is not None:
        carry["bias"] = inputs.weights[config.bias].double()
    return carry


def partial(block: Block, carry: State, config: Config) -> State:
    """Errors of the rows, in pieces that bound memory."""
    x, weight, bias = block["x"], carry["weight"].double(), carry.get("bias")
    hidden = x.shape[1] == _widths(weight, config)[0]
    choice = logit_subspace.Choice(carry["tokens"], carry["solver"], carry["values"], 0.0, 0.0)
    state = {name: weight.new_zeros(()) for name in ("error", "float32", "divergence", "square")}
    for piece in torch.split(x, max(1, TILE // len(weight))) if len(x) else ():
        logits = piece.double() @ weight.T if hidden else piece.double()
        exact = (logits + bias if hidden and bias is not None else logits).log_softmax(1)
        kept = exact[:, choice.tokens]
        both = torch.cat([kept, kept.float().double()])
        found, rounded = logit_subspace.expand(both, choice, weight, bias).chunk(2)
        worst = (found - exact).abs().amax(1)
        divergence = (exact.exp() * (exact - found.log_softmax(1))).sum(1)
        state["error"] = torch.maximum(state["error"], worst.max())
        state["float32"] = torch.maximum(state["float32"], (rounded - exact).abs().max())
        state["divergence"] = torch.maximum(state["divergence"], divergence.max())
        state["square"] = state["square"] + worst.square().sum()
    return state | {"n": torch.tensor(len(x), device=x.device)}


def merge(a: State, b: State) -> State:
    """Of both sets of rows."""
    largest = {name: torch.maximum(a[name], b[name]) for name in ("error", "float32", "divergence")}
    return largest | {name: a[name] + b[name] for name in ("square", "n")}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The certificate and the errors."""
    weight, n = carry["weight"], int(state["n"])
    condition, growth = carry["certificate"].tolist()
    numbers = len(carry["tokens"])
    errors = {"error": "error", "divergence": "divergence", "error_float32": "float32"}
    result = Result(
        n_rows=n,
        tokens=len(weight),
        width=weight.shape[1],
        numbers=numbers,
        compression=len(weight) / numbers,
        condition=condition,
        growth=growth,
        growth_random=_random(weight, numbers, config) if config.random else None,
        **{name: float(state[key]) if n else None for name, key in errors.items()},
        error_rms=float((state["square"] / n).sqrt()) if n else None,
        caveats=_caveats(inputs, weight, config),
    )
    return result, {
        "tokens": Array(carry["tokens"], ARRAYS["tokens"]),
        "singular_value": Array(carry["values"], ARRAYS["singular_value"]),
    }


def _widths(weight: Tensor, config: Config) -> tuple[int | None, int | None]:
    """Of hidden states and of logits, as far as rows may be either."""
    tokens, width = weight.shape
    return (width if config.rows != "logits" else None, tokens if config.rows != "hidden" else None)


def _random(weight: Tensor, numbers: int, config: Config) -> float | None:
    rng = torch.Generator().manual_seed(config.seed)
    tokens = torch.randperm(len(weight), generator=rng)[:numbers].to(weight.device)
    growth = logit_subspace.growth_of(weight, tokens)
    return growth if growth < float("inf") else None


def _caveats(inputs: Inputs, weight: Tensor, config: Config) -> tuple[str, ...]:
    if inputs.widths["x"] == _widths(weight, config)[0]:
        return (
            "log-probabilities are made from hidden states in float64: what the network itself rounds is not seen",
        )
    return (
        "the network rounds its logits, and this rounding grows as numbers do that were stored less exactly",
    )
