"""Records and watches a training that Hugging Face's Trainer runs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from schemas.errors import SpecError
from tasks.monitor import TrainingMonitor
from tasks.record import Recorder


class RecorderCallback(TrainerCallback):  # type: ignore[misc]
    """Gives every step of a `transformers.Trainer` to a recorder: `Trainer(..., callbacks=[subspan.RecorderCallback(recorder)])`.

    Gradients are those that the optimiser gets, after clipping. The loss and learning rate that the trainer has logged last go with a step.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are there, weights are those before the step."""
        self._recorder.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimiser has made its step."""
        logged: dict[str, Any] = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
        labels = {name: float(logged[name]) for name in ("loss", "learning_rate") if name in logged}
        self._recorder.record(
            state.global_step, **({"loss": float("nan"), "learning_rate": float("nan")} | labels)
        )


class MonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Gives every step of a `transformers.Trainer` to a monitor, and its numbers to a recorder where there is one.

        monitor = subspan.TrainingMonitor(model, on_event=print)
        Trainer(model=model, ..., callbacks=[subspan.MonitorCallback(monitor, recorder)])

    It stands in the place of a `RecorderCallback`. The loss is the mean of what the model itself gave for the batches of the step (where
    the Trainer divides it by the tokens of all these batches: that part of it), also where the Trainer logs seldom or filters NaN; a model
    that gives none, as where the Trainer is given a loss of its own, leaves it unknown. Gradients are those before clipping.
    """

    def __init__(self, monitor: TrainingMonitor, recorder: Recorder | None = None) -> None:
        self._monitor, self._recorder = monitor, recorder
        self._losses: list[Tensor] = []
        self._numbers: dict[str, float] = {}
        self._handle: RemovableHandle | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen to what the model gives.

        Raises:
            SpecError: if the monitor was closed, as at the end of an earlier training.
        """
        if self._monitor.closed:
            raise SpecError("the monitor is closed and measures nothing; make another for this training")
        if self._handle is not None:  # of a training that was broken off
            self._handle.remove()
        self._handle = kwargs["model"].register_forward_hook(self._keep_loss)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are there, weights are those before the step."""
        losses, self._losses = self._losses, []
        mean = sum(float(loss) for loss in losses) / len(losses) if losses else None
        self._numbers = self._monitor.observe(state.global_step + 1, mean)
        if self._recorder is not None:
            self._recorder.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimiser has made its step."""
        if self._recorder is not None:
            self._recorder.record(state.global_step, **self._numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take hooks away."""
        if self._handle is not None:
            self._handle.remove()
        self._monitor.close()

    def _keep_loss(self, model: nn.Module, given: Any, output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if model.training and isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach())
