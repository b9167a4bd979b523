"""dattri: the hooks of its block projections with the identity in place of projections, and the vmap of its AttributionTask."""

from typing import Any

import torch
from dattri.algorithm.block_projected_if.core.compressor import setup_model_compressors
from dattri.algorithm.block_projected_if.core.hook import HookManager
from dattri.task import AttributionTask
from torch import Tensor, nn

from benchmarks.coverage import Case, Found, answer, make, runs, said

IDENTITY = {"device": "cpu", "proj_dim": -1, "proj_max_batch_size": 64, "proj_type": "identity"}


def hooks(case: Case) -> Found:
    """Of the linear layers of one network, which are what its attributors take, or else of those that run once."""
    try:
        layers = [name for name, part in case.network.named_modules() if isinstance(part, nn.Linear)]
        return Found(collected(case, layers))
    except Exception as error:  # noqa: BLE001  (whatever it raises is a result)
        again = make(case.kind)
        some = [name for name, seen in runs(again, (nn.Linear,)).items() if len(seen) == 1]
        return Found(collected(again, some) if some else {}, said(error))


def collected(case: Case, chosen: list[str]) -> dict[str, Tensor]:
    """Parameter to [sample, ...]."""
    names = case.names()
    layers = {name: case.network.get_submodule(name) for name in chosen}
    key = getattr(case.network, "main_input_name", None)  # networks of transformers have it
    compressors = setup_model_compressors(
        case.network, list(layers), sparsifier_kwargs=dict(IDENTITY), projector_kwargs=dict(IDENTITY),
        sample_inputs={key: case.values} if key else [case.values], device="cpu",
    )  # fmt: skip
    manager = HookManager(case.network, list(layers), device="cpu")
    manager.set_compressors(compressors)
    case.losses(case.values).mean().backward()  # it multiplies by the batch
    found: dict[str, Tensor] = {}
    for layer, rows in zip(layers.values(), manager.get_compressed_grads(), strict=True):
        if rows is None:
            continue
        wide = rows.reshape(len(rows), layer.out_features, -1)
        if layer.bias is not None:
            found[names[id(layer.bias)]] = wide[..., -1]
            wide = wide[..., :-1]
        found[names[id(layer.weight)]] = wide
    return found


def task(case: Case) -> Found:
    """Of all parameters of one network."""

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        def call(values: Tensor, **options: Any) -> Any:
            return torch.func.functional_call(case.network, parameters, (values,), options)

        return case.losses(sample[None], call)[0]

    made = AttributionTask(loss_func=loss, model=case.network, checkpoints=case.network.state_dict())
    weights, _ = made.get_param(ckpt_idx=0)
    rows = made.get_grad_loss_func(in_dims=(None, 0))(weights, case.values)
    shapes = {name: parameter.numel() for name, parameter in case.network.named_parameters()}
    parts = rows.split(list(shapes.values()), dim=1)
    return Found(dict(zip(shapes, parts, strict=True)))


if __name__ == "__main__":
    torch.compiler.set_stance("force_eager")  # the same numbers, without a compiler
    answer({"dattri, hooks": hooks, "dattri, task": task}, "dattri", eager=True)
