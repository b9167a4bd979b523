"""What every compressed layer is: a module that is rebuilt from a few numbers and its tensors, and says which map it stands for."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

Number = int | float | str | bool


class Affine(NamedTuple):
    """A map y = weight x + bias."""

    weight: Tensor
    """[output, input]."""
    bias: Tensor | None
    """[output]."""


class CompressedLayer(nn.Module, ABC):
    """A layer in fewer numbers. All that it holds are parameters and buffers, so that a state dict is the whole of it."""

    kind: ClassVar[str]
    """Its name in files."""
    reads: ClassVar[tuple[str, ...]]
    """Arrays of an artifact that `of` takes, where the artifact has them."""

    @classmethod
    @abstractmethod
    def empty(cls, **spec: Any) -> Self:
        """A layer of the shapes that `spec` tells, its tensors not yet set.

        Args:
            spec: what `spec` gave.
        """

    @classmethod
    @abstractmethod
    def of(
        cls, arrays: Mapping[str, Tensor], result: Mapping[str, Any], choice: Mapping[str, Any], layer: Affine
    ) -> Self:
        """The layer that an artifact tells of.

        Args:
            arrays: of the artifact.
            result: of the artifact.
            choice: what is chosen of what the artifact offers, such as the rank.
            layer: the map that it stands for, in the dtype in which the network computes.
        """

    @abstractmethod
    def spec(self) -> dict[str, Number]:
        """The numbers from which `empty` makes a layer of these shapes."""

    @abstractmethod
    def affine(self) -> Affine:
        """The map that it computes, in float64."""

    @property
    @abstractmethod
    def products(self) -> int:
        """Multiplications that a row takes, without those that make weights of what is held."""

    @property
    def numbers(self) -> int:
        """Numbers that it holds; of those in few bits each counts as one."""
        return sum(tensor.numel() for tensor in self.state_dict().values())

    @property
    def stored_bytes(self) -> int:
        """Of its tensors, as a file has them."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())
