"""Series of principal components for methods that compare subspaces, made without rows or from some."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.methods.contract import Inputs, Member
from tests.methods.cases import Case, run
from tests.methods.cases import case as case_of


def basis(k: int, d: int, seed: int) -> Tensor:
    """Random orthonormal rows."""
    drawn = torch.randn(d, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    columns: Tensor = torch.linalg.qr(drawn).Q
    return columns.T.contiguous()


def member(
    components: Tensor,
    site: str = "site",
    capture: str = "capture",
    values: Tensor | None = None,
    n: float = 1e4,
) -> Member:
    """An artifact of these components; its eigenvalues fall from 2 to 1 unless given, the others are a tenth."""
    k, d = components.shape
    top = torch.linspace(2, 1, k, dtype=torch.float64) if values is None else values.double()
    spectrum = torch.cat([top, torch.full((d - k,), 0.1 * float(top.min()) if k else 0.0).double()])
    arrays = {
        "components": components,
        "eigenvalue": spectrum,
        "eigenvalue_low": 0.99 * spectrum,
        "eigenvalue_high": 1.01 * spectrum,
    }
    known = {"n_eff": n, "n_rows": int(n), "width": d, "centred": True, "trace": float(spectrum.sum())}
    return Member(site, (capture,), arrays, known)


def fitted(rows: Tensor, site: str = "site", capture: str = "capture", **options: Any) -> Member:
    """The artifact of some rows."""
    module = case_of("spectrum.pca").module
    index = torch.arange(len(rows))
    here = Case(
        module,
        module.Config(**options),
        Inputs(widths={"x": rows.shape[1]}, n_rows=len(rows), n_samples=len(rows)),
        case_of("spectrum.pca").block.__class__({"x": rows}, index, index, index),
    )
    answer = run(here)
    return Member(site, (capture,), answer.arrays, answer.result.model_dump(mode="json"))


def inputs_of(members: Sequence[Member]) -> Inputs:
    """What a method that combines them is given."""
    return Inputs(widths={}, n_rows=0, n_samples=0, series={"pca": tuple(members)})


def turned(start: Tensor, towards: Tensor, theta: Tensor) -> Tensor:
    """Rows of `start` turned by angles towards those of `towards`, which are orthogonal to all of them."""
    return theta.cos()[:, None] * start + theta.sin()[:, None] * towards
