"""Rows expressed by other rows and split into clusters, by the methods themselves and without an engine."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tasks.methods.contract import Block, Inputs, load_method
from tests.methods import cases
from tests.methods.cases import Answer, Case


def block_of(x: np.ndarray, of: np.ndarray | None = None) -> Block:
    index = torch.arange(len(x))
    labels = {} if of is None else {"kind": torch.from_numpy(np.asarray(of, dtype=np.int64))}
    return Block({"x": torch.from_numpy(x)}, index, 0 * index, index, labels)


def pieces_of(block: Block, pieces: int) -> list[Block]:
    return cases.cut(block, np.linspace(0, len(block), pieces + 1)[1:-1].astype(int).tolist())


def prepared(x: np.ndarray, pieces: int = 2, **options: Any) -> Answer:
    """With the preparation's options; rows are not centred unless that is asked."""
    module = load_method("clustering.preparation")
    config = module.Config(**({"center": False} | options))
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    module.check(inputs, config)
    return cases.run(Case(module, config, inputs, block_of(x)), pieces_of(block_of(x), pieces))


def expressed(method: str, x: np.ndarray, pieces: int = 3, preparation: Any = None, **options: Any) -> Answer:
    """The coefficients of rows; the preparation's options in a dict."""
    module, made = load_method(f"clustering.{method}"), prepared(x, **(preparation or {}))
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x),
        artifacts={"preparation": made.arrays},
        results={"preparation": made.result.model_dump(mode="json")},
    )
    config = module.Config(**options)
    module.check(inputs, config)
    return cases.run(Case(module, config, inputs, block_of(x)), pieces_of(block_of(x), pieces))


def parted(graph: Answer, of: np.ndarray | None = None, method: str = "partition", **options: Any) -> Answer:
    """The clusters of a graph."""
    module, n = load_method(f"clustering.{method}"), len(graph.arrays["index"])
    names = {} if of is None else {"kind": tuple(map(str, range(int(np.max(of)) + 1)))}
    config = module.Config(label=None if of is None else "kind", **options)
    inputs = Inputs(
        widths={"x": 0},
        n_rows=n,
        n_samples=n,
        categories=names,
        artifacts={"graph": {}},
        results={"graph": graph.result.model_dump(mode="json")},
    )
    module.check(inputs, config)
    block = replace(block_of(np.zeros((n, 0)), of), aligned={"graph": dict(graph.arrays)})
    return cases.run(Case(module, config, inputs, block))


def dense(graph: Answer) -> np.ndarray:
    """Coefficients as a matrix of rows by rows."""
    index, value = graph.arrays["index"].numpy(), graph.arrays["coefficient"].numpy()
    c, there = np.zeros((len(index), len(index))), index >= 0
    row = np.nonzero(there)[0]
    c[row, index[there]] = value[there]
    return c
