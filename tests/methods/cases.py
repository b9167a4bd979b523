"""Rows for any method, made from what its ports ask for, and each kind run by hand without an engine."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.engine.pairs import MOST_BYTES, Method, Others
from tasks.methods.contract import (
    Arrays,
    ArtifactPort,
    BatchesPort,
    Block,
    Edges,
    Gives,
    GraphPort,
    Inputs,
    Made,
    MadeOver,
    Member,
    RowsPort,
    State,
    load_method,
)

N, WIDTH, PER_SAMPLE = 160, 40, 4
MEMBERS = 3
"""Of a series of artifacts, each of other rows."""
CATEGORIES = ("left", "right")
FEW = {"groups": 5, "halves": 4}
"""For any method with such an option: repetitions that intervals are made of."""
SHORT: dict[str, dict[str, Any]] = {
    "anomaly.quality": {"anomalous": ("right",)},
    "anomaly.map_quality": {"above": 17.0},
    "geometry.euclidicity": {"points": 4, "landmarks": 16},
    "geometry.spanning_tree": {"uniform_draws": 2, "draws": 2},
    "geometry.dimension": {"fit_rows": 200},
    "geometry.label_sharpness": {"quantile_rows": 200},
    "geometry.local_dimension": {"quantile_rows": 200},
    "gradients.hessian": {"components": 2, "max_rounds": 6},
    "gradients.spectral_density": {"probes": 2, "steps": 4},
    "gradients.online_subspace": {"passes": 2},
    "spectrum.neighbour_projection": {"steps": 20},
    "geometry.neural_collapse": {"deals": 5},
    "geometry.interference": {"draws": 20},
    "gradients.intrinsic_dimension": {"steps": 3, "dimensions": (2, 9), "draws": 2, "learning_rate": 0.02},
    "compression.model": {"shares": (0.6,), "samples": 60, "groups": 5},
    "clustering.mlc": {"clusters": 2, "warmup": 2, "epochs": 3, "code": 6, "batch_rows": 80},
    "clustering.k_subspaces": {"clusters": 3, "starts": 2},
    "clustering.mixture": {"clusters": 3, "starts": 2},
    "clustering.partition": {"starts": 3},
    "clustering.stability": {"starts": 2, "parts": 3, "max_clusters": 4},
    "clustering.multilayer": {"starts": 3},
    "clustering.layerwise": {"starts": 3},
    "clustering.elastic_net": {"columns": 20, "entries": 20},
    "compression.codebook": {"bits": 3, "scale": "gain_bias"},
    "compression.store_quality": {"clusters": 3, "sample_rows": 100, "label": "side"},
    "compression.piecewise": {"nmse": 0.2},
    "anomaly.normal_rows": {"most": 100},
    "anomaly.reference": {"label": "side"},
    "anomaly.training": {"loss": "size"},
    "compression.binary_rotation": {"bits": 8, "rounds": 4},
    "compression.attention_tucker": {"heads": 4},
    "compression.experts": {"experts": 40, "groups": 5, "biases": True},
    "spectrum.dead_features": {"features": 64, "active": 4},
    "geometry.alignment": {"groups": 4, "iterations": 5},
    "geometry.unit_matching": {"groups": 4, "blocks": 2, "targets": 8, "penalty": 0.3},
    "geometry.universal_subspace": {"folds": 2},
    "spectrum.projection_pursuit": {"parts": 3, "starts": 3, "halves": 2, "draws": 1},
    "spectrum.factor_stability": {"most": 3, "repetitions": 3, "iterations": 50},
}
"""Options of methods whose defaults take many passes, or large states."""


def short_options(method: str) -> dict[str, Any]:
    """What a method is run with here, where that is not the default."""
    fields = load_method(method).Config.model_fields
    return {name: value for name, value in FEW.items() if name in fields} | SHORT.get(method, {})


class Case(NamedTuple):
    """A method with default options, its inputs, and all rows as one block."""

    module: ModuleType
    config: Any
    inputs: Inputs
    block: Block


class Answer(NamedTuple):
    """What a method gave."""

    result: Any
    arrays: dict[str, Tensor]
    dims: dict[str, tuple[str, ...]]


class TinyNetwork:
    """A network with samples, in batches of 50: what a port of batches takes."""

    def __init__(self, module: nn.Module, x: Tensor, label: Tensor) -> None:
        self.module, self.x, self.label = module, x, label
        self.parameters = dict(module.named_parameters())

    @classmethod
    def of(cls, n: int) -> "TinyNetwork":
        """Seeded, in float64, with as many parameters as rows have features."""
        rng = torch.Generator().manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 5, bias=False)).double()
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64) / 2
        x = torch.randn(n, 4, generator=rng, dtype=torch.float64)
        return cls(module, x, torch.randint(0, 5, (n,), generator=rng))

    def take(self, rows: slice | Tensor) -> "TinyNetwork":
        """Some samples."""
        return TinyNetwork(self.module, self.x[rows], self.label[rows])

    def to(self, device: str) -> "TinyNetwork":
        """On a device."""
        module = copy.deepcopy(self.module).to(device)
        return TinyNetwork(module, self.x.to(device), self.label.to(device))

    def copy(self) -> nn.Module:
        """The modules anew, with the same tensors."""
        return copy.deepcopy(self.module, {id(p): p for p in self.module.parameters()})

    def batches(self) -> Iterator["TinyView"]:
        """Fifty at a time."""
        for first in range(0, len(self.x), 50):
            yield TinyView(self, slice(first, first + 50))


class TinyView:
    """A batch of a tiny network."""

    def __init__(self, network: TinyNetwork, some: slice) -> None:
        self._network, self._x, self._label = network, network.x[some], network.label[some]
        self.n = len(self._x)
        self.rows = torch.arange(len(network.x))[some]
        self.mask: Tensor | None = None
        self.gives: Gives = "classes"
        self.tells = True
        self.targets = torch.ones(self.n, dtype=torch.int64)

    def output(self, at: Mapping[str, Tensor] | None = None, module: nn.Module | None = None) -> Tensor:
        """Logits."""
        out: Tensor = torch.func.functional_call(module or self._network.module, dict(at or {}), self._x)
        return out

    def rows_of(self, output: Tensor) -> Tensor:
        """As they are."""
        return output

    def right(self, output: Tensor) -> Tensor:
        """Whether the largest logit is that of the label."""
        return (output.argmax(1) == self._label).double()

    def summed(self, losses: Tensor) -> Tensor:
        """As they are."""
        return losses

    def loss_of(self, output: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(output, self._label, reduction="none")

    def ends(self) -> tuple[Tensor, Tensor]:
        """Input and logits."""
        given = self._x.clone().requires_grad_()
        out: Tensor = self._network.module(given)
        return given, out

    def losses(self, at: Mapping[str, Tensor] | None = None) -> Tensor:
        """Of the batch."""
        return self.loss_of(self.output(at))


def rows_of(seed: int, n: int = N, width: int = WIDTH) -> Tensor:
    """Two groups of rows with a falling spectrum and a mean far from zero, float32."""
    rng = np.random.default_rng(seed)
    scale = 3.0 * 0.8 ** np.arange(width)
    values = rng.standard_normal((n, width)) * scale + 10
    values[:, 0] += 9 * (np.arange(n) // PER_SAMPLE % 2)
    return torch.from_numpy(values.astype(np.float32))


def weights_of(module: ModuleType, config: Any) -> dict[str, Tensor]:
    """What the method reads of a network: seeded, one row and one column for each feature; vectors where a bias is named."""
    names = module.parameters(config) if hasattr(module, "parameters") else ()
    return {name: seeded_weight(seed, name) for seed, name in enumerate(names)}


def seeded_weight(seed: int, name: str, width: int = WIDTH) -> Tensor:
    """A parameter of that name."""
    shape = (width,) if name.endswith("bias") else (width, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / width**0.5


@cache
def case(method: str, n: int = N, seed: int = 7) -> Case:
    """The method on n rows; artifact ports get the answer of the method that they name, over the same rows, or three of them on
    different rows."""
    module = load_method(method)
    config = module.Config(**short_options(method))
    read: dict[str, Tensor] = {}
    rows, artifacts, results, series, aligned, graphs, made = {}, {}, {}, {}, {}, {}, {}
    network: TinyNetwork | None = None
    for name, port in module.READS.items():
        if isinstance(port, BatchesPort):
            network = TinyNetwork.of(n)
        elif isinstance(port, RowsPort):
            rows[name] = rows_of(seed + len(rows), n)
            read[name] = rows[name] if port.values else rows[name][:, :0]
        elif isinstance(port, ArtifactPort) and port.several and network is not None:
            paths = [path for path, layer in network.module.named_modules() if isinstance(layer, nn.Linear)]
            series[name] = tuple(layer_member(port.method, network, path) for path in paths)
        elif isinstance(port, ArtifactPort) and port.several:
            series[name] = tuple(member(port.method, n, seed + k) for k in range(MEMBERS))
            if port.aligned:
                series[name], with_rows = without_rows(name, port, series[name])
                aligned |= with_rows
                made |= dict.fromkeys(with_rows, made_of(port, n))
        elif isinstance(port, GraphPort):
            ends = edges_of(n)
            graphs[name] = Edges(ends, torch.ones(len(ends), dtype=torch.float64))
        elif isinstance(port, ArtifactPort):
            answer = run(case(port.method, n, seed))
            of_rows = {a for a, dims in answer.dims.items() if port.aligned and dims[:1] == ("row",)}
            artifacts[name] = {a: values for a, values in answer.arrays.items() if a not in of_rows}
            if port.aligned:
                aligned[name] = {a: answer.arrays[a] for a in of_rows}
            results[name] = answer.result.model_dump(mode="json")
            made[name] = made_of(port, n)
    with_labels = any(isinstance(p, RowsPort) and p.labels for p in module.READS.values())
    inputs = Inputs(
        widths={name: values.shape[1] for name, values in rows.items()},
        sites=dict.fromkeys(rows, "layer:in:0"),
        n_rows=n,
        n_samples=n // per_sample(module),
        categories={"side": CATEGORIES} if with_labels else {},
        artifacts=artifacts,
        results=results,
        made=made,
        series=series,
        graphs=graphs,
        parameters={} if network is None else {k: tuple(p.shape) for k, p in network.parameters.items()},
        weights=weights_of(module, config),
    )
    return Case(
        module,
        config,
        inputs,
        replace(_block(read, n, with_labels, per_sample(module)), network=network, aligned=aligned),
    )


def made_of(port: ArtifactPort, n: int) -> Made:
    """How an artifact of a port was made: over the same rows."""
    module = load_method(port.method)
    options = module.Config(**short_options(port.method)).model_dump(mode="json")
    over = MadeOver(_block({}, n, True, per_sample(module)), {"side": CATEGORIES}, 0, 0)
    return Made(
        port.method, module.VERSION, options, "layer:in:0", ("capture",), over=over if port.of_rows else None
    )


def per_sample(module: ModuleType) -> int:
    """Rows of a sample: one, where a port takes a graph of samples."""
    return 1 if any(isinstance(port, GraphPort) for port in module.READS.values()) else PER_SAMPLE


def edges_of(n: int) -> Tensor:
    """int64 [edge, 2]: samples in a ring, each joined too with the next of its group of rows."""
    ring = [(k, k + 1) for k in range(n - 1)] + [(0, n - 1)]
    return torch.tensor(sorted(ring + [(k, k + 2 * PER_SAMPLE) for k in range(n - 2 * PER_SAMPLE)]))


def member(method: str, n: int, seed: int) -> Member:
    """A method's answer on some rows, as one of a series."""
    answer = run(case(method, n, seed))
    return Member(f"site{seed}", ("capture",), answer.arrays, answer.result.model_dump(mode="json"))


