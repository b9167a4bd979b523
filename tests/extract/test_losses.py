"""Losses against loops of plain PyTorch over samples, and what they refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from schemas.errors import DataError, MethodError, ModelError, SpecError, UnknownNameError
from schemas.loss import (
    ClassificationLoss,
    FactoryLoss,
    LanguageModelLoss,
    Loss,
    MseLoss,
    ProjectionLoss,
    SimilarityLoss,
)
from tasks.extract.batches import Batch
from tasks.extract.losses import Objective
from tasks.extract.sources.base import Label, Source, Table
from tasks.extract.targets import count_classes, with_targets

LENGTHS = (5, 2, 7, 1)
VOCABULARY = 11


def tokens(left: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(1)
    width = max(LENGTHS)
    places, lengths = torch.arange(width), torch.tensor(LENGTHS)[:, None]
    mask = places >= width - lengths if left else places < lengths
    ids = torch.randint(1, VOCABULARY, (len(LENGTHS), width), generator=generator) * mask
    return Batch({"input_ids": ids}, mask, mask, torch.where(mask, ids, -1))


def logits() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(
        len(LENGTHS), max(LENGTHS), VOCABULARY, generator=generator, dtype=torch.float64
    ).requires_grad_()


def loop(values: Tensor, batch: Batch, reduction: str) -> list[Tensor]:
    """Each sample alone, without its padding."""
    assert batch.mask is not None
    result = []
    for n in range(len(values)):
        real = batch.mask[n]
        here, ids = values[n][real], batch.inputs["input_ids"][n][real]
        total = F.cross_entropy(here[:-1], ids[1:], reduction="sum") if len(ids) > 1 else here.sum() * 0
        if reduction == "sample-mean":
            total = total / max(1, len(ids) - 1)
        if reduction == "token-mean":
            total = total / np.mean([n - 1 for n in LENGTHS])
        result.append(total)
    return result


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "sample-mean", "token-mean"])
def test_tokens_match_a_loop(reduction: Any, left: bool) -> None:
    batch, values = tokens(left), logits()
    mean = float(Objective(LanguageModelLoss()).count(batch).double().mean())
    found = Objective(LanguageModelLoss(reduction=reduction), mean_targets=mean)({"logits": values}, batch)
    expected = torch.stack(loop(values, batch, reduction))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(x.sum(), values, retain_graph=True)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_mean_over_rows_is_the_token_mean_of_the_capture() -> None:
    batch, values = tokens(), logits()
    objective = Objective(LanguageModelLoss(reduction="token-mean"), float(sum(LENGTHS) - 4) / 4)
    assert batch.mask is not None
    shifted = batch.inputs["input_ids"][:, 1:].masked_fill(~batch.mask[:, 1:], -100)
    expected = F.cross_entropy(values[:, :-1].flatten(0, 1), shifted.flatten())
    torch.testing.assert_close(objective(values, batch).mean(), expected, rtol=1e-12, atol=0)


def test_own_targets_and_ignored_places() -> None:
    batch, values = tokens(), logits()
    own = torch.full_like(batch.inputs["input_ids"], -100)
    own[:, 0] = 3
    here = batch._replace(targets={"labels": own})
    found = Objective(LanguageModelLoss(shift=False))(values, here)
    torch.testing.assert_close(
        found, F.cross_entropy(values[:, 0], torch.full((4,), 3), reduction="none"), rtol=1e-12, atol=0
    )
    assert Objective(LanguageModelLoss(shift=False)).count(here).tolist() == [1, 1, 1, 1]
    with pytest.raises(ModelError, match="labels"):
        Objective(LanguageModelLoss(shift=False))(values, batch)


def test_classes() -> None:
    values = torch.randn(3, 4, dtype=torch.float64)
    batch = Batch({"": torch.zeros(3, 2)}, targets={"side": torch.tensor([1, 0, 3])})
    found = Objective(ClassificationLoss(label="side"))(values, batch)
    for n in range(3):
        assert float(found[n]) == pytest.approx(
            float(F.cross_entropy(values[n : n + 1], torch.tensor([[1, 0, 3][n]]))), rel=1e-12
        )
    with pytest.raises(ModelError, match="class 3"):
        Objective(ClassificationLoss(label="side"))(values[:, :2], batch)
    with pytest.raises(ModelError, match="logits"):
        Objective(ClassificationLoss(label="side"))(values[:, :, None], batch)


@pytest.mark.parametrize("reduction", ["sum", "sample-mean"])
def test_squares(reduction: Any) -> None:
    values, inputs = torch.randn(3, 2, 4), torch.randn(3, 8)
    found = Objective(MseLoss(reduction=reduction))(values, Batch({"": inputs}))
    for n in range(3):
        expected = F.mse_loss(
            values[n].flatten(), inputs[n], reduction="sum" if reduction == "sum" else "mean"
        )
        assert float(found[n]) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ModelError, match="equal shapes"):
        Objective(MseLoss())(values[:, :1], Batch({"": inputs}))
    target = Batch({"": inputs}, targets={"size": torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)})
    found = Objective(MseLoss(target="size"))(values[:, 0, 0], target)
    torch.testing.assert_close(found, (values[:, 0, 0] - torch.tensor([0.5, 1, 2])).square())


@pytest.mark.parametrize("form", ["cosine", "contrastive"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_similarity(form: Any, pooling: Any, tmp_path: Path) -> None:
    prototypes = np.random.default_rng(0).standard_normal((3, 6))
    np.save(tmp_path / "prototypes.npy", prototypes)
    loss = SimilarityLoss(
        label="side", form=form, pooling=pooling, prototypes=str(tmp_path / "prototypes.npy")
    )
    codes, batch = [2, 0, 1, 1], tokens()
    values = torch.randn(4, max(LENGTHS), 6, dtype=torch.float64)
    found = Objective(loss, n_classes=3)(values, batch._replace(targets={"side": torch.tensor(codes)}))
    for n, code in enumerate(codes):
        rows = values[n, : LENGTHS[n]]
        one = rows.mean(0) if pooling == "mean" else rows[0]
        cosines = torch.stack([F.cosine_similarity(one, torch.from_numpy(p), dim=0) for p in prototypes])
        expected = (
            1 - cosines[code] if form == "cosine" else F.cross_entropy(cosines / 0.05, torch.tensor(code))
        )
        assert float(found[n]) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array(["a", "b"]), "are <U1; expected an .npy file of real numbers"),
        (np.ones((3, 6), complex), "are complex128; expected"),
        (np.eye(3, 6) * [1, 1, 0, 0, 0, 0], r"row 2 \(from 0\) .* is zero or not finite"),
        (np.full((3, 6), np.nan), "row 0 .* not finite"),
        (np.ones(6), r"shape \(6,\); expected \(3, 6\)"),
    ],
)
def test_prototypes_without_directions(values: np.ndarray, said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", values)
    loss = SimilarityLoss(label="side", prototypes=str(tmp_path / "p.npy"))
    batch = Batch({"": torch.ones(1, 6)}, targets={"side": torch.tensor([0])})
    with pytest.raises((SpecError, ModelError), match=said):
        Objective(loss, n_classes=3)(torch.ones(1, 6), batch)


def test_an_output_that_is_not_there() -> None:
    batch = Batch({"": torch.ones(1, 6)}, targets={"side": torch.tensor([0])})
    objective = Objective(ClassificationLoss(label="side", output="logits"))
    with pytest.raises(
        ModelError, match="no tensor 'logits' for the loss, it is a Tensor with one without a name"
    ):
        objective(torch.ones(1, 6), batch)
    with pytest.raises(ModelError, match="it is a dict with scores, 1"):
        objective({"scores": torch.ones(1, 6), 1: torch.ones(1)}, batch)


def test_random_prototypes_are_seeded_and_ordered() -> None:
    values = torch.randn(4, 6)
    batch = Batch({"": values}, targets={"side": torch.tensor([0, 1, 1, 0])})
    few, many = (
        Objective(SimilarityLoss(label="side", form="cosine"), n_classes=n)(values, batch) for n in (2, 5)
    )
    torch.testing.assert_close(few, many)
    other = Objective(SimilarityLoss(label="side", form="cosine", seed=1), n_classes=2)(values, batch)
    assert not torch.equal(few, other)


def weighted(output: Any, batch: Batch, power: int) -> Tensor:
    """A loss of one's own."""
    assert batch.targets is not None
    result: Tensor = output.sum(1).pow(power) * batch.targets["size"].to(output)
    return result


