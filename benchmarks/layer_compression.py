"""What single layers lose in fewer numbers or bits: `python -m benchmarks.layer_compression [--only loss|speed] [--tokens 16000]`.

MiniLM's query, value and attention output of layer 3, inputs of docstrings in random order; as many tokens of other docstrings tell what
is lost on rows that no choice has seen. `loss`: sparse dictionaries beside the best low rank of the same cost, codes rounded by GPTQ beside
the nearest codes, rounded inputs after a rotation, and low-rank factors of 8 bits. `speed`: layers beside dense ones of the same shape.
Results go to benchmarks/results/layer_compression.json.
"""

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gradients import MINILM
from benchmarks.protocol import environment, pairs, ratio, save, saved, timed
from schemas.capture import CaptureRequest
from schemas.data import Data
from schemas.model import TransformersModel
from tasks.compressed.layer import Affine, CompressedLayer
from tasks.compressed.low_rank import LowRankLinear
from tasks.compressed.quantised import QuantisedLinear, QuantisedLowRank
from tasks.compressed.sparse import SparseDictionaryLinear
from tasks.extract.batches import pack
from tasks.extract.collect import running
from tasks.extract.data import open_source
from tasks.extract.encode import make_encoder
from tasks.extract.models import load
from tasks.methods import groups_state, layer_compression
from tasks.methods.compression import dictionary, low_rank, mixed_precision, quantised
from tasks.methods.contract import Block, Inputs, State
from tasks.numerics import layer_factors, moments
from tasks.numerics.layer_error import lost_share

LAYERS = ("attention.self.query", "attention.self.value", "attention.output.dense")
DICTIONARIES: tuple[dict[str, Any], ...] = (
    *({"kept": kept, "corrected": corrected} for kept in (0.8, 0.6, 0.4) for corrected in (False, True)),
    {"kept": 0.6, "corrected": False, "form": "free"},
)
CODES: tuple[dict[str, Any], ...] = (
    {"bits": 8, "group": None},
    {"bits": 4, "group": 64, "clip": False, "by_energy": False, "corrected": False},
    {"bits": 4, "group": 64},
    {"bits": 4, "group": 64, "symmetric": False},
    {"bits": 3, "group": 64},
)
ROWS = (1, 128, 1024)
"""Of an input whose forward is timed."""


class Seen(NamedTuple):
    """A layer with its inputs."""

    weight: Tensor
    bias: Tensor
    rows: Tensor
    """[row, input] of the first docstrings."""
    others: Tensor
    """Of the next ones."""


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["loss", "speed"])
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = saved("layer_compression") | {"environment": environment(1, ("torch", "transformers"))}
    if options.only != "speed":
        results["loss"] = {name: losses(name, layer) for name, layer in inputs_of(options.tokens).items()}
    if options.only != "loss":
        results["speed"] = speeds(options.pairs)
    print(f"saved {save('layer_compression', results)}")


def inputs_of(tokens: int) -> dict[str, Seen]:
    """Each layer with twice so many rows, of whole docstrings in random order."""
    request = CaptureRequest.model_validate(
        {
            "model": {"kind": "transformers", "name": MINILM},
            "data": {"source": {"kind": "stdlib-docstrings"}},
            "sites": [f"encoder.layer.3.{name}:in:0" for name in LAYERS],
            "max_length": 128,
            "too_long": "truncate",
        }
    )
    source = open_source(Data(source=request.data.source))
    encoder = make_encoder(
        source, np.random.default_rng(0).permutation(len(source)), TransformersModel(name=MINILM), request
    )
    lengths = encoder.lengths()
    ends = lengths.cumsum()
    network = load(request.model)
    modules = dict(network.module.encoder.layer[3].named_modules())
    kept: dict[str, list[list[Tensor]]] = {name: [[], []] for name in LAYERS}
    seen: dict[str, Tensor] = {}
    for name in LAYERS:
        modules[name].register_forward_pre_hook(lambda _m, x, name=name: seen.update({name: x[0]}))
    for part in range(2):
        first, last = np.searchsorted(ends, (part * tokens, (part + 1) * tokens))
        for places in pack(
            lengths[first:last].tolist(), request.batch_tokens, request.batch_samples, request.batch_overhead
        ):
            batch = encoder.batch([int(first) + k for k in places])
            with running(network, batch, request.precision), torch.no_grad():
                network.module(**batch.inputs)
            for name, x in seen.items():
                kept[name][part].append(x[batch.mask].clone())
    return {
        name: Seen(
            modules[name].weight.detach(),
            modules[name].bias.detach(),
            *(torch.cat(rows) for rows in kept[name]),
        )
        for name in LAYERS
    }


def losses(name: str, layer: Seen) -> list[dict[str, Any]]:
    """Of each method and option."""
    found = [_dictionary(layer, options) for options in DICTIONARIES]
    found += [_codes(layer, options) for options in CODES]
    found += [_mixed(layer), _factors(layer)]
    for each in found:
        print(name, each, flush=True)
    return found


def _dictionary(layer: Seen, options: Mapping[str, Any]) -> dict[str, Any]:
    result, held_out = _made(dictionary, SparseDictionaryLinear, layer, options)
    return {
        "options": dict(options),
        "atoms": result["atoms"],
        "entries": result["entries"],
        "lost": result["lost"],
        "lost_low_rank": result["lost_low_rank"],
        "over_low_rank": result["lost"] / result["lost_low_rank"],
        "lost_held_out": held_out,
    }


