"""Sparse coefficients of many rows at once, each on candidates of its own: the elastic net, exactly, by an active set over rows together.

For a row x with candidates x_s, given by their products alone,

    min_c  tau |c|_1 + (1 - tau) / 2 |c|_2^2 + gamma / 2 |x - sum_s c_s x_s|^2,    where wanted with sum(c) = 1.

tau = 1 is the LASSO of sparse subspace clustering. Signs of the coefficients are guessed, which leaves a linear system; the line to its
solution is followed to the least objective, across zeros, and a coefficient that ends at zero leaves. Where nothing leaves any more,
zeros whose gradient is too large enter, several at once ("feature-sign search": Lee, Battle, Raina, Ng, NIPS 2006). One that would step
against its sign is sent back before the step; as entering ones together have a way down, never all are, and the objective falls
in every pass, also where the sum is held. Inverses of systems lose a row and a column by one product. Symmetric matrices are multiplied
from the left: from the right, a single row's product has other rounding than one among many.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

ENTER = 8
"""Coefficients that may enter in one pass, or a quarter of those that are there, whichever is more."""
PAD = 16
"""Systems are as large as active sets, in steps of this. Rows are solved with rows of their size: others have no part in their rounding."""
RIDGE = 1e-13
"""Of the trace, added to the diagonal: where candidates depend on each other the step then goes along what they leave open, to a zero."""
COARSE = 1e-6
"""The same for a system that is not positive even so, as products in single precision may be; steps are then repeated."""
FRAGILE = 1e6
"""An inverse this large against its system is computed anew rather than made smaller by a product."""
TIE = 1e-8
"""Gradients this close, relatively, may be of one candidate twice: at tau = 1, where any share of both is as good, only one enters."""


class Solution(NamedTuple):
    """Coefficients, and a certificate."""

    c: Float64[Tensor, "row candidate"]
    violation: Float64[Tensor, " row"]
    """By how much the optimality conditions fail at worst, in units of tau, at the best multiplier of a held sum: 0 at the minimum."""
    iterations: int
    """Passes until the last row was done."""


class _Problem(NamedTuple):
    gram: Float64[Tensor, "row candidate candidate"]
    target: Float64[Tensor, "row candidate"]
    gamma: Float64[Tensor, " row"]
    valid: Bool[Tensor, "row candidate"]
    tau: float
    affine: bool


class _Rows(NamedTuple):
    """Rows that are not done; gradients are of the smooth part, downwards, with the multiplier."""

    row: Int64[Tensor, " row"]
    c: Float64[Tensor, "row candidate"]
    gradient: Float64[Tensor, "row candidate"]
    violation: Float64[Tensor, " row"]

    def of(self, which: Tensor) -> "_Rows":
        return _Rows(*(part[which] for part in self))


def gamma_for(largest: Float64[Tensor, " row"], gamma: float, tau: float) -> Float64[Tensor, " row"]:
    """Weights of the residual that mean the same for every row: all coefficients are 0 up to `gamma` = 1 (You et al., CVPR 2016).

    Args:
        largest: max over all other rows j of |x_j . x_i|.
        gamma: above 1.
        tau: in (0, 1].

    Returns:
        gamma tau / largest; 0 where `largest` is.
    """
    return torch.where(largest > 0, gamma * tau / largest, torch.zeros_like(largest))


def solve(
    gram: Float64[Tensor, "row candidate candidate"],
    target: Float64[Tensor, "row candidate"],
    gamma: Float64[Tensor, " row"],
    tau: float,
    start: Float64[Tensor, "row candidate"] | None = None,
    valid: Bool[Tensor, "row candidate"] | None = None,
    affine: bool = False,
    tolerance: float = 1e-10,
    passes: int = 200,
) -> Solution:
    """The minimum of every row.

    Args:
        gram: products of a row's candidates, positive semidefinite up to rounding.
        target: products of the row with its candidates.
        gamma: weights of the residual, not negative.
        tau: share of |c|_1, in (0, 1].
        start: coefficients to begin with, such as those on fewer candidates; 0 if not given.
        valid: which candidates count; a row of which none does gets zeros and no violation.
        affine: coefficients of a row sum to 1.
        tolerance: violation at which a row is done; one that rounding keeps above it is done as well.
        passes: at most. What is not done by then shows in `violation`.

    Below tau = 1 the minimum is unique. At tau = 1 it may not be; then this is one of them.
    Cost: a pass reads active x candidate products of a row and inverts active^3; 5 to 15 are needed, 30 where nearly as many
    are active as there are dimensions. Memory: `gram`, and of each row active x (candidates + 4 active).
    What rounding leaves of a violation grows with gamma: 1e-9 at 1e6, and 1e-6 there at tau = 1 with candidates that differ by 1e-7.
    """
    if not 0 < tau <= 1:
        raise ValueError(
            f"tau is {tau}; expected more than 0 and at most 1: the share of |c|_1 in the penalty"
        )
    valid = torch.ones_like(target, dtype=torch.bool) if valid is None else valid
    problem = _Problem(gram.contiguous(), target, gamma, valid, tau, affine)
    c = _begin(problem, start)
    gradient = gamma[:, None] * (target - (c[:, None] @ gram)[:, 0]) - (1 - tau) * c
    live = _certified(problem, torch.arange(len(c), device=c.device), c, gradient)
    violation, done = live.violation.clone(), 0
    live = live.of(violation > tolerance)
    while done < passes and len(live.row):
        live, going = _pass(problem, live, tolerance)
        c[live.row], violation[live.row] = live.c, live.violation
        live, done = live.of(going & (live.violation > tolerance)), done + 1
    return Solution(c, violation, done)


def _begin(problem: _Problem, start: Tensor | None) -> Tensor:
    """Where to begin; with a sum to hold, the start over its sum, or else the best candidate alone."""
    c = torch.zeros_like(problem.target) if start is None else start * problem.valid
    if not problem.affine or not c.shape[1]:
        return c
    alone = problem.gram.diagonal(dim1=1, dim2=2) / 2 - problem.target
    best = alone.masked_fill(~problem.valid, torch.inf).argmin(1, keepdim=True)
    one = torch.zeros_like(c).scatter_(1, best, 1.0) * problem.valid
    total = c.sum(1, keepdim=True)
    return torch.where(total > 0.1, c / total.clamp(min=0.1), one)


def _certified(problem: _Problem, row: Tensor, c: Tensor, gradient: Tensor) -> _Rows:
    """Measures violations, and adds the multiplier of a held sum.

    Every candidate wants the multiplier in an interval: the middle is best for the worst of them, and so for the certificate. What may
    enter is seen at the multiplier of the non-zeros instead, which makes their own gradients right.
    """
    if not c.shape[1]:
        return _Rows(row, c, gradient, torch.zeros_like(problem.gamma[row]))
    there, pull = c != 0, problem.tau * c.sign() - gradient
    slack = problem.tau * (~there).to(c.dtype).masked_fill(~problem.valid[row], torch.inf)
    low, high = (pull - slack).amax(1), (pull + slack).amin(1)
    middle = torch.zeros_like(low)
    if problem.affine:
        middle = torch.where(low.isfinite(), (low + high) / 2, 0.0)
        gradient = gradient + ((pull * there).sum(1) / there.sum(1).clamp(min=1))[:, None]
    return _Rows(row, c, gradient, torch.maximum(low - middle, middle - high).clamp(min=0) / problem.tau)


def _pass(problem: _Problem, live: _Rows, tolerance: float) -> tuple[_Rows, Tensor]:
    """Let coefficients enter and solve on those that are there; also, which rows got anywhere."""
    entering = _entering(problem, live, tolerance)
    pattern = torch.where(entering, live.gradient.sign(), live.c.sign())
    width = (((pattern != 0).sum(1) + PAD - 1) // PAD * PAD).clamp(max=pattern.shape[1])
    c, gradient = live.c.clone(), live.gradient.clone()
    simple = torch.zeros_like(entering[:, 0])
    for size in sorted(set(width.tolist())):
        which = (width == size).nonzero()[:, 0]
        c[which], gradient[which], simple[which] = _step(problem, live.of(which), pattern[which], size)
    after = _certified(problem, live.row, c, gradient)
    refined = simple & ~entering.any(1)
    stuck = (refined & (after.violation > live.violation / 2)) | (c == live.c).all(1)
    return after, ~stuck


def _entering(problem: _Problem, live: _Rows, tolerance: float) -> Tensor:
    """The zeros whose gradients are largest, if too large."""
    size, there = live.gradient.abs(), live.c != 0
    out = ~there & problem.valid[live.row] & (size > problem.tau * (1 + tolerance))
    place = torch.arange(size.shape[1], device=size.device)
    size = torch.where(out | there, size * (1 - 1e-3 * TIE / len(place) * place), 0.0)
    if problem.tau == 1:
        ranked, order = (size * (1 + TIE / 2 * there)).sort(1, descending=True)
        tied = torch.zeros_like(out)
        tied[:, 1:] = ranked[:, 1:] > ranked[:, :-1] * (1 - TIE)
        out &= ~torch.zeros_like(out).scatter(1, order, tied)
    room = (there.sum(1, keepdim=True) // 4).clamp(min=ENTER)
    ranked, order = torch.where(out, size, 0.0).sort(1, descending=True)
    return torch.zeros_like(out).scatter(1, order, (place < room) & (ranked > 0))


def _step(problem: _Problem, live: _Rows, pattern: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients and gradients at the minimum over a pattern and what becomes of it; and whether nothing crossed zero."""
    index, inside = _places(pattern != 0, width)
    count, candidates = pattern.shape
    flat = (live.row[:, None] * candidates + index).reshape(-1)
    rows = problem.gram.view(-1, candidates).index_select(0, flat).view(count, width, candidates)
    gamma = problem.gamma[live.row]
    system = gamma[:, None, None] * rows.gather(2, index[:, None].expand(-1, width, -1))
    system.diagonal(dim1=1, dim2=2).add_(1 - problem.tau)
    sign, at, gradient = (part.gather(1, index) * inside for part in (pattern, live.c, live.gradient))
    at, simple = _settle(problem, system, sign, at, gradient)
    c = torch.zeros_like(live.c).scatter_add_(1, index, at)
    fit = (at[:, None] @ rows)[:, 0]
    return c, gamma[:, None] * (problem.target[live.row] - fit) - (1 - problem.tau) * c, simple


