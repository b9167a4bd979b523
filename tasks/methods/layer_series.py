"""What methods share that read the same rows at several layers, each from an artifact of its own: rows are matched by their place."""

import numpy as np

from schemas.errors import MethodError
from tasks.methods.contract import Inputs, Member
from tasks.numerics.agreement import agreement, counted

APART = 0.1
"""Adjusted Rand index below which a layer has little to do with the clusters of all."""


def check_members(inputs: Inputs, port: str, array: str) -> None:
    """Refuse layers of other rows than those of port `x`, or in another order of captures.

    Args:
        array: a row-aligned one that all members have.

    Raises:
        MethodError: with both numbers of rows, or both orders.
    """
    for member in inputs.series[port]:
        n = len(member.along_rows(array))
        if n != inputs.n_rows:
            raise MethodError(
                f"{member.label} is of {n} rows, port 'x' has {inputs.n_rows}; connect {port} of the rows that 'x' reads, "
                "such as sites of one row space"
            )
        _refuse_order(member, inputs)


def rand(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """Adjusted Rand index of two partitions into up to k clusters."""
    found = agreement(counted(a, b, k, k))
    return 0.0 if found is None else found.adjusted_rand


def member_caveats(inputs: Inputs, port: str, rands: tuple[float, ...]) -> list[str]:
    """Which layers have clusters of their own, and whether anything says that their rows are the same.

    Args:
        rands: of each layer's own clusters with those of all.
    """
    members = inputs.series[port]
    notes = [
        f"{member.label} has clusters of its own (adjusted Rand index {value:.2f} with those of all layers): leave it out and compare"
        for member, value in zip(members, rands, strict=True)
        if value < APART
    ]
    if len({member.captures for member in members} | set(inputs.captures.values())) > 1:
        notes.append(
            "layers are of several captures: rows are matched by their place, which nothing has checked"
        )
    return notes


def _refuse_order(member: Member, inputs: Inputs) -> None:
    read = inputs.captures.get("x", member.captures)
    if member.captures != read and sorted(member.captures) == sorted(read):
        raise MethodError(
            f"{member.label} was made over the captures {' + '.join(member.captures)}, port 'x' reads {' + '.join(read)}; "
            "expected one order"
        )
