"""P-values of one hypothesis as one p-value, whatever the dependence between them.

Vovk, Wang, Combining p-values via averaging, Biometrika 107 (2020) 791: K times the least (Bonferroni), 2 times the arithmetic mean
(Rueschendorf), e times the geometric mean, e ln K times the harmonic mean for K > 2; for 2 the harmonic mean takes the factor 2, as it is
no less than the least.
"""

import math
from collections.abc import Callable
from typing import Literal

from jaxtyping import Float64
from torch import Tensor

Rule = Literal["least", "harmonic", "geometric", "mean"]
FACTORS: dict[Rule, Callable[[int], float]] = {
    "least": float,
    "harmonic": lambda k: math.e * math.log(k) if k > 2 else float(k),
    "geometric": lambda k: math.e if k > 1 else 1.0,
    "mean": lambda k: 2.0 if k > 1 else 1.0,
}
"""What a mean of K p-values is multiplied by."""


def merged(p: Float64[Tensor, "row detector"], rule: Rule) -> Float64[Tensor, " row"]:
    """What is at most any level with no larger chance than that, where each p-value is; may exceed 1. NaN where one is.

    Args:
        p: in (0, 1].
        rule: which mean.

    Cost: O(row detector).
    """
    means: dict[Rule, Callable[[], Tensor]] = {
        "least": lambda: p.amin(1),
        "harmonic": lambda: 1 / (1 / p).mean(1),
        "geometric": lambda: p.log().mean(1).exp(),
        "mean": lambda: p.mean(1),
    }
    return means[rule]() * FACTORS[rule](p.shape[1])
