"""Which loss gradients are taken of: one number per sample, that no other sample of the batch has a part in."""

from typing import Literal

from pydantic import Field, JsonValue

from schemas.base import Frozen
from schemas.model import ImportPath

Reduction = Literal["sum", "token-mean", "sample-mean"]
"""How the targets of a sample add up to its loss, so that rows tell the gradient of a loss of the whole capture.

`sum`: the sum over the sample's targets; rows add up to the gradient of the summed loss.
`sample-mean`: the mean over the sample's targets; the mean of rows is the gradient of the mean over samples.
`token-mean`: the sum divided by the mean number of targets of the capture's samples; the mean of rows is the gradient of the mean
over all targets.
"""

IGNORED = -100
"""A target of this value counts for nothing, as in torch's cross-entropy."""


class _Loss(Frozen):
    output: str = ""
    """Which tensor of the network's output: a path such as `logits` or `0`; empty: the first one."""


class LanguageModelLoss(_Loss):
    """Cross-entropy of tokens. Padding never counts; targets of -100 in an input called `labels` do not either."""

    kind: Literal["lm"] = "lm"
    reduction: Reduction = "sum"
    """How the tokens of a sample add up."""
    shift: bool = True
    """Each position predicts the next token; off: its own `labels`."""


class ClassificationLoss(_Loss):
    """Cross-entropy of one class per sample; the network gives logits, one per class."""

    kind: Literal["classification"] = "classification"
    label: str
    """The label of the data that names the classes."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in order of the logits; None: whole numbers are the class, names count in their alphabetical order."""


class MseLoss(_Loss):
    """Squared error over the network's outputs of a sample."""

    kind: Literal["mse"] = "mse"
    reduction: Reduction = "sum"
    """How the outputs of a sample add up."""
    target: str = ""
    """A label of floating point numbers; empty: the network's own (one) input, as of an autoencoder."""


class SimilarityLoss(_Loss):
    """How well the embedding of a sample fits its class among class prototypes; the network gives rows per token, or one.

    `cosine`: one less the cosine with the prototype of its class. `contrastive`: cross-entropy of cosines with all prototypes, over
    the temperature. Negatives are prototypes, not the samples beside it: those would make a gradient depend on its batch.
    """

    kind: Literal["similarity"] = "similarity"
    label: str
    """The label of the data that names the classes."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in order of the prototypes; None: whole numbers are the class, names count in their alphabetical order."""
    form: Literal["cosine", "contrastive"] = "contrastive"
    temperature: float = Field(0.05, gt=0, allow_inf_nan=False)
    """Divides cosines; for `contrastive`."""
    pooling: Literal["mean", "cls"] = "mean"
    """How tokens become one embedding: the mean of the real ones, or the first."""
    prototypes: str | None = None
    """An .npy file, one row per class in order of names; None: seeded random unit vectors."""
    seed: int = Field(0, ge=0)
    """Of random prototypes."""


class ProjectionLoss(_Loss):
    """The network's output times a random vector, another for each sample: no label is needed.

    Gradients then show what moves the output at all: their second moment at a layer is the mean over samples of J'J, with J the derivative
    of the output. It is the metric in which a change of that layer is felt by whoever uses the output.
    """

    kind: Literal["projection"] = "projection"
    pooling: Literal["mean", "cls"] = "mean"
    """How tokens become one embedding: the mean of the real ones, or the first. Outputs without tokens are taken as they are."""
    unit_length: bool = True
    """Scale outputs to length 1 first, as where only their angles count."""
    seed: int = Field(0, ge=0)
    """Of the vectors; each sample has its own, whatever it is batched with."""


class FactoryLoss(_Loss):
    """A function of one's own: `function(output, batch, **arguments) -> [sample]`.

    `output` is what the network returned (or its tensor at `output`), `batch` a `tasks.extract.batches.Batch`: inputs, mask, targets.
    """

    kind: Literal["factory"] = "factory"
    function: ImportPath
    """`module.path:function`, importable where the workers run."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the function."""
    labels: tuple[str, ...] = ()
    """Labels of the data that it takes."""


Loss = LanguageModelLoss | ClassificationLoss | MseLoss | SimilarityLoss | ProjectionLoss | FactoryLoss
"""The `kind` tells which."""
