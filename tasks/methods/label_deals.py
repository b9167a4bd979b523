"""What labels that say nothing give where rows of one sample share the class: the label dealt to samples at random.

Samples are spread over some hundreds of bundles, of which the pass keeps sums of rows. Deals give whole bundles to the classes, as many to
each as its share of the rows, so that rows of a sample stay together, and class means of any number of deals follow from the sums. Where
samples are no more than bundles, a deal is one of samples. The scatter of all rows does not depend on labels, so that what lies inside
classes follows too.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.methods.collapse_measures import pooled
from tasks.methods.contract import Block, State
from tasks.numerics import class_moments, collapse
from tasks.numerics.split import spread

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


def n_bundles(classes: int | None, width: int) -> int:
    """How many bundles a pass keeps: 0 for classes that are not of samples, or too many."""
    wanted = 0 if classes is None else max(BUNDLES, PER_CLASS * classes)
    return wanted if 8 * width * wanted <= MOST_BYTES else 0


def partial(block: Block, code: Tensor, bundles: int) -> State:
    """Sums of the rows of each bundle that have a class, and of their weights."""
    weight = torch.ones_like(code, dtype=torch.float64) if block.weight is None else block.weight.double()
    keep = (code >= 0) & (weight > 0) if bundles else torch.zeros_like(code, dtype=torch.bool)
    total = torch.zeros((bundles, block["x"].shape[1]), dtype=torch.float64, device=code.device)
    held = torch.zeros((bundles, 1), dtype=torch.float64, device=code.device)
    step = AT_ONCE if code.device.type == "cpu" else max(1, len(code))
    for rows in torch.split(torch.nonzero(keep).flatten(), step):
        bundle, w = spread(block.sample[rows], bundles), weight[rows][:, None]
        _add(total, bundle, block["x"][rows].double() * w)
        _add(held, bundle, w)
    return {"bundle.sum": total, "bundle.w": held[:, 0]}


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
    there = state["bundle.w"] > 0
    classes, size = len(total["code"]), total["w"] / total["w"].sum()
    if int(there.sum()) <= classes:
        return Chance(*[math.nan] * 4)
    centre = size @ total["mean"]
    w = state["bundle.w"][there]
    sums = state["bundle.sum"][there] - w[:, None] * centre
    across = collapse.between(total["mean"], size)
    scatter = class_moments.scatter(total) + across.rows.T @ across.rows * total["w"].sum()
    white = collapse.whitening(scatter / total["w"].sum(), across.centre)
    divisor = pooled(total, degrees)
    found = [
        _measured(mean + centre, weight, scatter, white, divisor, eps)
        for mean, weight in _dealt(sums, w, _counts(size, len(w)), deals, rng)
    ]
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


def _counts(size: Tensor, bundles: int) -> list[int]:
    """Bundles of each class: one at least, and else by its share of the rows, largest remainders first."""
    free = bundles - len(size)
    wanted = size.cpu().numpy() * bundles - 1
    wanted = np.clip(wanted, 0, None)
    wanted *= free / wanted.sum() if wanted.sum() > 0 else 0
    counts = np.floor(wanted).astype(int)
    rest = np.argsort(counts - wanted, kind="stable")[: free - int(counts.sum())]
    counts[rest] += 1
    return list((counts + 1).tolist())


def _dealt(
    sums: Tensor, w: Tensor, counts: list[int], deals: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Means and weights of the classes, once for each deal."""
    place = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(w.device)
    n = torch.tensor(counts, device=w.device)
    for _ in range(deals):
        order = torch.from_numpy(rng.permutation(len(w))).to(w.device)
        weight = class_moments.sums(w[order][:, None], place, n)
        yield class_moments.sums(sums[order], place, n) / weight, weight[:, 0]
