"""Small whole numbers side by side in bytes: code k of a row takes the bits from k b on, the lowest first."""

import torch
from torch import Tensor

AT_ONCE = 8
"""Codes that end with a byte, whatever their bits."""


def row_bytes(inputs: int, bits: int) -> int:
    """Bytes of a packed row."""
    return -(-inputs * bits // 8)


def pack(code: Tensor, bits: int) -> Tensor:
    """uint8 [row, byte] of codes.

    Args:
        code: uint8 [row, input], below 2^bits.
        bits: 1 to 8.
    """
    rows, inputs = code.shape
    padded = torch.nn.functional.pad(code, (0, -inputs % AT_ONCE))
    wide = padded.view(rows, padded.shape[1] // AT_ONCE, AT_ONCE).to(torch.int32)
    out = torch.zeros((*wide.shape[:2], bits + 1), dtype=torch.int32, device=code.device)
    for k in range(AT_ONCE):
        byte, shift = divmod(k * bits, 8)
        out[..., byte] |= wide[..., k] << shift & 255
        out[..., byte + 1] |= wide[..., k] << shift >> 8
    return out[..., :bits].to(torch.uint8).flatten(1)[:, : row_bytes(inputs, bits)].contiguous()


def unpack(packed: Tensor, inputs: int, bits: int) -> Tensor:
    """uint8 [row, input]: the codes again.

    Args:
        packed: uint8 [row, byte].
        inputs: codes of a row.
        bits: 1 to 8.
    """
    if bits == 8:
        return packed
    if 8 % bits == 0:  # whole codes in each byte
        parts = [packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)]
        return torch.stack(parts, -1).flatten(1)[:, :inputs]
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[1] % bits))
    padded = padded.view(len(packed), padded.shape[1] // bits, bits)
    start = torch.arange(AT_ONCE, device=packed.device) * bits
    byte, shift = start // 8, (start % 8).to(torch.int16)
    two = padded[..., byte].to(torch.int16)
    two |= padded[..., (byte + 1).clamp(max=bits - 1)].to(torch.int16) << 8
    code: Tensor = (two >> shift & 2**bits - 1).to(torch.uint8)
    return code.flatten(1)[:, :inputs]
