"""One loss per sample from what a network returns. No sample has a part in another's."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from schemas.base import sha256
from schemas.errors import MethodError, ModelError, SpecError, SubspanError
from schemas.loss import (
    IGNORED,
    ClassificationLoss,
    FactoryLoss,
    LanguageModelLoss,
    Loss,
    MseLoss,
    ProjectionLoss,
    Reduction,
    SimilarityLoss,
)
from tasks.extract.batches import Batch
from tasks.extract.hooks import tensors
from tasks.extract.imports import imported, source_file
from tasks.extract.pooling import pooled
from tasks.extract.projections import embedding, projected
from tasks.extract.prototypes import Prototypes
from tasks.extract.targets import OWN


class Objective:
    """A loss, ready for batches."""

    def __init__(self, loss: Loss, mean_targets: float = 1.0, n_classes: int = 0) -> None:
        """Make it.

        Args:
            loss: of the request.
            mean_targets: targets of a sample, on average over the capture; for the reduction `token-mean`.
            n_classes: classes of the data; for prototypes.
        """
        self.loss = loss
        self.mean_targets = mean_targets
        self.n_classes = n_classes

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """The loss of each sample, with its graph.

        Args:
            output: what the network returned.
            batch: the batch that it was given, with its targets.

        Returns:
            Floating [sample]; float32 where the network computes in less.

        Raises:
            ModelError: if the output does not fit the loss, or a function gave anything but one number per sample.
        """
        found = self._of(output, batch)
        if tuple(found.shape) != (batch.n_samples,) or not found.is_floating_point():
            raise ModelError(
                f"the loss {self._name} gave {found.dtype} of shape {tuple(found.shape)} for {batch.n_samples} samples; expected one "
                f"number for each, shape ({batch.n_samples},): reduce over everything but the first axis"
            )
        return found

    @property
    def needs_count(self) -> bool:
        """Whether `mean_targets` matters."""
        return isinstance(self.loss, LanguageModelLoss) and self.loss.reduction == "token-mean"

    def count(self, batch: Batch) -> Tensor:
        """int64 [sample]: targets of each sample of a text, known without a forward."""
        return (_token_targets(self._language_model, batch)[1] != IGNORED).sum(1)

    @cached_property
    def digest(self) -> str:
        """sha256 of what the loss is made of beside its options: the file of a function, the bytes of prototypes."""
        if isinstance(self.loss, FactoryLoss):
            imported(self.loss.function, "the loss", ModelError)
            file = source_file(self.loss.function)
            return sha256(Path(file).read_bytes() if file else b"")
        return self._prototypes.digest if isinstance(self.loss, SimilarityLoss) else ""

    @property
    def _name(self) -> str:
        return self.loss.function if isinstance(self.loss, FactoryLoss) else repr(self.loss.kind)

    @property
    def _language_model(self) -> LanguageModelLoss:
        if not isinstance(self.loss, LanguageModelLoss):
            raise SpecError(f"the loss {self._name} has one target per sample; nothing is to be counted")
        return self.loss

    def tensor(self, output: Any) -> Tensor:
        """The tensor of the network's output that the loss takes.

        Raises:
            ModelError: if there is none of that name.
            MethodError: if the loss is a function of the whole output.
        """
        if isinstance(self.loss, FactoryLoss) and not self.loss.output and not isinstance(output, Tensor):
            raise MethodError(
                f"the loss {self._name} takes the whole output of the network; name the tensor that it takes with `output`"
            )
        return self._tensor(output)

    def of_tensor(self, value: Tensor, batch: Batch) -> Tensor:
        """The loss of each sample from the tensor that `tensor` gives."""
        loss = self.loss
        if isinstance(loss, FactoryLoss):
            return self._called(loss, value, batch)
        return self._of(value, batch)

    def right(self, value: Tensor, batch: Batch) -> Tensor:
        """Share of a sample's targets for which the tensor that `tensor` gives is largest.

        Returns:
            float64 [sample]: 0 or 1 for a class, a share of tokens for a text (0 for one without targets).

        Raises:
            MethodError: if the loss compares with no classes.
        """
        loss = self.loss
        if isinstance(loss, LanguageModelLoss):
            wanted = _token_targets(loss, batch)[1].to(value.device)
            hits = (value[:, : wanted.shape[1]].argmax(2) == wanted) & (wanted != IGNORED)
            return hits.sum(1).double() / (wanted != IGNORED).sum(1).clamp(min=1)
        if not isinstance(loss, ClassificationLoss | SimilarityLoss):
            raise MethodError(
                f"the loss {self._name} has no classes to be right about; measure the loss itself"
            )
        codes = _target(batch, loss.label).to(value.device)
        scores = value
        if isinstance(loss, SimilarityLoss):
            scores = self._prototypes.cosines(_at_least_float32(value), batch)
        return (scores.argmax(1) == codes).double()

    def summed(self, losses: Tensor, targets: Tensor) -> Tensor:
        """Losses as sums over targets.

        Args:
            losses: [sample], as this objective gives them.
            targets: int64 [sample], of each sample.
        """
        reduction = self.loss.reduction if isinstance(self.loss, LanguageModelLoss) else "sum"
        if reduction == "sample-mean":
            return losses * targets
        return losses * self.mean_targets if reduction == "token-mean" else losses

    @property
    def tells(self) -> bool:
        """Whether losses say how good outputs are."""
        return not isinstance(self.loss, ProjectionLoss)

    @property
    def gives(self) -> Literal["tokens", "classes", "embeddings"]:
        """What the tensor that the loss takes says of samples."""
        if isinstance(self.loss, LanguageModelLoss):
            return "tokens"
        return "classes" if isinstance(self.loss, ClassificationLoss) else "embeddings"

    def rows(self, value: Tensor, batch: Batch) -> Tensor:
        """What the network says, row by row, in float32 at least.

        Args:
            value: that `tensor` gives.
            batch: that it belongs to.

        Returns:
            Logits [token, vocabulary] of the real tokens of all samples, logits [sample, class], or embeddings [sample, feature].
        """
        value, loss = _at_least_float32(value), self.loss
        if isinstance(loss, LanguageModelLoss):
            return value.flatten(0, 1) if batch.mask is None else value[batch.mask.to(value.device)]
        if isinstance(loss, ProjectionLoss):
            return embedding(value, batch, loss)
        if isinstance(loss, SimilarityLoss):
            return F.normalize(pooled(value, batch, loss), dim=1)
        if value.ndim > 2 and batch.mask is not None:
            raise ModelError(
                f"the loss {self._name} takes outputs of shape {tuple(value.shape)}, of which there is no one embedding of a text; compare "
                "networks by a loss that pools tokens: {kind: projection}, or {kind: similarity}"
            )
        return value.reshape(batch.n_samples, -1)

    def _of(self, output: Any, batch: Batch) -> Tensor:
        loss = self.loss
        if isinstance(loss, FactoryLoss):
            given = self._tensor(output) if loss.output else output
            return self._called(loss, given, batch)
        value = _at_least_float32(self._tensor(output))
        if isinstance(loss, LanguageModelLoss):
            return self._tokens(value, batch, loss)
        if isinstance(loss, MseLoss):
            return self._squares(value, batch, loss)
        if isinstance(loss, ProjectionLoss):
            return projected(value, batch, loss)
        codes = _target(batch, loss.label).to(value.device)
        if isinstance(loss, ClassificationLoss):
            _refuse_shape(value, codes, 2, "logits [sample, class]")
            _refuse_classes(codes, value.shape[1], "logits")
            return F.cross_entropy(value, codes, reduction="none")
        return self._similarity(value, codes, batch, loss)

    def _called(self, loss: FactoryLoss, given: Any, batch: Batch) -> Tensor:
        try:
            value = self._function(given, batch, **loss.arguments)
        except (SubspanError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ModelError(
                f"the loss {loss.function} raised {type(error).__name__}: {error}; it was called with {_described(given)}, a batch of "
                f"{batch.n_samples} samples{_described_arguments(loss.arguments)}"
            ) from error
        if not isinstance(value, Tensor):
            raise ModelError(
                f"the loss {loss.function} gave a {type(value).__name__}; expected a tensor, one number for each sample"
            )
        return value

    def _tensor(self, output: Any) -> Tensor:
        found = dict(tensors(output))
        name = self.loss.output or next(iter(found), "")
        if name not in found:
            there = (
                ", ".join(path or "one without a name: leave `output` out" for path in found) or "no tensors"
            )
            raise ModelError(
                f"the network's output has no tensor {name!r} for the loss, it is a {type(output).__name__} with {there}"
            )
        return found[name]

    def _tokens(self, logits: Tensor, batch: Batch, loss: LanguageModelLoss) -> Tensor:
        chosen, wanted = _token_targets(loss, batch)
        if logits.ndim != 3 or logits.shape[:2] != chosen.shape:
            raise ModelError(
                f"the loss 'lm' takes logits of shape {(*chosen.shape, 'vocabulary')}, found {tuple(logits.shape)}: use a network with a "
                "language model's head (head: causal-lm)"
            )
        largest, width = int(wanted.max()) if wanted.numel() else 0, logits.shape[-1]
        if largest >= width:
            raise ModelError(
                f"the loss 'lm' has token ids up to {largest}, and the network gives {width} numbers per token: it has no language model's "
                "head (head: causal-lm), or the tokenizer is another network's"
            )
        wanted = wanted.to(logits.device)
        kept = logits[:, : wanted.shape[1]]
        each = F.cross_entropy(
            kept.flatten(0, 1), wanted.flatten(), reduction="none", ignore_index=IGNORED
        ).view(wanted.shape)
        return self._reduce(each.sum(1), (wanted != IGNORED).sum(1), loss.reduction)

    def _squares(self, value: Tensor, batch: Batch, loss: MseLoss) -> Tensor:
        if value.ndim == 0 or len(value) != batch.n_samples:
            raise ModelError(
                f"the loss 'mse' takes an output of {batch.n_samples} samples along its first axis, found shape {tuple(value.shape)}"
            )
        flat = value.reshape(len(value), -1)
        target = _target(batch, loss.target) if loss.target else next(iter(batch.inputs.values()))
        wanted = target.to(flat).reshape(batch.n_samples, -1)
        if flat.shape != wanted.shape:
            raise ModelError(
                f"the loss 'mse' compares {tuple(value.shape)} of the network with {tuple(target.shape)} of "
                f"{f'target {loss.target!r}' if loss.target else 'its input, as no target: is given'}; expected equal shapes"
            )
        squares = (flat - wanted).square().sum(1)
        return squares if loss.reduction == "sum" else squares / flat.shape[1]

    def _reduce(self, total: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        if reduction == "sum":
            return total
        if reduction == "sample-mean":
            return total / targets.clamp(min=1)
        return total / self.mean_targets

    def _similarity(self, value: Tensor, codes: Tensor, batch: Batch, loss: SimilarityLoss) -> Tensor:
        cosines = self._prototypes.cosines(value, batch)
        _refuse_classes(codes, cosines.shape[1], "prototypes")
        if loss.form == "cosine":
            return 1 - cosines.gather(1, codes[:, None])[:, 0]
        return F.cross_entropy(cosines / loss.temperature, codes, reduction="none")

    @cached_property
    def _prototypes(self) -> Prototypes:
        if not isinstance(self.loss, SimilarityLoss):
            raise SpecError(f"the loss {self._name} has no prototypes")
        return Prototypes(self.loss, self.n_classes)

    @cached_property
    def _function(self) -> Any:
        if not isinstance(self.loss, FactoryLoss):
            raise SpecError(f"the loss {self._name} is no function of one's own")
        return imported(self.loss.function, "the loss", ModelError)


def _token_targets(loss: LanguageModelLoss, batch: Batch) -> tuple[Tensor, Tensor]:
    """The ids [sample, place], and for each place that predicts its target, `IGNORED` where there is none.

    Raises:
        ModelError: for a batch that is no text.
    """
    ids, mask = batch.token_id, batch.mask
    if ids is None or mask is None:
        raise ModelError("the loss 'lm' takes texts or token sequences; found inputs without token ids")
    own = (batch.targets or {}).get(OWN)
    wanted = (ids.long() if own is None else own).masked_fill(~mask, IGNORED)
    if not loss.shift:
        if own is None:
            raise ModelError(
                "the loss 'lm' with shift: false takes an input `labels` of every sample; found none (shift: true predicts the next token)"
            )
        return ids, wanted
    return ids, wanted[:, 1:].masked_fill(~mask[:, :-1], IGNORED)


def _target(batch: Batch, name: str) -> Tensor:
    found = (batch.targets or {}).get(name)
    if found is None:
        raise ModelError(f"the batch carries no label {name!r} for the loss; encode it with its loss")
    return found


def _at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__} of {', '.join(name for name, _ in tensors(value)) or 'no tensors'}"


def _described_arguments(arguments: Mapping[str, Any]) -> str:
    return f" and the arguments {', '.join(arguments)}" if arguments else ""


def _refuse_shape(value: Tensor, codes: Tensor, axes: int, expected: str) -> None:
    if value.ndim != axes or len(value) != len(codes):
        raise ModelError(
            f"the loss takes {expected} for {len(codes)} samples, found {tuple(value.shape)}; name the tensor with `output`, or use a "
            "network with that head"
        )


def _refuse_classes(codes: Tensor, classes: int, what: str) -> None:
    highest = int(codes.max()) if len(codes) else -1
    if highest >= classes:
        raise ModelError(
            f"a sample is of class {highest} (from 0), there are {classes} {what}; name the classes in order with `classes`"
        )
