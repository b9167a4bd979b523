"""How many components hold a share of the energy, whole or in part."""

from jaxtyping import Float64
from torch import Tensor

from tasks.numerics import spectrum

Values = Float64[Tensor, " component"]


def components(values: Values, share: float) -> int:
    """Fewest leading components with a share of the energy; none where there is no energy.

    Args:
        values: energies, descending, zero below the rounding floor.
        share: in (0, 1].
    """
    total = float(values.sum())
    return min(spectrum.components_for(values, share, total), int((values > 0).sum())) if total > 0 else 0


def fractional(values: Values, share: float) -> float:
    """The same, the last component counted by the part of it that is needed: continuous in the values, so that it has an interval."""
    k = components(values, share)
    if k == 0:
        return 0.0
    before = float(values[: k - 1].sum())
    return k - 1 + min(1.0, (share * float(values.sum()) - before) / float(values[k - 1]))
