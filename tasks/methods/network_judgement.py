"""What a network and changed copies of it say of samples, and how much they have in common: numbers with intervals."""

import math
from collections.abc import Callable, Sequence
from functools import partial as bind
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from schemas.base import Frozen
from tasks.methods import grouped_moments, module_outputs
from tasks.methods.contract import NetworkView, State
from tasks.methods.grouped_moments import Interval
from tasks.methods.module_outputs import Changed, Kept
from tasks.numerics import output_quality, row_sample

GIVES = ("tokens", "classes", "embeddings")
MEASURES = ("loss", "agreement", "divergence", "rank_correlation", "recall", "cosine")
SUMS = ("loss", "right", "divergence", "agreement")
"""Of a sample, over its targets (the first two) or rows."""
COUNTS = 2


@runtime_checkable
class Options(Protocol):
    """How judgement is made."""

    @property
    def neighbours(self) -> int: ...

    @property
    def pairs(self) -> int: ...

    @property
    def groups(self) -> int: ...

    @property
    def confidence(self) -> float: ...

    @property
    def seed(self) -> int: ...


class Point(Frozen):
    """A candidate: its size and what is left of the network. Numbers that have no meaning for what the network gives are None."""

    name: str
    way: str
    """The name without the share that was asked for."""
    kept: float
    """Bytes of the layers over those before, biases included."""
    stored_bytes: int
    """Of the layers."""
    kept_numbers: float
    """Numbers of the layers over those before, where codes of few bits count as one."""
    kept_products: float
    """Multiplications that the layers take for a row over those before, without those that make weights of what is held. A mixture of
    experts counts for none: a row chooses as many experts as before."""
    kept_of_network: float
    """Bytes of the whole network's parameters over those before."""
    loss: Interval | None
    """Mean over targets; None for products with random vectors."""
    perplexity: float | None
    """Of tokens."""
    right: float | None
    """Share of targets with the largest logit."""
    agreement: Interval | None
    """Share of tokens or samples with the same largest logit as before."""
    divergence: Interval | None
    """Mean Kullback-Leibler divergence from the distributions before, in nats."""
    rank_correlation: Interval | None
    """Spearman's, of cosines between samples before and after."""
    recall: Interval | None
    """Share of nearest others that were nearest before."""
    cosine: Interval | None
    """Mean cosine of embeddings before and after."""


class Heard(NamedTuple):
    """What networks say of a batch."""

    table: Float64[Tensor, "sample number"]
    """For each sample its targets and rows; for each network the `SUMS`, then its embedding where it gives embeddings."""
    errors: Float64[Tensor, "network module side"]
    """Sums of squares of what a module's outputs changed by against the first network, and of the outputs there; NaN where there is
    nothing to compare."""


@torch.no_grad()
def said_by(view: NetworkView, networks: Sequence[nn.Module], watched: Sequence[str]) -> Heard:
    """What networks say of a batch.

    Args:
        view: the batch.
        networks: the first is what others are compared with.
        watched: modules whose outputs are compared; those of the first are held.
    """
    counts = (
        view.mask.sum(1)
        if view.gives == "tokens" and view.mask is not None
        else torch.ones_like(view.targets)
    )
    owner = torch.repeat_interleave(torch.arange(view.n), counts.cpu())
    parts, errors = [torch.stack([view.targets, counts.to(view.targets)], 1).double().cpu()], []
    kept, before = Kept(), None
    for network in networks:
        changed = Changed(kept)
        hear = kept.hear if before is None else changed.hear
        with module_outputs.listening(network, watched, view.mask, hear):
            output = view.output(module=network)
        rows = view.rows_of(output)
        before = rows if before is None else before
        errors.append(kept.squares(watched) if hear == kept.hear else changed.squares(watched))
        sums = torch.zeros(view.n, len(SUMS), dtype=torch.float64)
        sums[:, 0] = view.summed(view.loss_of(output)).double().cpu() if view.tells else math.nan
        if view.gives != "embeddings":
            sums[:, 1] = view.right(output).cpu() * view.targets.cpu()
            sums[:, 2].index_add_(0, owner, output_quality.divergence(before, rows).cpu())
            sums[:, 3].index_add_(0, owner, (rows.argmax(1) == before.argmax(1)).double().cpu())
        parts.append(sums)
        if view.gives == "embeddings":
            parts.append(rows.double().cpu())
    return Heard(torch.cat(parts, 1), torch.stack(errors))


