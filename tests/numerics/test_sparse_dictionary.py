"""Sparse dictionaries against scikit-learn's pursuit, every choice of few atoms, planted dictionaries, and a plain loop."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import sparse_dictionary as sd
from tasks.numerics.sparse_dictionary import Sizes


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(atoms: Tensor) -> Tensor:
    return atoms / torch.linalg.vector_norm(atoms, dim=0)


@given(st.integers(2, 400), st.integers(2, 400), st.floats(0.05, 1))
def test_sizes_cost_no_more_than_is_kept(inputs: int, outputs: int, kept: float) -> None:
    try:
        size = sd.sizes(inputs, outputs, kept)
    except MethodError:
        assert kept * inputs * outputs < 2 * inputs + outputs + outputs / 8 or min(inputs, outputs) < 2
        return
    assert 1 <= size.entries <= size.atoms <= min(inputs, outputs)
    per_atom = inputs + outputs / 16
    cost = size.atoms * per_atom + size.entries * outputs
    assert cost <= kept * inputs * outputs
    full = size.atoms == min(inputs, outputs) or size.entries == size.atoms
    assert full or cost + per_atom > kept * inputs * outputs


def test_two_atoms_for_an_entry() -> None:
    assert sd.sizes(384, 384, 0.8) == Sizes(196, 98)
    assert sd.sizes(384, 384, 0.6) == Sizes(148, 73)


@pytest.mark.parametrize("form", ["orthogonal", "free"])
def test_losses_are_those_of_outputs(form: sd.Form) -> None:
    rows, weight = drawn(200, 12) * 0.8 ** torch.arange(12) + 1, drawn(15, 12, seed=1)
    found = sd.of_weight(weight, rows.T @ rows / 200, Sizes(6, 3), 5, form)
    off = torch.linalg.matrix_norm(rows @ (weight - found.product().T).T) / torch.linalg.matrix_norm(
        rows @ weight.T
    )
    assert float(off) ** 2 == pytest.approx(float(found.losses.min()), rel=1e-9)


def test_few_rows_and_still_inputs() -> None:
    rows = drawn(3, 8)
    rows[:, 5] = 0
    weight = drawn(10, 8, seed=1)
    found = sd.of_weight(weight, rows.T @ rows / 3, Sizes(6, 3), 10, "orthogonal")
    assert found.dictionary.isfinite().all()
    assert torch.linalg.matrix_norm(rows @ (weight - found.product().T).T) < 1e-3 * torch.linalg.matrix_norm(
        rows @ weight.T
    )


@pytest.mark.parametrize("at_once", [1, 1 << 23])
def test_pursuit_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(sd, "AT_ONCE", at_once)
    for seed, (width, atoms, entries) in enumerate([(20, 12, 5), (12, 30, 6), (30, 30, 30), (9, 4, 1)]):
        dictionary, targets = unit(drawn(width, atoms, seed=seed)), drawn(width, 17, seed=seed + 9)
        gram, along = dictionary.T @ dictionary, dictionary.T @ targets
        value, index = sd.pursuit(gram, along.T.contiguous(), entries)
        expected = orthogonal_mp_gram(gram.numpy(), along.numpy(), n_nonzero_coefs=entries)
        spread = torch.zeros(17, atoms).double().scatter_(1, index, value)
        np.testing.assert_allclose(spread.T, expected, atol=1e-9)
        assert (index.diff(dim=1) > 0).all()


def test_atoms_that_add_nothing() -> None:
    """Twice the same atom, and targets in fewer directions than entries."""
    dictionary = unit(drawn(6, 3))[:, [0, 0, 1, 2]]
    targets = dictionary @ drawn(4, 5)
    value, index = sd.pursuit(dictionary.T @ dictionary, (dictionary.T @ targets).T.contiguous(), 4)
    assert value.isfinite().all()
    spread = torch.zeros(5, 4).double().scatter_(1, index, value)
    torch.testing.assert_close(dictionary @ spread.T, targets)
    assert int((value == 0).sum(1).min()) == 1


def test_for_orthonormal_atoms_the_largest_products_are_best() -> None:
    a = drawn(5, 8)
    found = sd.orthogonal(a, Sizes(4, 2), 0)
    for k in range(8):
        least = min(
            float(np.linalg.lstsq(d, a[:, k].numpy())[1].sum())
            for pair in combinations(range(4), 2)
            for d in [found.dictionary[:, list(pair)].numpy()]
        )
        assert float((a[:, k] - found.product()[:, k]).square().sum()) == pytest.approx(least)


def test_steps_are_those_of_a_plain_loop() -> None:
    a = drawn(10, 14)
    found = sd.orthogonal(a, Sizes(6, 3), 7)
    d, errors = np.linalg.svd(a.numpy())[0][:, :6], []
    for _ in range(8):
        s = d.T @ a.numpy()
        for column in s.T:
            column[np.argsort(-abs(column))[3:]] = 0
        errors.append(np.linalg.norm(a.numpy() - d @ s) / np.linalg.norm(a.numpy()))
        last = d @ s
        u, _, v = np.linalg.svd(a.numpy() @ s.T, full_matrices=False)
        d = u @ v
    np.testing.assert_allclose(found.losses, np.square(errors), rtol=1e-9)
    np.testing.assert_allclose(found.product(), last, atol=1e-9)
    torch.testing.assert_close(found.dictionary.T @ found.dictionary, torch.eye(6).double())


@given(st.integers(0, 1000), st.integers(2, 12), st.integers(2, 12), st.integers(1, 6))
def test_the_error_never_grows(seed: int, inputs: int, outputs: int, entries: int) -> None:
    atoms = min(inputs, outputs, 2 * entries)
    size, a = Sizes(atoms, min(entries, atoms)), drawn(inputs, outputs, seed=seed)
    found = sd.orthogonal(a, size, 8)
    assert (found.losses.diff() <= 1e-12).all()
    off = torch.linalg.matrix_norm(a - found.product()) / torch.linalg.matrix_norm(a)
    assert float(off) ** 2 == pytest.approx(float(found.losses[-1]), abs=1e-12)
    other = sd.free(a, size, 3)
    assert len(other.losses) == 4
    off = torch.linalg.matrix_norm(a - other.product()) / torch.linalg.matrix_norm(a)
    assert float(off) ** 2 == pytest.approx(float(other.losses.min()), abs=1e-12)
    assert off.square() <= found.losses[3] + 1e-12


def test_planted_dictionaries_are_found() -> None:
    """Each output takes two of twelve atoms, orthonormal or not quite; leading singular vectors leave six tenths."""
    for seed in range(3):
        basis = torch.linalg.qr(drawn(16, 12, seed=seed))[0]
        skewed = unit(basis + 0.15 * drawn(16, 12, seed=seed + 5))
        index = torch.rand(400, 12, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :2]
        value = drawn(400, 2, seed=seed + 9)
        entries = torch.zeros(400, 12).double().scatter_(1, index, value + value.sign())
        found = sd.orthogonal(basis @ entries.T, Sizes(12, 2), 100)
        assert found.losses[0] > 0.25
        assert found.losses[-1] < 1e-14
        assert ((found.dictionary.T @ basis).abs().amax(1) > 1 - 1e-9).all()
        other = sd.free(skewed @ entries.T, Sizes(12, 2), 60)
        assert other.losses[0] > 0.04
        assert other.losses[-1] < 1e-18
        assert ((unit(other.dictionary).T @ skewed).abs().amax(1) > 1 - 1e-9).all()
