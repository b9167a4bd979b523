"""The weights of a linear layer as a dictionary of directions of its inputs, of which every output takes a few.

With G the second moment of the inputs and R its root, |(W - W') R|_F is the root of E|W x - W' x|^2. A = R W^T [input, output] is taken
apart into D S, every column of S with the same few entries, and W'^T = R^-1 D S. Eigenvalues of G are at least 1e-9 of their mean, so
that R has an inverse.

`orthogonal` (COMPOT): D has orthonormal columns; in turn the largest entries of D^T A are kept, which is the best S, and D is turned to fit
S best (Procrustes). The error never grows. `free` (CoSpaDi, in the form of the method of optimal directions rather than K-SVD): in turn
orthogonal matching pursuit chooses S and least squares choose D; the error may grow, and the best step is kept. The first starts from the
leading left singular vectors of A, the second from the first, so that it is never worse.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import spectrum

Form = Literal["orthogonal", "free"]
FLOOR = 1e-9
"""Smallest eigenvalue over the mean of all."""
DEPENDENT = 1e-10
"""An atom with no more than this share of its squared length outside of the atoms taken adds nothing."""
GROWTH = 1e-12
"""Of a loss by rounding alone."""
AT_ONCE = 1 << 23
"""Numbers of a pursuit of some outputs."""


class Sizes(NamedTuple):
    """Of a dictionary."""

    atoms: int
    entries: int
    """Atoms of an output."""


class Sparse(NamedTuple):
    """A [input, output] ~ D S."""

    dictionary: Float64[Tensor, "input atom"]
    value: Float64[Tensor, "output entry"]
    atom: Int64[Tensor, "output entry"]
    """Ascending in each row."""
    losses: Float64[Tensor, " step"]
    """|A - D S|^2 / |A|^2 after each step."""

    def product(self) -> Float64[Tensor, "input output"]:
        """D S."""
        return self.dictionary @ _spread(self.value, self.atom, self.dictionary.shape[1]).T


def sizes(inputs: int, outputs: int, kept: float) -> Sizes:
    """Atoms and entries that cost no more than a share of the weights, about two atoms for an entry.

    An atom costs as many numbers as there are inputs, an entry one number, and a bit tells for every output and atom whether there is an
    entry, which is a sixteenth of a number of 16 bits.

    Raises:
        MethodError: if not even one entry for every output can be paid for.
    """
    budget, per_atom, most = kept * inputs * outputs, inputs + outputs / 16, min(inputs, outputs)
    entries = math.floor(budget / (2 * per_atom + outputs))
    atoms = min(most, math.floor((budget - outputs * entries) / per_atom))
    entries = min(atoms, math.floor((budget - atoms * per_atom) / outputs))
    if entries < 1:
        raise MethodError(
            f"a share of {kept:g} of {outputs} x {inputs} weights pays for no dictionary with an entry for every output; raise kept"
        )
    return Sizes(atoms, entries)


def of_weight(
    weight: Float64[Tensor, "output input"],
    gram: Float64[Tensor, "input input"],
    size: Sizes,
    iterations: int,
    form: Form,
) -> Sparse:
    """W^T ~ D S for inputs of a second moment.

    Args:
        weight: finite, with outputs that are not all zero.
        gram: G.
        size: no more atoms than inputs or outputs.
        iterations: choices of the dictionary, at least one; for `free`, after as many of the orthogonal one.

    Raises:
        MethodError: if a decomposition fails.

    Cost: O(input^3) and that of `orthogonal` or `free`.
    """
    found = spectrum.eigen(gram)
    values = found.values.clamp(min=FLOOR * float(found.values.mean())).sqrt()
    root, inverse = (found.vectors.T * each @ found.vectors for each in (values, 1 / values))
    made = (orthogonal if form == "orthogonal" else free)(root @ weight.T, size, iterations)
    return made._replace(dictionary=inverse @ made.dictionary)


def orthogonal(a: Float64[Tensor, "input output"], size: Sizes, iterations: int) -> Sparse:
    """A dictionary with orthonormal atoms.

    Args:
        a: not zero.
        size: no more atoms than inputs or outputs.
        iterations: turns of the dictionary.

    Raises:
        MethodError: if the error grows from a step to the next, which only a failing decomposition can do.

    Cost: O(input output atom) and a decomposition [input, atom] for each step.
    """
    dictionary, losses = _leading(a, size.atoms), [math.inf]
    for step in range(iterations + 1):
        along = (dictionary.T @ a).T
        atom = along.abs().topk(size.entries, dim=1).indices.sort(dim=1).values
        value = along.gather(1, atom)
        losses.append(_loss(a, dictionary, spread := _spread(value, atom, size.atoms)))
        if losses[-1] > losses[-2] + GROWTH:
            raise MethodError(
                f"the dictionary lost {losses[-2]:.6g} and after step {step} {losses[-1]:.6g}, expected less each time; "
                "the singular value decomposition of this torch build fails for these sizes"
            )
        if step < iterations:
            u, _, v = torch.linalg.svd(a @ spread, full_matrices=False)
            dictionary = u @ v
    return Sparse(dictionary, value, atom, torch.tensor(losses[1:], dtype=torch.float64))


def free(a: Float64[Tensor, "input output"], size: Sizes, iterations: int) -> Sparse:
    """A dictionary with atoms at any angles, from the orthogonal one on; of all steps the one with the smallest error.

    Args:
        a: not zero.
        size: no more atoms than inputs or outputs.
        iterations: choices of the dictionary, after as many of the orthogonal one.

    Raises:
        MethodError: as `orthogonal`.

    Cost: O(output atom entry^2 + input output atom) for each step.
    """
    best = orthogonal(a, size, iterations)
    atoms, losses = best.dictionary, best.losses[-1:].tolist()
    for _ in range(iterations):
        value, atom = pursuit(atoms.T @ atoms, (atoms.T @ a).T.contiguous(), size.entries)
        spread = _spread(value, atom, size.atoms)
        solved = torch.linalg.lstsq(
            spread.cpu(), a.T.cpu(), driver="gelsd"
        )  # CUDA has no driver for deficient ranks
        found = solved.solution.T.to(a.device)
        losses.append(_loss(a, found, spread))
        if losses[-1] == min(losses):
            best = best._replace(dictionary=found, value=value, atom=atom)
        length = torch.linalg.vector_norm(found, dim=0)
        atoms = torch.where(length > 0, found / torch.where(length > 0, length, 1.0), atoms)
    return best._replace(losses=torch.tensor(losses, dtype=torch.float64))


def pursuit(
    gram: Float64[Tensor, "atom atom"], along: Float64[Tensor, "output atom"], entries: int
) -> tuple[Float64[Tensor, "output entry"], Int64[Tensor, "output entry"]]:
    """Orthogonal matching pursuit of all outputs at once, by products alone (Rubinstein, Zibulevsky, Elad 2008).

    Args:
        gram: products of the atoms, which have unit length.
        along: products of each output with the atoms.
        entries: no more than atoms.

    Returns:
        Values and atoms, ascending; an atom that adds nothing has the value 0.

    Cost: O(output atom entry^2); `AT_ONCE` numbers of memory.
    """
    some = max(1, AT_ONCE // (len(gram) * entries))
    found = [_pursued(gram, part, entries) for part in torch.split(along, some)]
    value, index = (torch.cat(each) for each in zip(*found, strict=True))
    order = index.argsort(dim=1)
    return value.gather(1, order), index.gather(1, order)


def _pursued(gram: Tensor, along: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """The atoms taken are made orthonormal one after the other; `seen` are their products with all atoms."""
    n, every = len(along), torch.arange(len(along), device=along.device)
    seen, left = along.new_zeros(n, entries, along.shape[1]), along.clone()
    triangle, coordinate = along.new_zeros(n, entries, entries), along.new_zeros(n, entries)
    index = torch.zeros(n, entries, dtype=torch.int64, device=along.device)
    barred = torch.zeros_like(along, dtype=torch.bool)
    for t in range(entries):
        chosen = left.abs().masked_fill_(barred, -1).argmax(1)
        barred[every, chosen], index[:, t] = True, chosen
        inside = seen[every, :t, chosen]
        outside = gram[chosen, chosen] - inside.square().sum(1)
        adds = outside > DEPENDENT
        length = torch.where(adds, outside, 1.0).sqrt()
        new = (gram[chosen] - (inside[:, None] @ seen[:, :t])[:, 0]) / length[:, None]
        seen[:, t] = torch.where(adds[:, None], new, 0.0)
        coordinate[:, t] = torch.where(adds, left[every, chosen] / length, 0.0)
        triangle[:, :t, t] = torch.where(adds[:, None], inside, 0.0)
        triangle[:, t, t] = length
        left -= coordinate[:, t, None] * seen[:, t]
    value: Tensor = torch.linalg.solve_triangular(triangle, coordinate[..., None], upper=True)
    return value[..., 0], index


def _leading(a: Tensor, atoms: int) -> Float64[Tensor, "input atom"]:
    """Leading left singular vectors, whose signs the right ones settle."""
    u, _, v = torch.linalg.svd(a, full_matrices=False)
    sign = (v * spectrum.signed(v)).sum(1).sign()
    return torch.mul(u, sign)[:, :atoms].contiguous()


def _loss(a: Tensor, dictionary: Tensor, spread: Tensor) -> float:
    return float((a - dictionary @ spread.T).square().sum() / a.square().sum())


def _spread(value: Tensor, index: Tensor, atoms: int) -> Float64[Tensor, "output atom"]:
    """With its zeros."""
    return value.new_zeros(len(value), atoms).scatter_(1, index, value)
