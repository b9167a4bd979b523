"""Which parameters' gradients are kept per sample, and in which form."""

from typing import Literal

from pydantic import Field

from schemas.base import Frozen

Distribution = Literal["rademacher", "normal"]
"""Of the entries of a projection, scaled to a mean square of 1 / p, so that inner products are right on average."""


class Exact(Frozen):
    """Every entry. One array per parameter, as wide as the parameter."""

    kind: Literal["exact"] = "exact"


class Kronecker(Frozen):
    """Each parameter's gradient G as L G R': a random projection of its rows and one of its columns.

    One array per parameter. Parameters of one axis are projected once. A side that is not longer than `dimension` stays as it is.
    Weights of more than two axes are taken as (first axis, all others).
    """

    kind: Literal["kronecker"] = "kronecker"
    dimension: int = Field(16, ge=1, le=4096)
    """p: rows and columns after projection."""
    distribution: Distribution = "rademacher"


class Global(Frozen):
    """All parameters' gradients in one vector: the sum of each parameter's two-sided projection into the whole vector.

    One array `:grad`. Inner products of whole gradients are kept on average, as of one dense projection.
    """

    kind: Literal["global"] = "global"
    dimension: int = Field(4096, ge=4, le=1 << 20)
    """Length of the vector, a square of a whole number."""
    distribution: Distribution = "rademacher"


class Sketch(Frozen):
    """All parameters' gradients in one vector by a sparse Johnson-Lindenstrauss map: each entry is added to one place, with a sign.

    One array `:grad`. Signs and places of a matrix are those of its rows combined with those of its columns (a tensor sketch), so that
    a gradient in factors is sketched without being formed.
    """

    kind: Literal["sketch"] = "sketch"
    dimension: int = Field(4096, ge=4, le=1 << 20)
    """Length of the vector."""


class Factors(Frozen):
    """The best approximation of rank c of each matrix: U sqrt(S) and V sqrt(S), one after the other. Vectors are kept whole.

    One array per parameter, rank * (rows + columns) wide.
    """

    kind: Literal["factors"] = "factors"
    rank: int = Field(1, ge=1, le=256)
    """c: singular vectors kept on each side."""
    dimension: int | None = Field(None, ge=1, le=4096)
    """Project both sides to this many first, as `kronecker` does; None: not at all."""
    distribution: Distribution = "rademacher"


class Norms(Frozen):
    """The Euclidean norm of each parameter's gradient, and nothing else. One array `:norm`, one column per parameter."""

    kind: Literal["norms"] = "norms"


Keep = Exact | Kronecker | Global | Sketch | Factors | Norms


class ParameterGradients(Frozen):
    """Per-sample gradients of parameters."""

    parameters: tuple[str, ...] = Field(("**",), min_length=1)
    """Globs over parameter names, as `named_parameters` gives them; `*` stays inside one part, `**` crosses parts,
    `[0-9]` and `{a,b}` choose."""
    keep: Keep = Kronecker()
    """What is kept of each."""
