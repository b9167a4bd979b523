"""Saved states of folds: NumPy archives without pickles, digest inside. Damaged ones are as if absent."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import NotFoundError, UnitError
from schemas.receipts import FileDigest
from tasks.store.location import Location, digest_of

DIGEST = "__sha256__"


def _digest(state: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.uint8]:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of names."""
    hasher = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name])
        hasher.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        hasher.update(array.reshape(-1).view(np.uint8).data)
    return np.frombuffer(hasher.digest(), dtype=np.uint8)


def save_state(root: Location, path: str, state: Mapping[str, npt.NDArray[Any]]) -> FileDigest:
    """Write a state in one step, durable on return; equal states give equal bytes.

    Args:
        root: where states lie.
        path: below the root, ending in .npz.
        state: named numeric arrays of any shape.

    Returns:
        Size and hash of the file, for the receipt.

    Raises:
        UnitError: if an array holds Python objects, which would need a pickle.
    """
    arrays = {name: np.asarray(array) for name, array in state.items()}
    objects = [name for name, array in arrays.items() if array.dtype.hasobject]
    if objects or DIGEST in arrays:
        raise UnitError(
            f"a state holds numeric arrays only; {', '.join(objects) or DIGEST} cannot be saved in {path}"
        )
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{DIGEST: _digest(arrays)}, **dict(sorted(arrays.items())))
    data = buffer.getvalue()
    root.write(path, data)
    return digest_of(data)


def load_state(root: Location, path: str) -> dict[str, npt.NDArray[Any]] | None:
    """A saved state; None if it is absent or damaged, so that it is computed again."""
    try:
        data = root.read(path)
    except NotFoundError:
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            state = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError):
        return None  # RuntimeError: a flipped bit says `encrypted`, or a compression that nobody has
    stored = state.pop(DIGEST, None)
    return state if stored is not None and np.array_equal(stored, _digest(state)) else None