class Said(NamedTuple):
    """What networks say of the samples that are judged by."""

    targets: Float64[Tensor, " sample"]
    rows: Float64[Tensor, " sample"]
    sums: Float64[Tensor, "sample network sum"]
    embeddings: Float64[Tensor, "network sample feature"]

    @classmethod
    def of(cls, state: State, networks: int) -> "Said":
        """From a sample of what `said_by` gave; none where no sample is good."""
        values = (
            row_sample.values(state)
            if "key" in state
            else torch.zeros(0, COUNTS + networks * len(SUMS)).double()
        )
        each = values[:, COUNTS:].reshape(len(values), networks, (values.shape[1] - COUNTS) // networks)
        return cls(
            values[:, 0], values[:, 1], each[:, :, : len(SUMS)], each[:, :, len(SUMS) :].transpose(0, 1)
        )

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.targets)


class Judge:
    """Compares every network with the first, over all samples and over all but each group."""

    def __init__(self, said: Said, gives: str, options: Options) -> None:
        self.gives = gives
        self.judged_by = "rank_correlation" if gives == "embeddings" else "loss"
        self._said, self._options = said, options
        group = torch.arange(said.n) % options.groups  # samples are in a random order
        self._parts = [
            torch.ones(said.n, dtype=torch.bool),
            *(group != g for g in range(options.groups) if bool((group == g).any())),
        ]
        self._pairs = output_quality.drawn_pairs(said.n, options.pairs, options.seed)

    def point(self, name: str, way: str, number: int, sizes: Float64[Tensor, "network size"]) -> Point:
        """A network's size and what it has in common with the first.

        Args:
            name: of the network.
            way: its name without a share.
            number: its place.
            sizes: `SIZES` of every network.
        """
        found, shares = self._measures(number), sizes[number] / sizes[0].clamp(min=1)
        intervals = {measure: self._interval(measure, values) for measure, values in found.items()}
        loss = intervals.pop("loss")
        value = math.nan if loss is None else loss.value
        right = (
            float(self._said.sums[:, number, 1].sum() / self._said.targets.sum())
            if self.gives != "embeddings"
            else None
        )
        return Point(
            name=name,
            way=way,
            kept=float(shares[0]),
            stored_bytes=int(sizes[number, 0]),
            kept_numbers=float(shares[2]),
            kept_products=float(shares[3]),
            kept_of_network=float(shares[1]),
            loss=loss,
            perplexity=math.exp(min(value, 700)) if self.gives == "tokens" else None,
            right=right,
            **{measure: intervals.get(measure) for measure in MEASURES if measure != "loss"},
        )

    def _interval(self, measure: str, values: list[float]) -> Interval | None:
        """By leaving out groups."""
        value, without, confidence = values[0], values[1:], self._options.confidence
        if measure in ("rank_correlation", "cosine"):
            return grouped_moments.cosine_interval(value, without, confidence)
        most = math.inf if measure in ("loss", "divergence") else 1.0
        return grouped_moments.interval(value, without, confidence, most)

    def _measures(self, number: int) -> dict[str, list[float]]:
        """Each over all samples, then without each group."""
        said = self._said
        found = {"loss": self._over(lambda some: said.sums[some, number, 0].sum() / said.targets[some].sum())}
        if self.gives != "embeddings":
            return found | {
                measure: self._over(bind(self._mean, number, measure))
                for measure in ("divergence", "agreement")
            }
        before, after = said.embeddings[0], said.embeddings[number]
        was, now = (output_quality.cosines(rows, self._pairs) for rows in (before, after))
        near = output_quality.recall(before, after, self._options.neighbours)
        same = torch.cosine_similarity(before, after, dim=1).clamp(-1, 1)
        found["rank_correlation"] = [
            output_quality.rank_correlation(was[inside], now[inside])
            for inside in (some[self._pairs].all(1) for some in self._parts)
        ]
        return found | {
            "recall": self._over(lambda some: near[some].mean()),
            "cosine": self._over(lambda some: same[some].mean()),
        }

    def _mean(self, number: int, measure: str, some: Tensor) -> Tensor:
        """Over rows of some samples."""
        return self._said.sums[some, number, SUMS.index(measure)].sum() / self._said.rows[some].sum()

    def _over(self, measure: Callable[[Tensor], Tensor]) -> list[float]:
        return [float(measure(some)) for some in self._parts]
