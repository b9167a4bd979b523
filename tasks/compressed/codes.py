"""A matrix in codes of a few bits, and products with it."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.compressed.bits import pack, row_bytes, unpack

AT_ONCE = 1 << 22
"""Weights that are made of codes together, in whole rows."""
AS_WHOLE = {torch.float16: torch.int16, torch.float32: torch.int32}


class Codes(nn.Module):
    """step (code - zero), of a step and a zero for each group of inputs of each row.

    Steps lie in whole numbers of the same bits, as networks are cast to other dtypes, which would round them.
    """

    packed: Tensor
    """uint8 [output, byte]: see `bits`."""
    step: Tensor
    """[output, group]: the bits of float16 as int16, or those of float32 as int32."""
    zero: Tensor | None
    """uint8 [output, group]; None: the middle code."""

    def __init__(
        self, packed: Tensor, step: Tensor, zero: Tensor | None, inputs: int, bits: int, group: int
    ) -> None:
        """Take what `of` makes."""
        super().__init__()
        self.inputs, self.bits, self.group = inputs, bits, group
        self.register_buffer("packed", packed)
        self.register_buffer("step", step)
        self.register_buffer("zero", zero)

    @classmethod
    def of(cls, code: Tensor, step: Tensor, zero: Tensor | None, bits: int, group: int) -> Self:
        """Pack.

        Args:
            code: uint8 [output, input], below 2^bits.
            step: float [output, group]; kept in float16 where that changes nothing, else in float32.
            zero: uint8 [output, group], or None for 2^(bits - 1).
            bits: 1 to 8.
            group: inputs of a group; the last may have fewer.
        """
        step = step.float()
        half = step.half()
        kept = half if torch.equal(half.float(), step) else step
        whole = kept.contiguous().view(AS_WHOLE[kept.dtype])
        return cls(
            pack(code, bits), whole, None if zero is None else zero.contiguous(), code.shape[1], bits, group
        )

    @classmethod
    def near(cls, weight: Tensor, bits: int = 8) -> Self:
        """Every weight to the nearest code; each row has a step of its own, about the middle code.

        Args:
            weight: [output, input], finite.
        """
        high = 2.0 ** (bits - 1)
        step = weight.double().abs().amax(1, keepdim=True) / (high - 0.5)
        step = torch.where(step > 0, step, 1.0).float()
        code = ((weight.double() / step).round() + high).clamp(0, 2 * high - 1)
        return cls.of(code.to(torch.uint8), step, None, bits, weight.shape[1])

    @classmethod
    def empty(cls, outputs: int, inputs: int, bits: int, group: int, symmetric: bool, step: str) -> Self:
        """Of these shapes, not yet set.

        Args:
            step: float16 or float32.
        """
        groups = -(-inputs // group)
        packed = torch.empty(outputs, row_bytes(inputs, bits), dtype=torch.uint8)
        zero = None if symmetric else torch.empty(outputs, groups, dtype=torch.uint8)
        return cls(
            packed,
            torch.empty(outputs, groups, dtype=AS_WHOLE[getattr(torch, step)]),
            zero,
            inputs,
            bits,
            group,
        )

    @property
    def codes(self) -> int:
        """How many there are."""
        return len(self.packed) * self.inputs

    @property
    def more_codes(self) -> int:
        """By how much they are more than bytes."""
        return self.codes - self.packed.numel()

    @property
    def step_dtype(self) -> str:
        """float16 or float32."""
        return "float16" if self.step.dtype == torch.int16 else "float32"

    def weight(self, rows: slice = slice(None)) -> Tensor:
        """float32 [output, input]: what the codes of some rows stand for."""
        step = self.step[rows].view(getattr(torch, self.step_dtype)).float()
        code = unpack(self.packed[rows], self.inputs, self.bits).float()
        grouped = F.pad(code, (0, step.shape[1] * self.group - self.inputs)).view(*step.shape, self.group)
        grouped -= 2.0 ** (self.bits - 1) if self.zero is None else self.zero[rows, :, None].float()
        return grouped.mul_(step[..., None]).flatten(1)[:, : self.inputs]

    def multiply(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output] in the dtype of x. Memory: `AT_ONCE` weights, whatever the matrix."""
        rows = max(1, AT_ONCE // self.inputs)
        parts = [slice(first, first + rows) for first in range(0, len(self.packed), rows)]
        return torch.cat([F.linear(x, self.weight(part).to(x.dtype)) for part in parts], -1)
