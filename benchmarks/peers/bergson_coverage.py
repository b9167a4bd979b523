"""bergson: GradientCollector without projection, with biases, around a forward and a backward."""

import tempfile
from typing import Any

import torch
from bergson import GradientProcessor, IndexConfig
from bergson.collector.gradient_collectors import GradientCollector
from bergson.gradients import LayerAdapter
from datasets import Dataset
from torch import Tensor

from benchmarks.coverage import Case, Found, answer, make, runs, said


def gradients(case: Case) -> Found:
    """Of all layers that it finds, or else of those that run once on [sample, position, feature]."""
    try:
        return Found(collected(case, None))
    except Exception as error:  # noqa: BLE001  (whatever it raises is a result)
        again = make(case.kind)
        shapes = runs(again, LayerAdapter.supported_modules)
        some = {name for name, seen in shapes.items() if len(seen) == 1 and len(seen[0]) == 3}
        return Found(collected(again, some) if some else {}, said(error))


def collected(case: Case, targets: set[str] | None) -> dict[str, Tensor]:
    """Parameter to [sample, ...]."""
    names = case.names()
    layers = dict(case.network.named_modules())
    if not hasattr(case.network, "device"):
        case.network.device = torch.device("cpu")  # type: ignore[assignment]  # networks of transformers have it
    with tempfile.TemporaryDirectory() as folder:
        collector = GradientCollector(
            model=case.network,
            data=Dataset.from_dict({"input_ids": [[0]] * len(case.values)}),
            cfg=IndexConfig(run_path=folder),
            processor=GradientProcessor(projection_dim=None, include_bias=True),
            target_modules=targets,
            skip_index=True,
        )
        with collector:
            case.losses(case.values).sum().backward()
    found = {}
    for name, rows in collector.mod_grads.items():
        layer: Any = layers[name]
        wide = rows.reshape(len(rows), getattr(layer, LayerAdapter.out_attr(layer)), -1)
        if collector.target_info[name][2]:
            found[names[id(layer.bias)]] = wide[..., -1]
            wide = wide[..., :-1]
        found[names[id(layer.weight)]] = wide.mT if LayerAdapter.weight_transposed(layer) else wide
    return found


if __name__ == "__main__":
    answer({"bergson": gradients}, "bergson")
