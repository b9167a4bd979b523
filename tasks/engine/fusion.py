"""One-pass reductions on rows that are being captured, so that no shard need be read for them later.

The states are those that `fold` would make from the store, bit for bit: the same blocks (the good rows of one
shard, already in the store's dtype), folded in the same order by the same code, saved under the same names.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from torch import Tensor

from schemas.capture import CaptureSpec, MethodCall
from schemas.layout import SiteLayout, UnitRef
from schemas.receipts import FileDigest
from schemas.stage import RowsRef
from tasks.engine.blocks import block_of
from tasks.engine.fold import Folder, Read, close
from tasks.engine.fusable import check_fusable
from tasks.engine.reduction import (
    Counted,
    Reduction,
    make_reduction,
    rows_folder,
    rows_ports,
    to_numpy,
    unit_path,
)
from tasks.engine.source import Rows
from tasks.methods.contract import Block, Inputs, State, load_method
from tasks.store.location import Location
from tasks.store.sample_table import Labels, read_labels
from tasks.store.states import save_state


class _Running(NamedTuple):
    """One method at one site."""

    site: str
    folder: Folder
    path: str


class Fusion:
    """Folds the rows of one unit for some methods, at every site of the unit's space.

    Args:
        calls: one-pass reductions of one port of rows.
        root: where the capture lies; its sample table is there already.
        spec: the capture.
        unit: which unit.
        device: where methods compute.
        allowed: packages outside the project whose methods may run.

    Raises:
        MethodError: if a method cannot be fused.
    """

    def __init__(
        self,
        calls: Sequence[MethodCall],
        root: Location,
        spec: CaptureSpec,
        unit: UnitRef,
        device: str = "cpu",
        allowed: tuple[str, ...] = (),
    ) -> None:
        self.root, self.spec, self.unit, self.device = root, spec, unit, device
        wants_labels = [check_fusable(call, allowed) for call in calls]
        self._labels_of_samples: Labels | None = read_labels(root, spec.id) if any(wants_labels) else None
        self._running = [
            self._start(call, layout, allowed)
            for layout in spec.layout.sites_of(unit.space)
            for call in calls
        ]
        self._states: dict[str, Counted | None] = {run.path: None for run in self._running}
        self._empty: dict[str, Block] = {}

    def add(
        self,
        rows: Mapping[str, Tensor],
        ok: np.ndarray,
        sample: np.ndarray,
        position: np.ndarray,
        index: np.ndarray,
    ) -> None:
        """Fold one whole shard; shards come in their order.

        Args:
            rows: `str(site)` -> [row, feature], as they are stored, failed rows included.
            ok: bool [row], whether the row's sample did not fail.
            sample: int64 [row].
            position: int64 [row].
            index: int64 [row], the row's index in the capture.

        Raises:
            MethodError: if a good row holds NaN or infinity, in a capture that keeps states only.
        """
        for site in dict.fromkeys(run.site for run in self._running):
            here = [run for run in self._running if run.site == site]
            with self._given_up(here):
                block = self._block(site, rows[site].numpy(), ok, sample, position, index)
                for run in here:
                    with self._given_up([run]):
                        self._states[run.path] = run.folder.add(self._states[run.path], block)
            if site not in self._empty:
                none = np.zeros(len(ok), dtype=bool)
                self._empty[site] = self._block(site, rows[site].numpy(), none, sample, position, index)

    @contextmanager
    def _given_up(self, running: Sequence[_Running]) -> Iterator[None]:
        """Methods that raise lose their state of this unit where the rows are kept: their stage then reads the rows, and is
        the one that fails. A capture must not fail, or succeed, for what is computed beside it."""
        try:
            yield
        except Exception:
            if self.spec.request.keep == "states":
                raise
            self._running = [run for run in self._running if run not in running]

    def states(self) -> dict[str, dict[str, np.ndarray]]:
        """Path below the root -> the unit's state, as it is saved."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for run in self._running:
            with self._given_up([run]):
                state = close(run.folder, self._states[run.path], self._empty.get(run.site))
                found[run.path] = to_numpy(state)
        return found

    def save(self) -> dict[str, FileDigest]:
        """Write the states; path below the root to digest."""
        return {path: save_state(self.root, path, state) for path, state in self.states().items()}

    def _start(self, call: MethodCall, layout: SiteLayout, allowed: tuple[str, ...]) -> _Running:
        categories = self._labels_of_samples.categories if self._labels_of_samples else {}
        carry, reduction = fused_reduction(self.spec, layout, call, categories, allowed)
        carry = {name: tensor.to(self.device) for name, tensor in carry.items()}
        ref = RowsRef(capture=self.spec.id, digest=self.spec.id, site=str(layout.site))
        read = Read(self.root, ((ref,),), self.device, allowed)
        path = unit_path(rows_folder(reduction, read.refs, 0), self.unit.index)
        return _Running(str(layout.site), Folder(read, reduction, carry), path)

    def _block(
        self,
        site: str,
        values: np.ndarray,
        ok: np.ndarray,
        sample: np.ndarray,
        position: np.ndarray,
        index: np.ndarray,
    ) -> Block:
        # Copies: the shard is being written, and its memory is used again.
        values, sample, position, index = values[ok], sample[ok], position[ok], index[ok]
        rows = Rows((values,), sample, position, index, self._labels(sample))
        return block_of(rows, ("rows",), self.device, (f"{self.spec.id[:8]} {site}",))

    def _labels(self, sample: np.ndarray) -> dict[str, np.ndarray]:
        if self._labels_of_samples is None:
            return {}
        return {name: column[sample] for name, column in sorted(self._labels_of_samples.values.items())}


class Fused(NamedTuple):
    """What a method begins with at a site, and whose state it makes there."""

    carry: State
    reduction: Reduction


def fused_reduction(
    spec: CaptureSpec,
    layout: SiteLayout,
    call: MethodCall,
    categories: Mapping[str, tuple[str, ...]],
    allowed: tuple[str, ...] = (),
) -> Fused:
    """The reduction of a method that runs while rows are captured.

    Args:
        spec: the capture.
        layout: the site.
        call: the method.
        categories: names of the codes of the capture's labels.
        allowed: packages outside the project whose methods may run.
    """
    module = load_method(call.method, allowed)
    config = module.Config.model_validate(call.config)
    (port,) = rows_ports(module)
    inputs = Inputs(
        widths={port: layout.width},
        shapes={} if layout.shape is None else {port: layout.shape},
        n_rows=spec.layout.space(layout.space).n_rows,
        n_samples=spec.layout.n_samples,
        categories=dict(categories) if module.READS[port].labels else {},
    )
    carry: State = module.start(inputs, config)
    return Fused(carry, make_reduction(call.method, module, config, carry, inputs))
