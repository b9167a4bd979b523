"""Records a training that Hugging Face's Trainer runs."""

from typing import Any

from transformers import TrainerCallback

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