def summed(output: Tensor, batch: Batch) -> Tensor:
    """No number per sample."""
    return output.sum()


def test_a_function_of_ones_own() -> None:
    loss = FactoryLoss(function=f"{__name__}:weighted", arguments={"power": 2}, labels=("size",))
    values = torch.randn(2, 3, dtype=torch.float64)
    batch = Batch({"": values}, targets={"size": torch.tensor([2.0, 3.0])})
    torch.testing.assert_close(
        Objective(loss)(values, batch), values.sum(1) ** 2 * torch.tensor([2.0, 3.0], dtype=torch.float64)
    )
    assert len(Objective(loss).digest) == 64
    with pytest.raises(ModelError, match=r"expected one number for each, shape \(2,\)"):
        Objective(FactoryLoss(function=f"{__name__}:summed"))(values, batch)
    with pytest.raises(ModelError, match="cannot be imported"):
        Objective(FactoryLoss(function="no.such:thing"))(values, batch)


def source(labels: dict[str, list[Label]]) -> Source:
    n = len(next(iter(labels.values())))
    return Source(
        "tensor", n, lambda _: torch.zeros(2), lambda: Table([str(k) for k in range(n)], labels), str
    )


class Plain:
    """An encoder of nothing."""

    is_text = False

    def __len__(self) -> int:
        return 2

    def batch(self, places: Any) -> Batch:
        return Batch({"": torch.zeros(len(places), 2)})


def targets(loss: Loss, labels: dict[str, list[Label]], indices: list[int]) -> dict[str, Tensor]:
    encoder = with_targets(Plain(), source(labels), np.array(indices), loss)  # type: ignore[arg-type]
    return encoder.batch([1, 0]).targets or {}


