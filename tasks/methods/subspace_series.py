"""The subspaces of a series of principal components, as methods that compare them take them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Inputs, Member
from tasks.numerics import spectrum

INDEPENDENT = (
    "noise takes rows as independent and Gaussian; tokens of one text are not, and then noise is larger"
)


class Subspace(NamedTuple):
    """The leading components of one artifact."""

    site: str
    captures: tuple[str, ...]
    label: str
    basis: Tensor
    """float64 [component, feature], orthonormal rows."""
    values: Tensor
    """float64 [component]: their eigenvalues."""
    noise: float
    """Expected sum of squared sines between it and that of endless rows; NaN where there is no gap, or where it holds all rows."""
    cuts: bool
    """Whether its last eigenvalue cannot be told from the next: it is determined up to a choice among them."""

    @property
    def width(self) -> int:
        """Features."""
        return self.basis.shape[1]


def subspaces(inputs: Inputs, port: str, components: int | None) -> list[Subspace]:
    """The first components of every artifact of a port; None: all that it keeps, which are those that rounding leaves.

    Raises:
        MethodError: for less than two artifacts, or some with and some without their mean.
    """
    members = inputs.series[port]
    if len(members) < 2:
        raise MethodError(
            f"port {port!r}: found {len(members)} artifact, expected at least two to compare; choose more sites or stages"
        )
    refuse_mixed(members)
    return [_subspace(member, components) for member in members]


def refuse_mixed(members: Sequence[Member]) -> None:
    """Components about the mean and about the origin are not compared: what they differ by would be the mean.

    Raises:
        MethodError: for some of each.
    """
    named = [
        next((m.label for m in members if bool(m.result["centred"]) == kind), None) for kind in (True, False)
    ]
    if None not in named:
        raise MethodError(
            f"components of {named[0]} are about the mean, those of {named[1]} about the origin (center: false): compare artifacts with "
            "one value of `center`"
        )


def of_one_width(found: Sequence[Subspace]) -> int:
    """The width that all have.

    Raises:
        MethodError: if they differ.
    """
    widths = {one.width: one.label for one in found}
    if len(widths) > 1:
        listed = ", ".join(f"{width} at {label}" for width, label in widths.items())
        raise MethodError(f"subspaces of one width are needed, found {listed}; choose sites of one width")
    return next(iter(widths))


def caveats(found: Sequence[Subspace], components: int | None) -> tuple[str, ...]:
    """What a reader must know."""
    notes = [INDEPENDENT]
    cut = [one.label for one in found if one.cuts]
    if cut:
        notes.append(
            f"{len(cut)} of {len(found)} subspaces end where eigenvalues cannot be told apart, first at {cut[0]}: part of their "
            "distance is chance"
        )
    empty = [one.label for one in found if not len(one.basis)]
    if empty:
        notes.append(f"{len(empty)} do not vary and have no components, first {empty[0]}")
    few = [one.label for one in found if components is not None and len(one.basis) < components]
    if few:
        notes.append(f"{len(few)} have fewer than {components} components, first {few[0]}")
    return tuple(notes)


def series_of(found: Sequence[Subspace], along: str | None) -> list[list[Subspace]]:
    """The series that members form: along `sites` of the same captures, or along `captures` at the same site.

    Args:
        found: in the order of the run file.
        along: None takes captures where a site has several of them, else sites.
    """
    sites = {one.site for one in found}
    if along is None:
        along = "captures" if len(sites) < len(found) else "sites"
    groups: dict[object, list[Subspace]] = {}
    for one in found:
        groups.setdefault(one.site if along == "captures" else one.captures, []).append(one)
    return list(groups.values())


def _subspace(member: Member, components: int | None) -> Subspace:
    basis = member.arrays["components"].double()
    k = len(basis) if components is None else min(components, len(basis))
    values = member.arrays["eigenvalue"].double().nan_to_num(0.0).clamp(min=0)
    result = member.result
    rows = int(result["n_rows"]) - bool(result["centred"])
    noise = spectrum.sampling_error(
        values, k, float(result["n_eff"]), rows, basis.shape[1], float(result["trace"])
    )
    low, high = (member.arrays[f"eigenvalue_{end}"].nan_to_num(0.0) for end in ("low", "high"))
    block = spectrum.blocks(low, high)
    return Subspace(
        member.site,
        member.captures,
        member.label,
        basis[:k],
        values[:k],
        noise if math.isfinite(noise) else math.nan,
        0 < k < len(block) and bool(block[k - 1] == block[k]),
    )


def stacked(found: Sequence[Subspace]) -> Tensor:
    """float64 [direction, feature]: all bases one after the other."""
    return torch.cat([one.basis for one in found])
