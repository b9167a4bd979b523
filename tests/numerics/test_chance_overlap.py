"""Overlaps of random sets: by counting all sets, and by draws."""

from itertools import combinations

import numpy as np
import torch

from tasks.numerics.chance_overlap import expected_in, overlap


def test_chances_are_those_of_all_sets() -> None:
    member = torch.zeros(3, 7, dtype=torch.bool)
    member[0, :3], member[1, 1:5] = True, True
    found = overlap(member)
    others = [len({0, 1, 2} & set(some)) for some in combinations(range(7), 4)]
    assert found.n.tolist() == [[3, 2, 0], [2, 4, 0], [0, 0, 0]]
    assert abs(float(found.expected[0, 1]) - np.mean(others)) < 1e-12
    assert abs(float(found.p[0, 1]) - np.mean([n >= 2 for n in others])) < 1e-12
    assert found.p[0, 2] == found.p[2, 0] == found.p[2, 2] == 1


def test_as_many_as_draws_have_in_so_many_sets() -> None:
    rng, sizes = np.random.default_rng(0), (5, 12, 7)
    draws = np.zeros(4)
    for _ in range(4000):
        count = np.zeros(20, int)
        for size in sizes:
            count[rng.permutation(20)[:size]] += 1
        draws += [(count >= least).sum() for least in range(4)]
    for least in range(4):
        assert abs(expected_in(sizes, 20, least) - draws[least] / 4000) < 0.1
    assert expected_in((), 0, 1) == 0