def test_classes_are_those_of_all_data() -> None:
    names: dict[str, list[Label]] = {"side": ["left", "right", "above"]}
    loss = ClassificationLoss(label="side")
    assert targets(loss, names, [1, 2])["side"].tolist() == [0, 2]
    assert targets(loss, {"side": [7, 4, 5]}, [0, 1])["side"].tolist() == [4, 7]
    named = ClassificationLoss(label="side", classes=("right", "left", "above"))
    assert targets(named, names, [0, 1])["side"].tolist() == [0, 1]
    assert count_classes(source({"side": [7, 4, 5]}), loss) == 8


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no label 'side'"):
        targets(ClassificationLoss(label="side"), {"other": ["a"]}, [0])
    with pytest.raises(SpecError, match="name no class"):
        targets(ClassificationLoss(label="side"), {"side": [-1, 2]}, [0, 1])
    with pytest.raises(DataError, match="not in `classes`"):
        targets(ClassificationLoss(label="side", classes=("a",)), {"side": ["a", "b"]}, [0, 1])
    with pytest.raises(SpecError, match="holds text"):
        targets(MseLoss(target="side"), {"side": ["a", "b"]}, [0, 1])


@pytest.mark.parametrize("left", [False, True])
def test_right_tokens_match_a_loop(left: bool) -> None:
    batch, values = tokens(left), logits().detach()
    assert batch.mask is not None
    values[0, batch.mask[0]] *= 0
    values[0, batch.mask[0]] += F.one_hot(batch.inputs["input_ids"][0][batch.mask[0]].roll(-1), VOCABULARY)
    found = Objective(LanguageModelLoss()).right(values, batch)
    for n in range(4):
        here, ids = values[n][batch.mask[n]], batch.inputs["input_ids"][n][batch.mask[n]]
        hits = (here[:-1].argmax(1) == ids[1:]).double()
        assert float(found[n]) == pytest.approx(float(hits.mean()) if len(hits) else 0.0)
    assert float(found[0]) == 1


def test_right_classes() -> None:
    values, codes = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 0])
    batch = Batch({"": values}, targets={"side": codes})
    found = Objective(ClassificationLoss(label="side")).right(values, batch)
    torch.testing.assert_close(found, (values.argmax(1) == codes).double())
    near = SimilarityLoss(label="side", form="cosine")
    ones = torch.stack(
        [
            1 - Objective(near, n_classes=4)(values, batch._replace(targets={"side": torch.full((6,), k)}))
            for k in range(4)
        ],
        1,
    )
    found = Objective(near, n_classes=4).right(values, batch)
    torch.testing.assert_close(found, (ones.argmax(1) == codes).double())
    half = torch.randn(500, 64).bfloat16()
    codes = Batch({"": half}, targets={"side": torch.zeros(500).long()})
    found = Objective(near, n_classes=4).right(half, codes)
    torch.testing.assert_close(found, Objective(near, n_classes=4).right(half.float(), codes))
    with pytest.raises(MethodError, match="no classes to be right about"):
        Objective(MseLoss()).right(values, Batch({"": values}))


def test_projections_of_outputs_have_their_second_moment() -> None:
    """Over many vectors, gradients of x -> W x have the second moment W'W."""
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    x = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    batch = Batch({"": x}, targets={"#sample": torch.arange(len(x))})
    loss = Objective(ProjectionLoss(unit_length=False))(x @ weight.T, batch)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    expected = weight.T @ weight
    error = (gradient.T @ gradient / len(x) - expected).abs().max()
    assert float(error) < 0.05 * float(expected.abs().max())


def test_a_sample_keeps_its_vector_in_any_batch() -> None:
    values = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 4).bool()
    loss = ProjectionLoss(seed=3)
    batch = Batch({"": values}, mask=mask, targets={"#sample": torch.tensor([7, 3, 9, 1])})
    found = Objective(loss)(values, batch)
    again = Objective(loss)(values[[2, 0]], batch.take(torch.tensor([2, 0])))
    torch.testing.assert_close(again, found[[2, 0]])
    torch.testing.assert_close(Objective(loss)(5 * values, batch), found)  # of length 1
    pooled = Objective(loss)(values[:, :3].mean(1), batch)
    torch.testing.assert_close(pooled, found)
    first = Objective(loss.model_copy(update={"pooling": "cls"}))(values, batch)
    torch.testing.assert_close(first, Objective(loss)(values[:, 0], batch))
    other = Objective(loss.model_copy(update={"seed": 4}))(values, batch)
    assert not torch.allclose(other, found)
    with pytest.raises(ModelError, match="which samples"):
        Objective(loss)(values, Batch({"": values}))
    with pytest.raises(ModelError, match="takes rows"):
        Objective(loss)(values[..., None], batch)


def test_samples_of_a_projection_are_numbered_by_the_data() -> None:
    found = targets(ProjectionLoss(), {"side": [7, 4, 5]}, [2, 0])
    assert found["#sample"].tolist() == [0, 2]  # the batch holds places 1 and 0
