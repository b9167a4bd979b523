"""Which samples go through the network, and in which order they are stored."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, JsonValue, model_serializer

from schemas.base import Frozen
from schemas.model import ImportPath


class StdlibDocstrings(Frozen):
    """The docstrings of the running interpreter's standard library, labelled by top-level module and kind."""

    kind: Literal["stdlib-docstrings"] = "stdlib-docstrings"
    min_characters: int = Field(40, ge=1)
    """Shorter docstrings are left out."""


class SklearnDigits(Frozen):
    """The 1,797 handwritten digits of scikit-learn: 8 x 8 values in 0..1, labelled 0..9."""

    kind: Literal["digits"] = "digits"
    layout: Literal["flat", "image"] = "image"
    """`flat` gives vectors of 64 values, `image` gives 1 x 8 x 8."""


class TextFiles(Frozen):
    """Samples of text: one per row of jsonl, csv or parquet, one per line of txt."""

    kind: Literal["text"] = "text"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, or globs over them, local or any fsspec URL. Order: sorted by path, then by row."""
    text_column: str = "text"
    """The column that holds the text (not for txt)."""
    key_column: str | None = None
    """A column of unique names; without it a sample is called `<file>:<row>`."""
    label_columns: tuple[str, ...] = ()
    """Columns carried through as labels."""
    on_empty: Literal["refuse", "skip"] = "refuse"
    """What an empty text does: refuse the run, or be left out and counted."""


class ImageFolder(Frozen):
    """Images below a folder, labelled by the name of their sub-folder."""

    kind: Literal["images"] = "images"
    path: str
    """A folder of images, or of one folder per class."""
    size: int = Field(224, ge=1)
    """Height and width in pixels after resizing."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Subtracted per channel after scaling to 0..1; one value makes the image grey."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Divided by, per channel."""


class ArrayFiles(Frozen):
    """Samples along the first axis of an npy, npz or zarr array."""

    kind: Literal["arrays"] = "arrays"
    path: str
    """A .npy, .npz or .zarr path or fsspec URL."""
    array: str | None = None
    """The name inside an npz or zarr group; needed when there are several arrays."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Label name to the name of an array of the same length in the same file."""


class SavedDataset(Frozen):
    """A Hugging Face dataset that `save_to_disk` wrote."""

    kind: Literal["hf-dataset"] = "hf-dataset"
    path: str
    column: str = "text"
    """The column of texts or of arrays."""
    key_column: str | None = None
    label_columns: tuple[str, ...] = ()
    split: str | None = None
    """Needed when the folder holds several splits."""


class FactoryData(Frozen):
    """A torch `Dataset` (with length) made by a function.

    An item is a text, a tensor, a dict of keyword tensors, or a pair (item, label); a dict may carry `key` and `label`.
    """

    kind: Literal["factory"] = "factory"
    factory: ImportPath
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class Recording(Frozen):
    """Weights, updates and gradients that `subspan.Recorder` wrote while a network was trained: one sample per step."""

    kind: Literal["recording"] = "recording"
    path: str
    """The recording's folder or fsspec URL, `<root>/recordings/<name>`."""


class Checkpoints(Frozen):
    """Weights in files of a training, one sample per file, in order of the numbers in their names."""

    kind: Literal["checkpoints"] = "checkpoints"
    path: str
    """A glob over .safetensors, .pt or .bin files of state dicts, such as `runs/checkpoint-*/model.safetensors`."""
    parameters: tuple[str, ...] = ("**",)
    """Globs over names of tensors; those of whole numbers are left out."""
    quantities: tuple[Literal["weight", "update"], ...] = ("weight",)
    """`update` is the weight less that of the file before, zero for the first."""


Source = (
    StdlibDocstrings
    | SklearnDigits
    | TextFiles
    | ImageFolder
    | ArrayFiles
    | SavedDataset
    | FactoryData
    | Recording
    | Checkpoints
)


class Subset(Frozen):
    """A seeded part of the data, kept in data order."""

    max_tokens: int | None = Field(None, ge=1)
    """Stop when the drawn samples hold about this many rows (tokens); texts only."""
    max_samples: int | None = Field(None, ge=1)
    """Stop after this many samples."""
    skip_samples: int = Field(0, ge=0)
    """Leave out so many samples that the draw would take first: a draw that skips as many as another of the same seed took shares none
    with it."""
    stratify_by: str | None = None
    """A label: every class keeps its share."""
    seed: int = 0
    """Seed of the draw."""

    @model_serializer(mode="wrap")
    def _without_what_is_none(self, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Draws that skip nothing keep the id that they had before there was such an option."""
        found = plain(self)
        if not self.skip_samples:
            found.pop("skip_samples", None)
        return found


class Data(Frozen):
    """A source and the part of it that is used."""

    source: Source
    subset: Subset = Subset()
    partition_by: Literal["none", "file"] = "none"
    """`file` makes one capture per file, so that a later run captures only new files."""
