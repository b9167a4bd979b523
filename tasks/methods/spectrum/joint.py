"""Which sites can share one basis: the error of a joint decomposition of any group, and groups that keep within a wanted one.

Every member stands for the second moment that its principal components hold, scaled to trace 1. The joint rank-r basis of a group leaves
out 1 - (sum of the r largest eigenvalues of the sum of its members') / members: exact up to what the artifacts themselves left out, which
is counted as lost. Beside it stand bounds that need no joint decomposition, and the estimate of one that appends member after member.

Arrays: `member_group` (member); `error` (group): share of the variance that a group's basis leaves out; `member_error` (member): of each
in its group's basis; `basis` (group, component, feature): orthonormal rows; `pair_error`, `pair_bound`, `pair_bound_loose` (member, other).
"""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, ArtifactPort, Inputs, Member
from tasks.methods.subspace_series import refuse_mixed
from tasks.numerics.spectrum import signed
from tasks.numerics.symmetric import row_products
from tasks.numerics.updating import append_rows, truncated

VERSION = 1
KIND = "combine"
READS = {"pca": ArtifactPort("spectrum.pca", several=True, least=2, one_width=True)}
ARRAYS = {
    "member_group": ("member",),
    "error": ("group",),
    "member_error": ("member",),
    "basis": ("group", "component", "feature"),
    "pair_error": ("member", "other"),
    "pair_bound": ("member", "other"),
    "pair_bound_loose": ("member", "other"),
}
REFERENCE = (
    "Shamrai, Concatenated matrix SVD: compression bounds, incremental approximation, and error-constrained clustering (2026), from its "
    "abstract: the bounds are the interlacing of singular values (loose) and Ky Fan's maximum principle (tight). Updates: Brand 2006"
)
SEEDS = (149,)
MOST = 256
"""Members: pairs are all compared."""


class Config(Frozen):
    """How large the basis, and how much may be left out."""

    rank: int = Field(default=16, ge=1)
    """Basis vectors of a group."""
    tolerance: float = Field(default=0.1, gt=0, lt=1)
    """Share of the variance that a group's basis may leave out, over the group."""
    contiguous: bool = False
    """Only neighbours in the order of the series may be in one group, as layers are."""


class Result(Frozen):
    """What can be shared."""

    members: tuple[str, ...]
    """In the order of the arrays."""
    rank: int
    n_groups: int
    groups: tuple[tuple[str, ...], ...]
    """The members of each."""
    worst_error: float
    """Largest share left out by a group's basis; above the tolerance only where a member alone is."""
    alone: int
    """Members that a basis of their own leaves more of than the tolerance."""
    stored: float
    """Basis vectors of all groups over those of all members, each with its own."""
    bounds_violated: int
    """Pairs whose error is larger than a bound: none, or the mathematics is wrong."""
    bound_slack: float
    """Median of the tight bound less the error, over pairs."""
    incremental_slack: float
    """Largest difference between a group's error by appending its members one by one and the exact one."""
    unseen: float
    """Largest share of a member's variance that its artifact does not hold, counted as left out."""
    caveats: tuple[str, ...]


class _Part(NamedTuple):
    """A member's second moment, as rows whose products give it."""

    rows: Tensor
    unseen: float


def check(inputs: Inputs, config: Config) -> None:
    """Refuse what cannot be joined.

    Raises:
        MethodError: for less than two members, too many, different widths, members without variance, or some about their mean
            and some about the origin.
    """
    members = inputs.series["pca"]
    if not 2 <= len(members) <= MOST:
        raise MethodError(
            f"found {len(members)} artifacts, expected 2 to {MOST}; name stages and sites of `spectrum.pca`"
        )
    widths = {m.arrays["components"].shape[1] for m in members}
    if len(widths) > 1:
        raise MethodError(
            f"members have {', '.join(map(str, sorted(widths)))} features, one width can be joined: choose sites"
        )
    refuse_mixed(members)
    flat = [m.label for m in members if not m.result["trace"] > 0]
    if flat:
        raise MethodError(f"{flat[0]} has no variance, and {len(flat) - 1} more; leave them out")