def _codes(layer: Seen, options: Mapping[str, Any]) -> dict[str, Any]:
    result, held_out = _made(quantised, QuantisedLinear, layer, options)
    return {
        "options": dict(options),
        "lost": result["lost"],
        "lost_nearest": result["lost_nearest"],
        "over_nearest": result["lost"] / result["lost_nearest"],
        "lost_held_out": held_out,
        "times_smaller": result["bytes_before"] / result["bytes_after"],
    }


def _mixed(layer: Seen) -> dict[str, Any]:
    """Rounded inputs too; held-out rows are a quarter of the first ones."""
    config = mixed_precision.Config()
    inputs = Inputs(
        {"x": layer.rows.shape[1]}, len(layer.rows), len(layer.rows), weights={config.weight: layer.weight}
    )
    each = torch.arange(len(layer.rows))
    result, _ = mixed_precision.solve(Block({"x": layer.rows}, each // 40, each, each), inputs, config)
    told = ("bits", "energy_high", "lost_weights", "lost", "lost_unsplit", "lost_unrotated")
    return {"options": {"mixed_precision": True}} | {name: getattr(result, name) for name in told}


def _factors(layer: Seen) -> dict[str, Any]:
    """The best low rank at 0.8, and the same with factors of 8 bits."""
    gram = layer_compression.gram_about(
        moments.partial(layer.rows), torch.zeros(layer.rows.shape[1]).double()
    )
    left, right = layer_factors.factored(layer.weight.double(), layer_factors.input_root(gram))
    given = (
        {"left": left, "right": right},
        {"corrected": False},
        {"rank": layer_factors.fitting_rank(0.8, *layer.weight.shape)},
    )
    found: dict[str, Any] = {"options": {"factors": 0.8}}
    for kind in (LowRankLinear, QuantisedLowRank):
        made = kind.of(*given, Affine(layer.weight, layer.bias))
        found[kind.kind] = lost_share(layer.weight.double(), made.affine().weight, gram)
        found[f"{kind.kind}_bytes"] = made.stored_bytes
    return found


def _made(
    method: Any, kind: type[CompressedLayer], layer: Seen, options: Mapping[str, Any]
) -> tuple[dict[str, Any], float]:
    """The method's result, and what its layer loses on the other rows."""
    config = method.Config.model_validate(options)
    inputs = Inputs(
        {"x": layer.rows.shape[1]}, len(layer.rows), len(layer.rows), weights={config.weight: layer.weight}
    )
    result, arrays = method.finish(_state(layer.rows, config), {}, inputs, config)
    values, told = {name: array.values for name, array in arrays.items()}, result.model_dump()
    made = kind.of(values, told, {}, Affine(layer.weight, layer.bias))
    point = values["mean"] if config.corrected else torch.zeros_like(values["mean"])
    gram = layer_compression.gram_about(moments.partial(layer.others), point)
    return told, lost_share(layer.weight.double(), made.affine().weight, gram)


def _state(x: Tensor, config: Any) -> State:
    """As the engine makes it, every row a sample."""
    each = torch.arange(len(x))
    return groups_state.partial(Block({"x": x}, each, each, each), {}, config)


def speeds(n: int) -> list[dict[str, Any]]:
    """Seconds of dense layers over those of compressed ones, one thread."""
    found = []
    for outputs, inputs in ((384, 384), (1536, 384)):
        dense = nn.Linear(inputs, outputs)
        for label, layer in _layers(dense).items():
            for rows in ROWS:
                x, repeats = torch.randn(rows, inputs), max(1, 20_000 // (rows + 100))
                with torch.inference_mode():
                    ours, theirs = pairs(*(_repeated(each, x, repeats) for each in (layer, dense)), n=n)
                found.append(
                    {
                        "shape": [outputs, inputs],
                        "layer": label,
                        "rows": rows,
                        "dense_over_ours": ratio(theirs, ours)._asdict(),
                    }
                )
                print(found[-1], flush=True)
    return found


def _layers(dense: nn.Linear) -> dict[str, nn.Module]:
    given = Affine(dense.weight.detach(), dense.bias.detach())
    x = torch.randn(4 * dense.in_features, dense.in_features)
    made: dict[str, nn.Module] = {}
    asked: tuple[tuple[Any, type[CompressedLayer], dict[str, Any]], ...] = (
        (quantised, QuantisedLinear, {"bits": 4, "rounding": "nearest"}),
        (quantised, QuantisedLinear, {"bits": 8, "group": None, "rounding": "nearest"}),
        (dictionary, SparseDictionaryLinear, {"kept": 0.6, "iterations": 1}),
        (low_rank, LowRankLinear, {"kept": (0.6,)}),
    )
    choice = {"rank": layer_factors.fitting_rank(0.6, *given.weight.shape)}
    for method, kind, options in asked:
        config = method.Config.model_validate(options)
        inputs = Inputs({"x": dense.in_features}, len(x), len(x), weights={config.weight: given.weight})
        result, arrays = method.finish(_state(x, config), {}, inputs, config)
        values = {name: array.values for name, array in arrays.items()}
        made[f"{kind.kind} {options}"] = kind.of(values, result.model_dump(), choice, given)
    return made


def _repeated(layer: nn.Module, x: Tensor, repeats: int) -> Any:
    return lambda: timed(lambda: [layer(x) for _ in range(repeats)] and None)


if __name__ == "__main__":
    main()
