"""spectrum.projector_spectrum: planted bands, cosines pair by pair, and projectors that do not fit."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import projector_spectrum


def run(
    x: Tensor, image: Tensor, text: Tensor, **options: Any
) -> tuple[projector_spectrum.Result, dict[str, Array]]:
    """The method as the engine calls it; every two rows are a sample."""
    config = projector_spectrum.Config.model_validate(options)
    sample = torch.arange(len(x)) // 2
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x) // 2,
        weights={config.image: image, config.text: text},
    )
    projector_spectrum.check(inputs, config)
    carry, state = projector_spectrum.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(3):
        other = projector_spectrum.partial(Block({"x": x[part]}, sample[part], part, part), carry, config)
        state = other if state is None else projector_spectrum.merge(state, other)
    assert state is not None
    return projector_spectrum.finish(state, carry, inputs, config)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def planted(values: Tensor, image: int = 20, text: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Projectors whose operator has these singular values; and its directions, as rows."""
    shared = torch.linalg.qr(drawn(len(values), len(values), seed=1))[0]
    u, v = (torch.linalg.qr(drawn(n, len(values), seed=n))[0].T for n in (image, text))
    return shared @ (values.sqrt()[:, None] * u), shared @ (values.sqrt()[:, None] * v), u, v


VALUES = torch.tensor([40.0, 11, 5, *[1.1, 1.05, 1.02, 1, 0.99, 0.98], 0.3, 0.1, 0.02]).double()


def test_a_planted_band() -> None:
    image, text, u, v = planted(VALUES)
    x = drawn(400, 6, seed=4) @ u[3:9] + 0.001 * drawn(400, 20)
    result, arrays = run(x, image, text)
    assert (result.rank, result.band_first, result.band) == (12, 3, 6)
    assert result.flatness == pytest.approx(0.98 / 1.1)
    np.testing.assert_allclose(arrays["singular_value"].values, VALUES, rtol=1e-10)
    for name, expected in (("image_basis", u[3:9]), ("text_basis", v[3:9])):
        basis = arrays[name].values
        torch.testing.assert_close(basis.T @ basis, expected.T @ expected, atol=1e-9, rtol=0)
    assert result.energy is not None
    assert result.energy.value > 0.99
    assert result.energy_null == 6 / 20
    assert float(arrays["energy"].values[3:9].sum()) == pytest.approx(result.energy.value)
    other, _ = run(drawn(60, 16), image, text, side="text")
    assert (other.band_first, other.band) == (3, 6)


def test_cosines_are_those_of_all_pairs() -> None:
    image, text, u, _ = planted(VALUES)
    x = drawn(70, 20) + 4 * u[0] + 0.5 * u[4]
    result, _ = run(x, image, text)

    def mean_cosine(rows: np.ndarray) -> float:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return float((unit @ unit.T)[~np.eye(len(rows), dtype=bool)].mean())

    assert result.cosine is not None
    assert result.cosine_band is not None
    assert result.cosine.value == pytest.approx(mean_cosine((x @ image.T).numpy()), rel=1e-10)
    assert result.cosine_band.value == pytest.approx(mean_cosine((x @ u[3:9].T).numpy()), rel=1e-9)
    assert result.cosine_band.value < 0.5 * result.cosine.value  # the strongest direction no longer decides


def test_gaussian_projectors_have_no_wider_band_than_their_null() -> None:
    result, _ = run(drawn(60, 40), drawn(30, 40, seed=8), drawn(30, 50, seed=9))
    assert abs(result.band - result.band_null) <= 4
    assert result.rank == 30


def test_rows_without_a_direction_are_counted() -> None:
    image, text, *_ = planted(VALUES)
    x = torch.cat([drawn(60, 20), torch.zeros(5, 20).double()])
    result, _ = run(x, image, text)
    assert (result.n_rows, result.n_zero) == (65, 5)
    assert run(torch.zeros(60, 20).double(), image, text)[0].cosine is None


def test_projectors_that_do_not_fit_are_refused() -> None:
    image, text, _, _ = planted(VALUES)
    with pytest.raises(MethodError, match="expected two matrices into the same space"):
        run(drawn(60, 20), image, text[1:])
    with pytest.raises(MethodError, match="has 16 features, the projector of images takes 20"):
        run(drawn(60, 16), image, text)
    with pytest.raises(MethodError, match="1 groups"):
        run(drawn(2, 20), image, text)
