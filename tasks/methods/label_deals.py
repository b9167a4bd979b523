"""What labels that say nothing give where rows of one sample share the class: the label dealt to samples at random.

Samples are scattered over some hundreds of bundles, of which the pass keeps sums of rows. Deals give whole bundles to the classes, as many
to each as its share of the rows, so that rows of a sample stay together, and class means of any number of deals follow from the sums. Where
samples are no more than bundles, a deal is one of samples (of several captures, those of one number go together); else what differs from
class to class is known to about 1 / sqrt(128 directions) of itself. The scatter of all rows does not
depend on labels, so that what lies inside classes follows too.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.methods.collapse_measures import pooled
from tasks.methods.contract import Inputs, State
from tasks.numerics import class_moments, collapse
from tasks.numerics.split import scattered

BUNDLES, PER_CLASS = 256, 8
MOST_BYTES = 1 << 28
"""Of the bundles' sums."""
AT_ONCE = 512
"""Rows that stay in a core's cache: seven times as fast as whole blocks."""


class Chance(NamedTuple):
    """Mean and standard deviation over deals; NaN where bundles are too few."""

    vci: float
    vci_spread: float
    nc1: float
    nc1_spread: float


def carried(classes: int | None, width: int, inputs: Inputs) -> State:
    """How many bundles a pass keeps, of so many numbers each: none for classes that are not of samples, or for too many."""
    wanted = 0 if classes is None else max(BUNDLES, PER_CLASS * classes)
    fits = 8 * width * wanted <= MOST_BYTES
    own = inputs.n_samples <= wanted
    return {
        "bundles": torch.tensor((inputs.n_samples if own else wanted) if fits else 0),
        "bundle.own": torch.tensor(own),
    }


def partial(x: Tensor, sample: Tensor, w: Tensor, carry: State) -> State:
    """Sums over the rows of each bundle, and of their weights.

    Args:
        x: [row, number], of rows that have a class.
        sample: [row]
        w: [row], weights.
        carry: of `carried`.
    """
    bundles = int(carry["bundles"])
    total = torch.zeros((bundles, x.shape[1]), dtype=torch.float64, device=x.device)
    held = torch.zeros((bundles, 1), dtype=torch.float64, device=x.device)
    step = AT_ONCE if x.device.type == "cpu" else max(1, len(x))
    for rows in range(0, len(x) if bundles else 0, step):
        some = slice(rows, rows + step)
        place = sample[some] if bool(carry["bundle.own"]) else scattered(sample[some], bundles)
        _add(total, place, x[some].double() * w[some, None])
        _add(held, place, w[some, None])
    return {"bundle.sum": total, "bundle.w": held[:, 0]}


def dealt(
    state: State, size: Tensor, deals: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Means [class, number] and weights [class] of the classes, once for each deal; none where bundles are too few.

    Args:
        state: of `partial`, over all rows; an offset that all rows share is best taken off.
        size: [class], of the rows.
        deals: how many.
        rng: of the deals.
    """
    there = state["bundle.w"] > 0
    sums, w = state["bundle.sum"][there], state["bundle.w"][there]
    if len(w) <= len(size):
        return
    counts = torch.from_numpy(_counts(size.cpu().numpy(), len(w))).to(w.device)
    place = torch.repeat_interleave(torch.arange(len(size), device=w.device), counts)
    for _ in range(deals):
        order = torch.from_numpy(rng.permutation(len(w))).to(w.device)
        weight = class_moments.sums(w[order][:, None], place, counts)
        yield class_moments.sums(sums[order], place, counts) / weight, weight[:, 0]


def _add(total: Tensor, place: Tensor, values: Tensor) -> None:
    """Add rows in their places, in order; the same bits every time on a GPU too."""
    if total.device.type == "cpu":
        total.index_add_(0, place, values)
    elif len(values):
        there, order = torch.sort(place, stable=True)
        there, which, n = torch.unique_consecutive(there, return_inverse=True, return_counts=True)
        total[there] += class_moments.sums(values[order], which, n)


def chance(
    state: State, total: State, degrees: str, eps: float, deals: int, rng: np.random.Generator
) -> Chance:
    """VCI and NC1 of the label dealt to samples at random.

    Args:
        state: of `partial`, over all rows.
        total: class moments of the same rows.
        degrees: what scatter is divided by.
        eps: to which rows are rounded.
        deals: how many.
        rng: of the deals.

    Cost: O(feature^3 + deals (bundle feature + class feature min(class, feature))).
    """
    size = total["w"] / total["w"].sum()
    across = collapse.between(total["mean"], size)
    scatter = class_moments.scatter(total) + across.rows.T @ across.rows * total["w"].sum()
    white = collapse.whitening(scatter / total["w"].sum(), across.centre)
    moved = state["bundle.sum"] - state["bundle.w"][:, None] * across.centre
    found = [
        _measured(mean + across.centre, w, scatter, white, pooled(total, degrees), eps)
        for mean, w in dealt(state | {"bundle.sum": moved}, size, deals, rng)
    ]
    if not found:
        return Chance(*[math.nan] * 4)
    values = torch.tensor(found, dtype=torch.float64)
    middle, apart = values.mean(0).tolist(), values.std(0).tolist()
    return Chance(middle[0], apart[0], middle[1], apart[1])


def _measured(
    mean: Tensor, w: Tensor, scatter: Tensor, white: Tensor, divisor: float, eps: float
) -> tuple[float, float]:
    """VCI and NC1 of classes with these means and weights, of rows with this scatter in all."""
    across = collapse.between(mean, w / w.sum())
    alike = collapse.between(mean, torch.full_like(w, 1 / len(w)))
    explained = collapse.Explained(float((across.rows @ white).square().sum()), white.shape[1])
    within = (scatter - across.rows.T @ across.rows * w.sum()) / (divisor if divisor > 0 else math.nan)
    nc1 = collapse.within_over_between(within, alike, alike.known(eps)) / len(w)
    return collapse.variability_index(explained, across.rank), nc1


def _counts(size: np.ndarray, bundles: int) -> np.ndarray:
    """Bundles of each class: one at least, and else by its share of the rows, largest remainders first."""
    free = bundles - len(size)
    wanted = np.clip(size * bundles - 1, 0, None)
    wanted *= free / wanted.sum()
    counts: np.ndarray = np.floor(wanted).astype(np.int64)
    counts[np.argsort(counts - wanted, kind="stable")[: free - int(counts.sum())]] += 1
    counts += 1
    return counts
