"""Steps of a training as samples: what a recorder wrote, or files of weights. A value maps sites of parameters to their arrays."""

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas.data import Checkpoints, Recording
from schemas.errors import DataError
from schemas.layout import Site
from tasks.extract.sources.base import Label, Source, Table, digest_options
from tasks.extract.sources.files import File, below, digest, find, reading

LABEL = "label/"
"""In front of the names of labels in a step's file."""


def read(options: Recording | Checkpoints, partition: str | None = None) -> Source:
    """One sample per step, in order.

    Raises:
        DataError: if there is no step, or two files have one number.
    """
    found = files(options)
    if not found:
        raise DataError(f"{options.path} holds no steps; record some first, or correct the path")
    if isinstance(options, Recording):
        return Source(
            "inputs",
            len(found),
            lambda n: _values(_arrays(found[n])),
            lambda: _table(found),
            lambda: fingerprint(options),
        )
    numbers = [number(file.name) for file in found]
    table = Table([file.name for file in found], {"step": [float(n) for n in numbers]})
    return Source(
        "inputs",
        len(found),
        lambda n: _checkpoint(options, found, n),
        lambda: table,
        lambda: fingerprint(options),
    )


def fingerprint(options: Recording | Checkpoints, partition: str | None = None) -> str:
    """sha256 over the files and the options."""
    return digest_options(options, digest(files(options)))


def files(options: Recording | Checkpoints) -> list[File]:
    """The files of steps, in order.

    Raises:
        DataError: if two have one number, or none.
    """
    if isinstance(options, Recording):
        return sorted((f for f in below(options.path) if f.name.endswith(".npz")), key=lambda file: file.name)
    found = find([options.path])
    seen: dict[int, str] = {}
    for file in found:
        n = number(file.name)
        if n in seen:
            raise DataError(
                f"{seen[n]} and {file.name} are both of step {n}; expected one file for each: give a narrower glob"
            )
        seen[n] = file.name
    return sorted(found, key=lambda file: number(file.name))


def number(name: str) -> int:
    """The last number in a name, without its ending.

    Raises:
        DataError: if there is none.
    """
    parts = re.findall(r"\d+", re.sub(r"\.(safetensors|pt|bin)$", "", name))
    if not parts:
        raise DataError(
            f"the name {name!r} holds no number; expected the step in the name of each file, such as checkpoint-100"
        )
    return int(parts[-1])


def _arrays(file: File) -> dict[str, np.ndarray]:
    with (
        reading(file.name),
        file.system.open(file.path, "rb") as stream,
        np.load(io.BytesIO(stream.read()), allow_pickle=False) as held,
    ):
        return {name: held[name] for name in held.files}


def _values(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if not name.startswith(LABEL)}


def _table(found: list[File]) -> Table:
    keys = [file.name.removesuffix(".npz") for file in found]
    columns: dict[str, list[Label]] = {}
    for file in found:
        with (
            reading(file.name),
            file.system.open(file.path, "rb") as stream,
            np.load(io.BytesIO(stream.read()), allow_pickle=False) as held,
        ):
            for name in (name for name in held.files if name.startswith(LABEL)):
                columns.setdefault(name.removeprefix(LABEL), []).append(float(held[name]))
    return Table(keys, {name: column for name, column in columns.items() if len(column) == len(found)})


def _checkpoint(options: Checkpoints, found: list[File], n: int) -> dict[str, np.ndarray]:
    weights = _weights(options, found[n])
    values = {
        str(Site(module=name, quantity="weight")): weights[name]
        for name in weights
        if "weight" in options.quantities
    }
    if "update" in options.quantities:
        before = _weights(options, found[n - 1]) if n else weights
        for name, array in weights.items():
            if name not in before or before[name].shape != array.shape:
                raise DataError(
                    f"{found[n].name}: {name} is not there, or of another shape, in {found[n - 1].name}"
                )
            values[str(Site(module=name, quantity="update"))] = array - before[name]
    return values


def _weights(options: Checkpoints, file: File) -> dict[str, np.ndarray]:
    """Name to float32 array of the chosen tensors."""
    from tasks.extract.sites import glob

    patterns = [glob(pattern) for pattern in options.parameters]
    chosen = {
        name: tensor.float().numpy()
        for name, tensor in _load(file).items()
        if tensor.is_floating_point() and any(p.fullmatch(name) for p in patterns)
    }
    if not chosen:
        raise DataError(
            f"{file.name}: no tensor of floating point numbers matches {', '.join(options.parameters)}"
        )
    return chosen


def _load(file: File) -> dict[str, Any]:
    import torch

    with reading(file.name), file.system.open(file.path, "rb") as stream:
        data = stream.read()
    if file.name.endswith(".safetensors"):
        from safetensors.torch import load

        with reading(file.name):
            return dict(load(data))
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{file.name} cannot be read as tensors alone: {error}") from error
    if not isinstance(loaded, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in loaded.values()
    ):
        raise DataError(
            f"{file.name} holds a {type(loaded).__name__}; expected a state dict, names to tensors"
        )
    return dict(loaded)
