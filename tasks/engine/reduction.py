"""What two reduce methods must have in common to share states, and where those states lie.

A state follows from the rows, the functions that made it and their version, the options that these read, the
carry, the names of label codes, and the artifacts whose arrays come with the rows. All but the rows go into the
reduction's id; the rows are named by capture, site and unit or span. So a state that exists under its name is
the one that would be computed.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from schemas.base import Frozen, content_id
from schemas.layout import Site
from schemas.stage import NETWORK
from tasks.methods.contract import ROW_LABELS, ArtifactPort, Inputs, Reduces, RowsPort, State
from tasks.store.location import Location
from tasks.store.states import load_state, save_state

ROWS = "engine.rows"
"""Key in a saved state: how many rows it holds."""


class Reduction(NamedTuple):
    """Enough to fold blocks on a worker."""

    method: str
    config: str
    """The method's options as JSON."""
    id: str
    """Names the folder of its states."""
    carry: str | None
    """Where the carry lies below the root: by the stage whose round it is, so that no other stage takes it away."""

    @property
    def folder(self) -> str:
        """Below the root."""
        return f"states/{self.id}"


class Counted(NamedTuple):
    """A state and the rows it holds."""

    state: State
    rows: int


def rows_ports(module: ModuleType) -> dict[str, RowsPort]:
    """The ports of a method that take rows, in order."""
    return {name: port for name, port in module.READS.items() if isinstance(port, RowsPort)}


def artifact_ports(module: ModuleType) -> dict[str, ArtifactPort]:
    """The ports of a method that take artifacts, in order."""
    return {name: port for name, port in module.READS.items() if isinstance(port, ArtifactPort)}


def reads_values(module: ModuleType) -> bool:
    """Whether blocks carry the rows' values."""
    return any(port.values for port in rows_ports(module).values())


def aligned_ports(module: ModuleType) -> tuple[str, ...]:
    """The ports of a method that take row-aligned arrays of one artifact, in order."""
    ports = artifact_ports(module).items()
    return tuple(name for name, port in ports if port.aligned and not port.several)


def reads_labels(module: ModuleType) -> bool:
    """Whether blocks carry labels."""
    return any(port.labels for port in rows_ports(module).values())


def weight_label(config: Frozen) -> str | None:
    """The label that weighs rows, where a method has that option and it is set."""
    return getattr(config, "weight_label", None)


def row_labels(module: ModuleType, config: Frozen) -> tuple[str, ...]:
    """The labels of rows, rather than of samples, that a method with these options reads."""
    wanted = getattr(config, "label", None)
    takes = any(port.tokens for port in rows_ports(module).values())
    return (wanted,) if takes and wanted in ROW_LABELS else ()


def make_reduction(
    method: str,
    module: ModuleType,
    config: Frozen,
    carry: State,
    inputs: Inputs,
    place: str | None = None,
    aligned: Sequence[str] = (),
) -> Reduction:
    """The reduction of a method with these options, in a round with this carry, which is kept at `place`, over rows that come with
    the arrays of some artifacts.

    `start` need not be named: all that it does for a state is the carry.
    """
    made = _reduces(module, carry, config)
    home = sys.modules[made.partial.__module__]
    question: dict[str, Any] = {
        "reduction": [f"{f.__module__}:{f.__qualname__}" for f in (made.partial, made.merge)],
        "version": home.VERSION,
        "config": made.options,
        "ports": len(rows_ports(module)),
    }
    if carry:
        question["carry"] = digest(carry)
    if aligned:
        question["aligned"] = list(aligned)
    if reads_labels(module):
        question["categories"] = {name: list(names) for name, names in sorted(inputs.categories.items())}
    options = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return Reduction(method=method, config=options, id=content_id(question), carry=place if carry else None)


def rows_folder(reduction: Reduction, refs: tuple[Any, ...], part: int) -> str:
    """Where states of one capture's rows lie: by capture and site, and by what they were joined with."""
    ref = refs[0][part]
    joined = [[(r.capture, r.site, *([r.codes] if r.codes else [])) for r in port] for port in refs[1:]]
    codes = f"/codes-{ref.codes}" if ref.codes else ""
    name = f"{reduction.folder}/{ref.capture}/{_folder_name(ref.site)}{codes}"
    return f"{name}/joined-{content_id(joined)}" if joined else name


def _folder_name(text: str) -> str:
    if text == NETWORK:
        return f"@{NETWORK}"
    site = Site.parse(text)
    return site.key if site.quantity == "activation" else f"{site.key}@{site.quantity}"


def unit_path(folder: str, unit: int) -> str:
    """A unit's state."""
    return f"{folder}/unit-{unit:06d}.npz"


def span_path(folder: str, span: int, n: int) -> str:
    """The state of a span, one of n."""
    return f"{folder}/span-{span:02d}-of-{n:02d}.npz"


def whole_path(folder: str) -> str:
    """The state of all rows of a capture's site."""
    return f"{folder}/whole.npz"


def save_counted(root: Location, path: str, counted: Counted) -> None:
    """Write a state with its number of rows."""
    save_state(root, path, to_numpy(counted))


def load_counted(root: Location, path: str, device: str) -> Counted | None:
    """A state with its number of rows; None if absent or damaged."""
    found = load_state(root, path)
    if found is None or ROWS not in found:
        return None
    rows = int(found.pop(ROWS))
    return Counted(from_numpy(found, device), rows)


def to_numpy(counted: Counted) -> dict[str, np.ndarray]:
    """As it is saved."""
    return {**plain(counted.state), ROWS: np.array(counted.rows, dtype=np.int64)}


def plain(state: State) -> dict[str, np.ndarray]:
    """Tensors as arrays in memory of their own, in order of their names."""
    return {name: state[name].detach().cpu().contiguous().numpy() for name in sorted(state)}


def from_numpy(arrays: Mapping[str, np.ndarray], device: str) -> State:
    """Arrays as tensors on a device."""
    return {name: torch.from_numpy(np.array(array, order="C")).to(device) for name, array in arrays.items()}


def digest(state: Mapping[str, Tensor]) -> str:
    """Names the content of a state."""
    total = hashlib.sha256()
    for name, array in plain(dict(state)).items():
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _reduces(module: ModuleType, carry: State, config: Frozen) -> Reduces:
    if hasattr(module, "reduces"):
        made: Reduces = module.reduces(carry, config)
        return made
    chosen = module.state_config(config) if hasattr(module, "state_config") else config
    options = chosen.model_dump(mode="json") if isinstance(chosen, Frozen) else chosen
    return Reduces(module.partial, module.merge, options)
