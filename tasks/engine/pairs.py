"""One block of rows of a `pairs` stage against all rows, as often as its method looks at them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schemas.base import Frozen
from tasks.methods.contract import Block, Inputs, State

MOST_BYTES = 512 << 20
"""Of all rows of a stage, up to which a worker keeps them from one look to the next."""


class Others:
    """All rows of a stage in blocks, in store order, as often as they are asked for.

    They are read each time, and one block exists at a time, unless all of them are few.

    Args:
        reads: give the blocks, as the method wants them.
        most_bytes: of the values of all blocks, up to which they stay once they have been read.
    """

    def __init__(self, reads: Sequence[Callable[[], Block]], most_bytes: int) -> None:
        self.reads, self.most_bytes = reads, most_bytes
        self.blocks: list[Block] = []
        self.read = 0
        """Blocks read so far."""
        self.held = 0
        """Bytes of the blocks that stay."""
        self._fits = True

    def __iter__(self) -> Iterator[Block]:
        for number, read in enumerate(self.reads):
            if number < len(self.blocks):
                yield self.blocks[number]
                continue
            self.read += 1
            block = read()
            self._keep(block)
            yield block
            del block

    def _keep(self, block: Block) -> None:
        self.held += sum(values.nbytes for values in block.rows.values())
        self._fits = self._fits and self.held <= self.most_bytes
        if self._fits:
            self.blocks.append(block)
        else:
            self.blocks.clear()


class Method(NamedTuple):
    """A `pairs` method that has begun."""

    module: ModuleType
    config: Frozen
    inputs: Inputs
    carry: State

    def prepared(self, block: Block) -> Block:
        """A block as the method wants it."""
        if not hasattr(self.module, "prepared"):
            return block
        made: Block = self.module.prepared(block, self.carry, self.config)
        return made

    def outputs(self, block: Block, others: Others) -> dict[str, Tensor]:
        """Of the rows of a prepared block, after all looks at all others."""
        most = (
            self.module.at_once(self.inputs, self.config) if hasattr(self.module, "at_once") else len(block)
        )
        starts = range(0, max(len(block), 1), max(most, 1))
        pieces = [self._concluded(rows_of(block, slice(s, s + starts.step)), others) for s in starts]
        if len(pieces) == 1:
            return pieces[0]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def _concluded(self, block: Block, others: Others) -> dict[str, Tensor]:
        state = self._after_all(block, others)
        if hasattr(self.module, "conclude"):
            concluded: dict[str, Tensor] = self.module.conclude(state, block, self.carry, self.config)
            return concluded
        return {name: state[name] for name in self.module.outputs(self.inputs, self.config)}

    def _after_all(self, block: Block, others: Others) -> State:
        state: State = self.module.begin(block, self.carry, self.config)
        more = True
        while more:
            for other in others:
                if len(block) and len(other):
                    state = self.module.pair(state, block, other, self.carry, self.config)
                del other
            more = len(block) > 0 and hasattr(self.module, "again")
            if more:
                state, more = self.module.again(state, block, self.carry, self.config)
        return state


def rows_of(block: Block, rows: slice) -> Block:
    """Some rows of a block, which share its memory."""
    if rows.start == 0 and rows.stop >= len(block):
        return block

    def part(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows]
        return {name: part(inner) for name, inner in value.items()} if isinstance(value, dict) else value

    return replace(block, **{field.name: part(getattr(block, field.name)) for field in fields(block)})
