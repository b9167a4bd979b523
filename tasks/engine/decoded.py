"""Rows of a capture as the codes of an artifact tell them."""

from functools import cached_property
from typing import Any

import numpy as np

from schemas.errors import MethodError
from schemas.layout import Space
from schemas.stage import RowsRef
from tasks.decoders import Decoder, decoder_of
from tasks.store.artifacts import open_arrays, read_artifact
from tasks.store.location import Location


class DecodedRows:
    """What codes of a capture's site stand for; whole chunks are decoded, so that a row's bits do not depend on how rows are cut.

    Args:
        root: where the artifact lies.
        ref: whose `codes` it is.
        space: of the rows.

    Raises:
        MethodError: if the artifact holds no codes, or those of other rows.
        NotFoundError: if it is not there.
    """

    def __init__(self, root: Location, ref: RowsRef, space: Space) -> None:
        assert ref.codes is not None
        made = read_artifact(root, ref.codes)
        self._decoder: Decoder = decoder_of(made.stage.method)
        (refs,) = made.stage.rows.values()
        if (ref.capture, ref.site) not in [(one.capture, one.site) for one in refs]:
            raise MethodError(
                f"artifact {ref.codes} codes {' + '.join(one.label for one in refs)}, found {ref.capture[:8]} {ref.site} to be read from "
                "it; code these rows"
            )
        self._root, self._artifact, self._step = root, ref.codes, space.chunk_rows
        self._prefix = f"{ref.capture}/" if len(refs) > 1 else ""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """float32 [row, feature]; NaN for rows of failed samples."""
        first = start - start % self._step
        arrays = {name: np.asarray(array[first : self._end(stop)]) for name, array in self._of_rows.items()}
        pieces = [
            self._decoder.decode(
                self._fixed, {name: values[at : at + self._step] for name, values in arrays.items()}
            )
            for at in range(0, max(1, len(next(iter(arrays.values())))), self._step)
        ]
        return np.concatenate(pieces)[start - first : stop - first]

    def _end(self, stop: int) -> int:
        return -(-stop // self._step) * self._step

    @cached_property
    def _fixed(self) -> dict[str, np.ndarray]:
        group: Any = open_arrays(self._root, self._artifact)
        return {name: np.asarray(group[name][...]) for name in self._decoder.fixed}

    @cached_property
    def _of_rows(self) -> dict[str, Any]:
        group: Any = open_arrays(self._root, self._artifact)
        return {name: group[f"{self._prefix}{name}"] for name in self._decoder.of_rows}
