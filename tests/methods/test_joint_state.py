"""The state of two joined sites: one for all methods, the same numbers in any number of groups, refused where it cannot be."""

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.engine.reduction import make_reduction
from tasks.methods import joint_state
from tasks.methods.contract import Block, Inputs, load_method
from tasks.numerics import joint_moments

METHODS = ("geometry.cka", "geometry.alignment", "geometry.unit_matching")
INPUTS = Inputs(widths={"x": 3, "y": 2}, n_rows=50, n_samples=10)


def state_of(groups: int, n: int = 50) -> joint_state.State:
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=rng, dtype=torch.float64) + 9 for d in (3, 2))
    index = torch.arange(n)
    config = load_method("geometry.cka").Config(groups=groups)
    return joint_state.partial(Block({"x": x, "y": y}, index // 5, index % 5, index), {}, config)


def test_methods_share_one_state() -> None:
    ids = set()
    for name in METHODS:
        module = load_method(name)
        ids.add(make_reduction(name, module, module.Config(), {}, INPUTS).id)
    assert len(ids) == 1


def test_groups_together_are_all_rows() -> None:
    whole = joint_moments.centred(joint_state.total(joint_state.groups_of(state_of(2))))
    for groups in (3, 10, 40):
        found = joint_state.groups_of(state_of(groups))
        assert len(found) == min(groups, 10)
        total = joint_moments.centred(joint_state.total(found))
        assert int(total["n"]) == 50
        np.testing.assert_allclose(total["g"], whole["g"], rtol=1e-11, atol=1e-11)
    rests = joint_state.leaving_out(joint_state.groups_of(state_of(10)))
    assert [int(rest["n"]) for rest in rests] == [45] * 10


def test_wide_sites_have_fewer_groups() -> None:
    assert joint_state.n_groups(1000, 10) == 10
    assert joint_state.n_groups(8192, 10) == 2
    assert joint_state.n_groups(30_000, 10) == 1
    assert joint_state.leaving_out(joint_state.groups_of(state_of(2))[:1]) == []
    assert "one group" in joint_state.caveats(1, 10)[0]


def test_no_partner_is_refused() -> None:
    with pytest.raises(MethodError, match="no row of x has a partner in y"):
        joint_state.groups_of(state_of(4, 0))


def test_intervals_end_at_1() -> None:
    found = joint_state.interval(0.999, [0.9, 0.99, 0.95], 0.95)
    assert found is not None
    assert found.low is not None
    assert found.low < 0.999 < (found.high or 0) < 1
    assert joint_state.interval(float("nan"), [], 0.95) is None
