"""kronfluence: the per-sample gradients that a Task may process, of the layers that it tracks: nn.Linear and nn.Conv2d."""

import importlib.util
from typing import Any

import torch

find_spec = importlib.util.find_spec
try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):  # one that was built for another torch; the networks do not need it
    importlib.util.find_spec = lambda name, *more: None if name == "torchvision" else find_spec(name, *more)

from kronfluence.arguments import FactorArguments, ScoreArguments  # noqa: E402
from kronfluence.module.tracked_module import ModuleMode  # noqa: E402
from kronfluence.module.utils import set_mode, wrap_tracked_modules  # noqa: E402
from kronfluence.task import Task  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.coverage import Case, Found, answer  # noqa: E402


def gradients(case: Case) -> Found:
    """Of one network; a layer that is used several times has the sum over its uses."""
    names = case.names()
    layers = dict(case.network.named_modules())
    found: dict[str, Tensor] = {}

    class Seen(Task):
        """Keeps the gradients that it is given."""

        enable_post_process_per_sample_gradient = True

        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            """The sum over the batch."""
            return case.losses(batch, model).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            """The same."""
            return case.losses(batch, model).sum()

        def post_process_per_sample_gradient(self, module_name: str, gradient: Tensor) -> Tensor:
            """[sample, output, input, and one for a bias]."""
            layer = layers[module_name]
            wide = gradient
            if layer.bias is not None:
                add(names[id(layer.bias)], wide[..., -1])
                wide = wide[..., :-1]
            add(names[id(layer.weight)], wide)
            return gradient

    def add(name: str, rows: Tensor) -> None:
        rows = rows.flatten(1)
        found[name] = found[name] + rows if name in found else rows.clone()

    task = Seen()
    score = ScoreArguments(per_sample_gradient_dtype=torch.float64)
    shared = FactorArguments(has_shared_parameters=True)
    network = wrap_tracked_modules(case.network, task, shared, score)
    set_mode(network, ModuleMode.GRADIENT_AGGREGATION, release_memory=True)
    task.compute_train_loss(case.values, network).backward()
    return Found(found)


if __name__ == "__main__":
    answer({"kronfluence": gradients}, "kronfluence")