def without_rows(
    name: str, port: ArtifactPort, members: tuple[Member, ...]
) -> tuple[tuple[Member, ...], dict[str, dict[str, Tensor]]]:
    """The members without their row-aligned arrays, and these as a block has them."""
    names = {array for array, dims in load_method(port.method).ARRAYS.items() if dims[:1] == ("row",)}
    kept = tuple(
        replace(m, arrays={array: values for array, values in m.arrays.items() if array not in names})
        for m in members
    )
    return kept, {f"{name}.{k}": {array: m.arrays[array] for array in names} for k, m in enumerate(members)}


def layer_member(method: str, network: TinyNetwork, path: str) -> Member:
    """The answer of a method that compresses layers, for a layer of a network."""
    weight = network.module.get_submodule(path).get_parameter("weight").detach()
    block = _block({"x": rows_of(1, N, weight.shape[1])}, N, False)
    inputs = Inputs({"x": weight.shape[1]}, N, N // PER_SAMPLE, weights={"{module}.weight": weight})
    answer = run(case(method)._replace(inputs=inputs, block=block))
    return Member(f"{path}:in:0", ("capture",), answer.arrays, answer.result.model_dump(mode="json"), method)


def _block(rows: dict[str, Tensor], n: int, with_labels: bool, per_sample: int = PER_SAMPLE) -> Block:
    index = torch.arange(n)
    sample = index // per_sample
    labels = {"side": sample % 2, "size": sample.double() / 3, "step": sample.double()} if with_labels else {}
    return Block(rows=rows, sample=sample, position=index % per_sample, index=index, labels=labels)


def part(block: Block, rows: slice | Tensor) -> Block:
    """Some rows of a block."""
    return replace(
        block,
        rows={name: values[rows] for name, values in block.rows.items()},
        sample=block.sample[rows],
        position=block.position[rows],
        index=block.index[rows],
        labels={name: values[rows] for name, values in block.labels.items()},
        weight=None if block.weight is None else block.weight[rows],
        aligned={
            port: {name: values[rows] for name, values in arrays.items()}
            for port, arrays in block.aligned.items()
        },
        network=None if block.network is None else cast("TinyNetwork", block.network).take(rows),
    )


def cut(block: Block, edges: Sequence[int]) -> list[Block]:
    """The block in pieces; edges may repeat, which gives empty pieces."""
    bounds = [0, *sorted(edges), len(block)]
    return [part(block, slice(a, b)) for a, b in pairwise(bounds)]


def to_device(given: Any, device: str) -> Any:
    """Tensors in dicts, inputs and blocks, moved."""
    if isinstance(given, Tensor):
        return given.to(device)
    if isinstance(given, dict):
        return {name: to_device(value, device) for name, value in given.items()}
    if isinstance(given, Inputs):
        names = ("artifacts", "weights", "series", "made")
        return replace(given, **{name: to_device(dict(getattr(given, name)), device) for name in names})
    if isinstance(given, Made):
        over = None if given.over is None else replace(given.over, block=to_device(given.over.block, device))
        return replace(given, over=over)
    if isinstance(given, tuple):
        return tuple(to_device(each, device) for each in given)
    if isinstance(given, Member):
        return replace(given, arrays=to_device(dict(given.arrays), device))
    if isinstance(given, TinyNetwork):
        return given.to(device)
    if isinstance(given, Block):
        fields = ("rows", "sample", "position", "index", "labels", "network", "aligned")
        return replace(given, **{name: to_device(getattr(given, name), device) for name in fields})
    return given


def on(given: Case, device: str) -> Case:
    """The case with its tensors on a device."""
    return given._replace(inputs=to_device(given.inputs, device), block=to_device(given.block, device))


def start(given: Case) -> State:
    """What the method starts with, on the device of the rows."""
    carry = given.module.start(given.inputs, given.config)
    return to_device(carry, str(given.block.index.device))


def fold(given: Case, blocks: Sequence[Block], carry: State) -> State:
    """Blocks folded from left to right."""
    states = [given.module.partial(block, carry, given.config) for block in blocks]
    total = states[0]
    for state in states[1:]:
        total = given.module.merge(total, state)
    return total


def run(given: Case, blocks: Sequence[Block] | None = None) -> Answer:
    """The method's answer over some blocks (all rows as one, if None)."""
    blocks = [given.block] if blocks is None else blocks
    return {
        "reduce": run_reduce,
        "map": run_rowwise,
        "pairs": run_rowwise,
        "sequential": run_sequential,
        "whole": run_whole,
        "combine": run_combine,
    }[given.module.KIND](given, blocks)


def run_reduce(given: Case, blocks: Sequence[Block]) -> Answer:
    module, carry = given.module, start(given)
    while True:
        state = fold(given, blocks, carry)
        following = None
        if hasattr(module, "update"):
            following = module.update(state, carry, given.inputs, given.config)
        if following is None:
            return _answer(*module.finish(state, carry, given.inputs, given.config))
        carry = following


def outputs_of(given: Case, block: Block, others: Sequence[Block], carry: State) -> dict[str, Tensor]:
    """The row outputs of one block."""
    module = given.module
    if module.KIND == "map":
        return module.apply(block, carry, given.config)
    method = Method(module, given.config, given.inputs, carry)
    reads = [partial(method.prepared, other) for other in others]
    return method.outputs(method.prepared(block), Others(reads, MOST_BYTES))


def run_rowwise(given: Case, blocks: Sequence[Block]) -> Answer:
    module, carry = given.module, start(given)
    pieces, total = [], None
    for block in blocks:
        pieces.append(outputs_of(given, block, blocks, carry))
        if hasattr(module, "partial"):
            state = module.partial(block, pieces[-1], carry, given.config)
            total = state if total is None else module.merge(total, state)
    answer = _answer(*module.finish(total or {}, carry, given.inputs, given.config))
    for name, declared in module.outputs(given.inputs, given.config).items():
        answer.arrays[name] = torch.cat([piece[name] for piece in pieces])
        answer.dims[name] = ("row",) if declared.width is None else ("row", declared.dim)
    return answer


def run_sequential(given: Case, blocks: Sequence[Block], through: Any = lambda state: state) -> Answer:
    """All passes; `through` is what happens to the state between blocks."""
    module, state = given.module, start(given)
    for number in range(module.passes(given.config)):
        if hasattr(module, "begin_pass"):
            state = module.begin_pass(state, number, given.config)
        for block in blocks:
            state = through(module.step(block, state, given.config))
    return _answer(*module.finish(state, {}, given.inputs, given.config))


def run_whole(given: Case, blocks: Sequence[Block]) -> Answer:
    (block,) = blocks
    return _answer(*given.module.solve(block, given.inputs, given.config))


def run_combine(given: Case, blocks: Sequence[Block]) -> Answer:
    return _answer(*given.module.solve(given.inputs, given.config))


def _answer(result: Any, arrays: Arrays) -> Answer:
    return Answer(result, {n: a.values for n, a in arrays.items()}, {n: a.dims for n, a in arrays.items()})