def solve(inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Greedy groups: the pair of groups whose joint error is least is joined, as long as that is allowed.

    Cost: members^2 decompositions of (components of two groups)^2.
    """
    members = inputs.series["pca"]
    parts = [_part(member) for member in members]
    groups = _grouped(parts, config)
    pairs = _pairs(parts, config.rank)
    bases = [_basis(parts, group, config.rank) for group in groups]
    errors = [_error(parts, group, config.rank) for group in groups]
    label = torch.zeros(len(parts), dtype=torch.int64)
    own = torch.zeros(len(parts), dtype=torch.float64)
    for n, group in enumerate(groups):
        for k in group:
            label[k], own[k] = n, 1 - float((parts[k].rows @ bases[n].T).square().sum())
    upper = torch.ones(len(parts), len(parts)).triu(1).bool()
    exact, tight, loose = (pair.cpu() for pair in pairs)
    result = Result(
        members=tuple(m.label for m in members),
        rank=config.rank,
        n_groups=len(groups),
        groups=tuple(tuple(members[k].label for k in group) for group in groups),
        worst_error=max(errors),
        alone=sum(_error(parts, [k], config.rank) > config.tolerance for k in range(len(parts))),
        stored=len(groups) / len(parts),
        bounds_violated=int(((exact > tight + 1e-9) | (tight > loose + 1e-9))[upper].sum()),
        bound_slack=float((tight - exact)[upper].median()),
        incremental_slack=max(
            abs(_appended(parts, g, config.rank) - e) for g, e in zip(groups, errors, strict=True)
        ),
        unseen=max(part.unseen for part in parts),
        caveats=_caveats(parts, config),
    )
    arrays = {
        "member_group": label,
        "error": torch.tensor(errors, dtype=torch.float64),
        "member_error": own,
        "basis": torch.stack(bases),
        "pair_error": exact,
        "pair_bound": tight,
        "pair_bound_loose": loose,
    }
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _caveats(parts: list[_Part], config: Config) -> tuple[str, ...]:
    unseen = max(part.unseen for part in parts)
    if unseen <= config.tolerance:
        return ()
    return (
        f"an artifact lacks {unseen:.0%} of its variance, more than the tolerance of {config.tolerance:.0%}: keep more components in "
        "spectrum.pca, or no group can be joined",
    )


def _part(member: Member) -> _Part:
    components = member.arrays["components"].double()
    values = member.arrays["eigenvalue"][: len(components)].double() / float(member.result["trace"])
    return _Part(components * values.sqrt()[:, None], max(0.0, 1 - float(values.sum())))


def _grouped(parts: list[_Part], config: Config) -> list[list[int]]:
    groups = [[k] for k in range(len(parts))]
    known: dict[tuple[int, ...], float] = {}
    while len(groups) > 1:
        best, at = config.tolerance, None
        for i in range(len(groups)):
            for j in range(i + 1, len(groups)):
                joined = (*groups[i], *groups[j])
                if config.contiguous and j != i + 1:
                    continue
                if joined not in known:
                    known[joined] = _error(parts, joined, config.rank)
                if known[joined] <= best:
                    best, at = known[joined], (i, j)
        if at is None:
            break
        groups[at[0]] = sorted(groups[at[0]] + groups.pop(at[1]))
    return groups


def _stack(parts: list[_Part], group: tuple[int, ...] | list[int]) -> Tensor:
    return torch.cat([parts[k].rows for k in group])


def _error(parts: list[_Part], group: tuple[int, ...] | list[int], rank: int) -> float:
    """Share of the group's variance outside its best basis."""
    values = torch.linalg.eigvalsh(row_products(_stack(parts, group))).flip(0)
    return max(0.0, 1 - float(values[:rank].sum()) / len(group))


def _basis(parts: list[_Part], group: list[int], rank: int) -> Tensor:
    """Orthonormal rows; where the group has fewer directions, any others."""
    rows = _stack(parts, group)
    v = torch.linalg.svd(rows, full_matrices=False).Vh
    if len(v) < rank:
        filled = torch.cat([v, torch.eye(v.shape[1], dtype=v.dtype, device=v.device)])
        v = torch.linalg.qr(filled.T).Q.T
    return signed(v[: min(rank, v.shape[1])].contiguous())


def _appended(parts: list[_Part], group: list[int], rank: int) -> float:
    """The same error by a truncated decomposition to which members are appended."""
    found = truncated(parts[group[0]].rows, rank)
    for k in group[1:]:
        found = append_rows(found, parts[k].rows, rank)
    rows = _stack(parts, group)
    return max(0.0, 1 - float((rows @ found.right.T).square().sum()) / len(group))


def _pairs(parts: list[_Part], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Exact errors of all pairs, a bound by Ky Fan and one by interlacing."""
    n = len(parts)
    exact, tight, loose = (torch.zeros(n, n, dtype=torch.float64) for _ in range(3))
    found = [torch.linalg.svd(part.rows, full_matrices=False) for part in parts]
    squares, vectors = [f.S[:rank].square() for f in found], [f.Vh[:rank] for f in found]
    for i in range(n):
        for j in range(n):
            largest = _padded(squares[i], rank), _padded(squares[j], rank)
            loose[i, j] = 1 - float(torch.maximum(*largest).sum()) / 2
            tight[i, j] = (
                1 - max(_ky_fan(parts, squares, vectors, a, b, rank) for a, b in ((i, j), (j, i))) / 2
            )
            exact[i, j] = _error(parts, [i, j], rank) if j > i else exact[j, i]
        exact[i, i] = _error(parts, [i], rank)
    return exact, torch.minimum(tight, loose), loose


def _ky_fan(
    parts: list[_Part], squares: list[Tensor], vectors: list[Tensor], i: int, j: int, rank: int
) -> float:
    """Variance of both inside the best of: r1 directions of i, and rank - r1 of what of j lies outside all of i's."""
    inside = (parts[j].rows @ vectors[i].T).square().sum(0)
    outside = torch.linalg.svdvals(parts[j].rows - parts[j].rows @ vectors[i].T @ vectors[i]).square()
    first = torch.cat([inside.new_zeros(1), (squares[i][: len(inside)] + inside).cumsum(0)])
    second = torch.cat([outside.new_zeros(1), outside.cumsum(0)])
    return max(
        float(first[a] + second[min(rank - a, len(second) - 1)]) for a in range(len(first)) if a <= rank
    )


def _padded(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - len(values)))
