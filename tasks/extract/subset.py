"""A seeded part of the data in which every class keeps its share: from labels and lengths to indices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schemas.data import Subset
from schemas.errors import DataError, UnknownNameError, nearest


def choose(
    labels: Mapping[str, Sequence[Any]] | None,
    lengths: np.ndarray | None,
    subset: Subset,
    n_samples: int | None = None,
) -> np.ndarray:
    """Which samples are used.

    Each class is shuffled once by the seed, and a draw takes the first of each, so a larger draw of the same
    seed and data holds a smaller one up to rounding. Shares are counted in samples, rounded by largest
    remainder. With `max_tokens`, the number of samples is that whose draw comes nearest to so many tokens.

    Args:
        labels: label name to one value per sample.
        lengths: int64 [n], tokens of each sample; needed for `max_tokens`.
        subset: what is asked.
        n_samples: how many there are; may be left out where labels or lengths tell.

    Returns:
        int64 [m], sorted indices: data order is kept.

    Raises:
        UnknownNameError: if there is no label of the name to stratify by.
        DataError: if `max_tokens` is asked of samples without tokens, or the label is a measurement.

    Cost: one shuffle, and a few draws of numbers for each class.
    """
    n = _count(labels, lengths, n_samples)
    classes = _classes(labels or {}, subset.stratify_by, n)
    if subset.max_tokens is not None and lengths is None:
        raise DataError("subset.max_tokens was asked of samples that have no tokens; use max_samples")
    order, sizes = _without_first(*_shuffle(classes, subset.seed), subset.skip_samples)
    n -= min(n, subset.skip_samples)
    size = n if subset.max_samples is None else min(n, subset.max_samples)
    if subset.max_tokens is not None and lengths is not None:
        size = _nearest_size(order, sizes, np.asarray(lengths), size, subset.max_tokens)
    return np.sort(_draw(order, shares(sizes, size)))


def shares(sizes: np.ndarray, total: int) -> np.ndarray:
    """How many of each class a draw of `total` takes: its share, rounded by largest remainder.

    Args:
        sizes: int64 [class], how many there are; ties go to the class that comes first.
        total: at most the sum of sizes.

    Returns:
        int64 [class], summing to `total`, none above its size.
    """
    whole, part = np.divmod(sizes.astype(np.int64) * total, max(1, int(sizes.sum())))
    best = np.argsort(-part, kind="stable")[: total - int(whole.sum())]
    whole[best] += 1
    return whole


def _count(
    labels: Mapping[str, Sequence[Any]] | None, lengths: np.ndarray | None, n_samples: int | None
) -> int:
    counts = {len(column) for column in (labels or {}).values()}
    counts |= {len(lengths)} if lengths is not None else set()
    counts |= {n_samples} if n_samples is not None else set()
    if len(counts) != 1:
        raise DataError(
            f"labels, lengths and n_samples tell {sorted(counts) or 'nothing'} about the number of samples; "
            "expected one number"
        )
    return counts.pop()


def _classes(labels: Mapping[str, Sequence[Any]], name: str | None, n: int) -> np.ndarray:
    """int64 [n]: the class of each sample; classes are numbered in order of their names."""
    if name is None:
        return np.zeros(n, dtype=np.int64)
    if name not in labels:
        raise UnknownNameError(
            f"subset.stratify_by is {name!r}, no label of the data; nearest: {nearest(name, labels)}"
        )
    column = labels[name]
    if any(isinstance(value, float) for value in column[:1]):
        raise DataError(
            f"subset.stratify_by: label {name!r} holds measurements such as {column[0]}; expected classes"
        )
    codes = {value: code for code, value in enumerate(sorted(set(column)))}
    return np.array([codes[value] for value in column], dtype=np.int64)


def _shuffle(classes: np.ndarray, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The samples of each class in their order of drawing, and how many each has.

    Classes are in a seeded order too, so that ties between small ones do not follow the alphabet.
    """
    random = np.random.PCG64(seed % 2**64)
    order = _permutation(random, len(classes))
    by_class = order[np.argsort(classes[order], kind="stable")]
    sizes = np.bincount(classes)
    groups = np.split(by_class, np.cumsum(sizes)[:-1])
    turn = _permutation(random, len(sizes))
    return [groups[k] for k in turn], sizes[turn]


def _without_first(
    order: list[np.ndarray], sizes: np.ndarray, skipped: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """What is left of each class when so many samples have been drawn.

    Raises:
        DataError: if none is.
    """
    if skipped >= int(sizes.sum()) and skipped:
        raise DataError(
            f"subset.skip_samples is {skipped}, and there are {int(sizes.sum())} samples; lower it"
        )
    taken = shares(sizes, skipped)
    return [group[count:] for group, count in zip(order, taken, strict=True)], sizes - taken


def _permutation(random: np.random.PCG64, n: int) -> np.ndarray:
    """A permutation made of raw bits, which numpy promises never to change; its own shuffles may change."""
    return np.argsort(random.random_raw(n), kind="stable")


def _draw(order: Sequence[np.ndarray], counts: np.ndarray) -> np.ndarray:
    return np.concatenate([group[:count] for group, count in zip(order, counts, strict=True)])


def _nearest_size(
    order: Sequence[np.ndarray], sizes: np.ndarray, lengths: np.ndarray, largest: int, tokens: int
) -> int:
    """The number of samples, 1 to `largest`, whose draw holds nearest to `tokens` tokens: by bisection."""
    before = [np.concatenate([[0], np.cumsum(lengths[group])]) for group in order]

    def held(size: int) -> int:
        return int(sum(sums[k] for sums, k in zip(before, shares(sizes, size), strict=True)))

    low, high = 1, largest
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if held(middle) < tokens else (low, middle)
    return low - 1 if low > 1 and tokens - held(low - 1) < held(low) - tokens else low
