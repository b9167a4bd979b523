"""How many directions fit into a space if their cosines may be off zero by so much: a published fit to directions that were optimised.

    deviation^2 = C ln(k^a / d)^b / d^c     for k directions of d features

C, a, b, c are the constants of the authors' code, from a fit; nothing is proven. For a deviation of 0 the fit says d^(1/a), fewer than
the d that are orthogonal.
"""

import math

C, A, B, D = 0.45809143, 1.0668005, 1.44738666, 0.97197234


def directions(deviation: float, width: int) -> float:
    """How many directions have cosines within a deviation from zero, which is not negative; infinite beyond what a number holds."""
    logarithm = (math.log(width) + (deviation**2 * width**D / C) ** (1 / B)) / A
    return math.exp(logarithm) if logarithm < 700 else math.inf


def deviation(directions: float, width: int) -> float:
    """What the cosines of so many directions deviate from zero; 0 where they fit without."""
    logarithm = A * math.log(directions) - math.log(width)
    return math.sqrt(C * logarithm**B / width**D) if logarithm > 0 else 0.0