def _places(mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Columns of a mask's entries, row by row, filled up to a width; and which are filled."""
    row, column = mask.nonzero().unbind(1)
    index = torch.zeros(len(mask), width, dtype=torch.int64, device=mask.device)
    index[row, mask.cumsum(1)[row, column] - 1] = column
    return index, torch.arange(width, device=mask.device) < mask.sum(1, keepdim=True)


def _settle(
    problem: _Problem, system: Tensor, sign: Tensor, at: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Steps to the minimum over what stays, one leaving at a time; and whether the first step was all."""
    row, end = torch.arange(len(at), device=at.device), at.clone()
    simple = torch.ones_like(row, dtype=torch.bool)
    inverse, fragile = _inverse(problem, system, sign != 0)
    for _ in range(4 * at.shape[1]):
        inside = sign != 0
        rest = torch.where(inside, gradient - problem.tau * sign, 0.0)
        step = (rest[:, None] @ inverse)[:, 0]
        if problem.affine:  # what rounding leaves of its sum would stay for good
            step = step - inside * (step.sum(1) / inside.sum(1))[:, None]
        against = torch.where((at == 0) & (step * sign < 0), step.abs(), 0.0)
        back = against.amax(1) > 0
        t, new, leaving = _least(at, step, (rest * step).sum(1).masked_fill(back, 0.0), problem.tau)
        leaving = torch.where(back[:, None], against == against.amax(1, keepdim=True), leaving)
        again = back | leaving.any(1) | (new * at < 0).any(1)
        end[row], simple[row] = new, simple[row] & ~again
        on = again.nonzero()[:, 0]
        if not len(on):
            break
        gradient = gradient[on] - t[on, None] * rest[on]
        row, at, leaving, sign = row[on], new[on], leaving[on], sign[on]
        sign = torch.where(at != 0, at.sign(), sign)
        inverse, fragile = _without(inverse[on], leaving), fragile[on]
        sign.masked_fill_(_first(leaving), 0.0)
        bad = fragile.nonzero()[:, 0]
        if len(bad):
            inverse[bad], fragile[bad] = _inverse(problem, system[row[bad]], sign[bad] != 0)
    return end, simple


def _inverse(problem: _Problem, system: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Of systems without what is outside, zero there, at a constant sum where one is held; and which are near singular."""
    both = inside[:, :, None] & inside[:, None]
    whole = torch.where(both, system, 0.0)
    diagonal = whole.diagonal(dim1=1, dim2=2)
    trace = diagonal.sum(1, keepdim=True)
    if problem.affine:
        whole += both * (trace / inside.sum(1, keepdim=True))[..., None]
    diagonal += torch.where(inside, torch.where(trace > 0, RIDGE * trace, 1.0), 1.0)
    factor, failed = torch.linalg.cholesky_ex(whole)
    again = failed.nonzero()[:, 0]
    if len(again):
        diagonal[again] += COARSE * trace[again]
        factor[again] = torch.linalg.cholesky_ex(whole[again])[0]
    inverse = torch.where(both, torch.cholesky_inverse(factor), 0.0)
    if problem.affine:
        sums = inverse.sum(2)
        inverse -= sums[:, :, None] * (sums / sums.sum(1, keepdim=True))[:, None]
    return inverse, (inverse.diagonal(dim1=1, dim2=2) * diagonal * inside).amax(1) > FRAGILE


def _first(mask: Tensor) -> Tensor:
    """The first entry of every row."""
    return mask & (mask.cumsum(1) == 1)


def _without(inverse: Tensor, leaving: Tensor) -> Tensor:
    """Inverses of systems without the first that leaves, in place."""
    has, which = leaving.any(1), leaving.int().argmax(1)
    here = torch.arange(len(inverse), device=inverse.device)
    column = inverse[here, which]
    pivot = column[here, which]
    inverse.baddbmm_(column[:, :, None], (column * torch.where(has, -1 / pivot, 0.0)[:, None])[:, None])
    gone = here[has], which[has]
    inverse[gone] = 0.0
    inverse[gone[0], :, gone[1]] = 0.0
    return inverse


def _least(at: Tensor, step: Tensor, fall: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """The least objective along steps: how far, where that is, and which coefficients end at zero.

    Along a step the objective's slope is -(1 - t) fall, and grows by 2 tau |step| where a coefficient crosses zero.
    """
    when = torch.where(at * step < 0, -at / step, torch.inf)
    times, order = when.sort(1)
    jump = torch.where(times.isfinite(), 2 * tau * step.abs().gather(1, order), 0.0)
    after = jump.cumsum(1)
    stop = times >= 1 - after / fall[:, None]
    none = ~stop.any(1)
    first = stop.int().argmax(1, keepdim=True)
    before = torch.where(none, after[:, -1], (after - jump).gather(1, first)[:, 0])
    free = 1 - before / fall
    edge = torch.where(none, torch.inf, times.gather(1, first)[:, 0])
    t = torch.where(fall > 0, torch.minimum(free, edge), 0.0)
    leaving = (when == edge[:, None]) & (t == edge)[:, None]
    new = torch.where(t[:, None] > 0, at + t[:, None] * step, at)
    return t, torch.where(leaving, 0.0, new), leaving
