"""Watches a training while it goes on: what its numbers say is told at once, and goes with the recorded steps.

A reading costs one pass over the gradients and, for each chosen layer, some rows of its inputs. The training is not changed by a bit:
random numbers come from a generator of the monitor's own, and nothing is written into a tensor.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from schemas.errors import SpecError, UnknownNameError, nearest
from schemas.training import Limits, TrainingEvent
from tasks.compressed.network import TURNED, affine_of
from tasks.extract.sites import glob
from tasks.extract.sources.base import check_label_name
from tasks.methods.training_watch import ALIGNMENT, LOSS, NORM, NOT_FINITE, RANK, TrainingWatch
from tasks.numerics import spectral_alignment
from tasks.numerics.spectrum import effective_rank

Keep = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
PART = 1 << 22
"""Numbers of a gradient that are copied to float64 at once."""


UNSEEN = (
    "the first step gave gradients, and no watched layer was called: alignment and rank will be NaN. A network that torch.compile has run "
    "before ignores new hooks: make the monitor first, then compile"
)


class TrainingMonitor:
    """Measures a training at each step, and tells when it leaves its way.

        with subspan.TrainingMonitor(model, on_event=print) as monitor:
            for step, batch in enumerate(loader):
                loss = loss_of(batch)
                loss.backward()
                numbers = monitor.observe(step, loss.item())     # between backward and the optimiser's step
                recorder.before_step()
                optimizer.step()
                recorder.record(step, **numbers)                 # so that a capture of the recording has them as labels
                optimizer.zero_grad()

    The numbers of a step: `loss`; `gradient_norm`, L2 over all parameters, of the gradients that the last backward left, before any
    clipping (times the scale of a GradScaler, where there is one; of this process alone, where there are several); `not_finite`, the share
    of numbers that are not finite among the loss, these gradients and the drawn inputs of layers; and for each layer `alignment.<layer>`,
    the share of rows of its input on that side of the leading right singular vector of its weight on which most are, and `rank.<layer>`,
    the effective rank of these rows about their mean. NaN: not measured at this step.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] = ("**",),
        every: int = 1,
        most_rows: int = 64,
        seed: int = 0,
        limits: Limits | None = None,
        on_event: Callable[[TrainingEvent], None] | None = None,
    ) -> None:
        """Hook the layers and parameters; `close`, or the end of `with`, takes the hooks away.

        Args:
            model: that is trained.
            layers: globs over the paths of its linear layers (`nn.Linear`, and `Conv1D` of transformers); none: no layers.
            every: layers are measured at each so manieth reading, the rest always.
            most_rows: of a layer's input at a reading; drawn evenly spaced from a random start.
            seed: of this draw.
            limits: when something is told.
            on_event: called with each event as it begins, before `observe` returns; what it raises ends the training.

        Raises:
            UnknownNameError: if a glob matches no linear layer.
            SpecError: if `every` is below 1 or `most_rows` below 2, or no parameter is trained.
            DataError: if a layer's name is too long for a label's.
        """
        if every < 1 or most_rows < 2:
            raise SpecError(
                f"found every={every}, most_rows={most_rows}; expected at least 1, and at least 2 rows"
            )
        self._layers = _chosen(model, layers)
        for name in self._layers:
            check_label_name(f"{ALIGNMENT}.{name}")
        self._every, self._most_rows = every, most_rows
        self._watch = TrainingWatch(limits or Limits())
        self._on_event = on_event
        self.events: list[TrainingEvent] = []
        """All that was told, in order."""
        self._generator = torch.Generator().manual_seed(seed)
        self._readings = 0
        self._inputs: dict[str, Tensor] = {}
        self._gradients: dict[str, tuple[Tensor, Tensor, int]] = {}
        self._directions: dict[str, Tensor] = {}
        self._model = model
        self._parameters: dict[str, nn.Parameter] = {}
        self._handles: list[RemovableHandle] = []
        self._handles = self._hooked()

    def __enter__(self) -> "TrainingMonitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether its hooks are taken away, so that nothing is measured any more."""
        return not self._handles

    def close(self) -> None:
        """Take all hooks away; events stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._inputs, self._gradients, self._parameters = {}, {}, {}

    def observe(self, step: int, loss: float | Tensor | None = None) -> dict[str, float]:
        """The numbers of a step, judged; to be called between backward and the optimiser's step.

        Args:
            step: its number, for events.
            loss: of the step; None: not known. NaN is not finite.

        Raises:
            SpecError: if the loss is no single number.
        """
        numbers = self._measured(None if loss is None else _number(loss))
        known = {name: number for name, number in numbers.items() if name != LOSS or loss is not None}
        _, events = self._watch.take(step, known)
        self.events += events
        for event in events if self._on_event else ():
            self._on_event(event)  # type: ignore[misc]
        return numbers

    def _measured(self, loss: float | None) -> dict[str, float]:
        found: dict[str, float] = {
            LOSS: math.nan if loss is None else loss,
            NORM: math.nan,
            NOT_FINITE: math.nan,
        }
        if self._handles:
            self._handles += self._hook_parameters()
        gradients, self._gradients = self._gradients, {}
        inputs, self._inputs = self._inputs, {}
        if self._layers and gradients and not inputs and not self._readings:
            warnings.warn(UNSEEN, stacklevel=3)
        wrong, counted = int(loss is not None and not math.isfinite(loss)), int(loss is not None)
        if gradients:
            squares = [self._norm(name, *of).square() for name, of in gradients.items()]
            found[NORM] = math.sqrt(float(torch.stack(squares).sum()))
        for _, bad, size in gradients.values():
            wrong, counted = wrong + int(bad), counted + size
        for rows in inputs.values():
            wrong, counted = wrong + int((~rows.isfinite()).sum()), counted + rows.numel()
        if counted:
            found[NOT_FINITE] = wrong / counted
        for name, layer in self._layers.items():
            found |= self._of_layer(name, layer, inputs.get(name))
        self._readings += 1
        return found

    def _of_layer(self, name: str, layer: nn.Module, rows: Tensor | None) -> dict[str, float]:
        names = (f"{ALIGNMENT}.{name}", f"{RANK}.{name}")
        if rows is None or not bool(rows.isfinite().all()):
            return dict.fromkeys(names, math.nan)
        found = spectral_alignment.leading_direction(affine_of(layer).weight, self._directions.get(name))
        self._directions[name] = found.vector
        share = math.nan
        if bool(found.vector.isfinite().all()):
            share = spectral_alignment.majority_share(
                spectral_alignment.centred_if_one_sided(rows.float()), found.vector
            )
        return dict(
            zip(names, (share, effective_rank(spectral_alignment.singular_values(rows))), strict=True)
        )

    def _norm(self, name: str, norm: Tensor, bad: Tensor, size: int) -> Tensor:
        """Of a gradient, on the CPU; anew where it is infinite though the gradient is not: squares left float32."""
        there, gradient = norm.double().cpu(), self._parameters[name].grad
        if not bool(there.isinf()) or int(bad) or gradient is None:
            return there
        parts = torch.split(_values(gradient).flatten(), PART)
        norms = [torch.linalg.vector_norm(part.double().cpu()) for part in parts]
        whole: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return whole

    def _hooked(self) -> list[RemovableHandle]:
        if not any(p.requires_grad for p in self._model.parameters()):
            raise SpecError("the model has no parameter that is trained; there is nothing to watch")
        handles = [
            layer.register_forward_pre_hook(_Hook(self._keep_rows(name)), with_kwargs=True)
            for name, layer in self._layers.items()
        ]
        return handles + self._hook_parameters()

    def _hook_parameters(self) -> list[RemovableHandle]:
        """Those that are trained and have no hook yet, at first all; the gradients that later ones have are taken at once."""
        handles = []
        for name, p in self._model.named_parameters():
            if not p.requires_grad or self._parameters.get(name) is p:
                continue
            self._parameters[name], keep = p, self._keep_norm(name)
            handles.append(p.register_post_accumulate_grad_hook(keep))  # type: ignore[no-untyped-call]
            if self._handles:
                keep(p)
        return handles

    def _keep_rows(self, name: str) -> Keep:
        def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._readings % self._every or name in self._inputs or not torch.is_grad_enabled():
                return
            given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            if given is None or not given.numel():
                return
            self._inputs[name] = self._drawn(given.detach().reshape(-1, given.shape[-1]))

        return keep

    def _keep_norm(self, name: str) -> Callable[[Tensor], None]:
        def keep(parameter: Tensor) -> None:
            if parameter.grad is None:
                return
            values = _values(parameter.grad)
            self._gradients[name] = (
                torch.linalg.vector_norm(values, dtype=torch.promote_types(values.dtype, torch.float32)),
                (~values.isfinite()).sum(),
                values.numel(),
            )

        return keep

    def _drawn(self, rows: Tensor) -> Tensor:
        """Some rows, as a copy."""
        n = len(rows)
        if n <= self._most_rows:
            return rows.clone()
        start = int(torch.randint(n, (1,), generator=self._generator))
        which = (torch.arange(self._most_rows) * n // self._most_rows + start) % n
        return rows[which.to(rows.device)]


class _Hook:
    """Before the forward of a layer. It stays behind where the model is copied or written: only the model itself is watched."""

    def __init__(self, keep: Keep | None = None) -> None:
        self._keep = keep

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._keep is not None:
            self._keep(layer, args, kwargs)

    def __reduce__(self) -> tuple[type["_Hook"], tuple[()]]:
        return _Hook, ()


def _values(gradient: Tensor) -> Tensor:
    kept = gradient.detach()
    return kept.coalesce().values() if kept.is_sparse else kept


def _chosen(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Path to linear layer."""
    there = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ in TURNED
    }
    for pattern in patterns:
        if there and not any(glob(pattern).fullmatch(name) for name in there):
            raise UnknownNameError(
                f"the model has no linear layer {pattern!r}; nearest: {nearest(pattern, there)}"
            )
    return {name: m for name, m in there.items() if any(glob(p).fullmatch(name) for p in patterns)}


def _number(loss: float | Tensor) -> float:
    try:
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(
            f"the loss is {str(loss)[:60]!r}; expected one number, such as loss.item()"
        ) from error
