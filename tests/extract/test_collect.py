"""Rows are what the network computed, bit for bit, whatever it does to its tensors afterwards."""

import copy
import functools
import inspect
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from schemas.capture import Precision, Rows
from schemas.errors import ModelError
from schemas.layout import SiteLayout
from tasks.extract.batches import Batch
from tasks.extract.collect import collect, forward
from tasks.extract.models import Network, load, network, wrap
from tasks.extract.sites import list_sites, resolve
from tests.extract.nets import (
    MINILM,
    build,
    conv_net,
    family_batch,
    images,
    save,
    spec,
    text_batch,
    tokens,
)

PRECISION = Precision()


def sites_of(net: Network, batch: Batch, *patterns: str, pooling: Any = "none") -> tuple[SiteLayout, ...]:
    return resolve(patterns, list_sites(net, batch), pooling)


def run(net: Network, batch: Batch, *patterns: str, rows: Rows = Rows()) -> dict[str, Tensor]:  # noqa: B008
    return collect(net, batch, sites_of(net, batch, *patterns, pooling=rows.pooling), rows, PRECISION)


def cloned(module: nn.Module, batch: Batch, paths: list[str]) -> dict[str, list[Tensor]]:
    """The reference: a hook that clones the output of every call, in a copy of the network."""
    module = copy.deepcopy(module).eval()
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    for path in paths:
        module.get_submodule(path).register_forward_hook(
            lambda _, __, out, path=path: found[path].append(
                (out if isinstance(out, Tensor) else out[0]).clone()
            )
        )
    options = {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}
    named = {name: value for name, value in batch.inputs.items() if name}
    with torch.no_grad():
        module(*(value for name, value in batch.inputs.items() if not name), **named, **options)
    return found


def real_rows(hidden: Tensor, batch: Batch) -> Tensor:
    return hidden.flatten(0, 1) if batch.mask is None else hidden[batch.mask]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["minilm", "bert", "gpt2", "llama", "vit", "albert"])
def test_block_outputs_are_bit_equal(family, attention, tmp_path):
    name = MINILM if family == "minilm" else save(family, tmp_path)
    net = load(spec(name, attention=attention))
    batch = text_batch([21, 8, 30, 2], vocab=30000) if family == "minilm" else family_batch(family)
    found = run(net, batch, "residual")
    with torch.no_grad():
        # A key-value cache changes the memory layout in GPT-2's eager attention, and so its last bits.
        states = copy.deepcopy(net.module)(
            **batch.inputs, **net.arguments, output_hidden_states=True
        ).hidden_states
    assert len(found) == len(states) - 1
    for index, rows in enumerate(list(found.values())[:-1]):
        assert torch.equal(rows, real_rows(states[index + 1], batch))
    last = next(reversed(found))
    path, call = last.split(":")[0], int(last.split(":")[2])
    assert torch.equal(found[last], real_rows(cloned(net.module, batch, [path])[path][call], batch))


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "vit"])
def test_the_final_norm_is_the_last_hidden_state(family, head):
    net = wrap(build(family, head=head))
    batch = family_batch(family)
    rows = run(net, batch, "ln_final.hook_normalized")
    base = getattr(net.module, net.module.base_model_prefix) if head else net.module
    with torch.no_grad():
        last = copy.deepcopy(base)(**batch.inputs).last_hidden_state
    assert torch.equal(next(iter(rows.values())), real_rows(last, batch))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit", "albert"])
def test_the_parts_of_a_block_add_up(family):
    """Residual in, plus attention, plus MLP is the residual out; BERT and ALBERT normalise in between."""
    net = wrap(build(family))
    batch = family_batch(family)
    names = [f"blocks.1.hook_{part}" for part in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    before, attention, mlp, after = (next(iter(run(net, batch, name).values())) for name in names)
    middle = before + attention
    if family in ("bert", "albert"):
        block = net.module.get_submodule(sites_of(net, batch, names[3])[0].site.module)
        first = block.attention.output.LayerNorm if family == "bert" else block.attention.LayerNorm
        second = block.output.LayerNorm if family == "bert" else block.full_layer_layer_norm
        assert torch.allclose(second(mlp + first(middle)), after, atol=1e-5)
    else:
        assert torch.allclose(middle + mlp, after, atol=1e-5)


def test_albert_has_one_module_and_six_calls():
    net = wrap(build("albert"))
    batch = family_batch("albert")
    found = run(net, batch, "encoder.albert_layer_groups.0.albert_layers.0:out:*")
    path = "encoder.albert_layer_groups.0.albert_layers.0"
    states = cloned(net.module, batch, [path])[path]
    assert list(found) == [f"{path}:out:{call}" for call in range(6)]
    for rows, state in zip(found.values(), states, strict=True):
        assert torch.equal(rows, real_rows(state, batch))


def test_in_place_operations_do_not_reach_the_rows():
    net, batch = wrap(conv_net()), images(5)
    paths = ["stem", "grouped", "dilated", "norm", "strided", "batch_norm", "head"]
    found = run(net, batch, *paths)
    for path, (state,) in cloned(net.module, batch, paths).items():
        rows = state.movedim(1, -1).reshape(-1, state.shape[1])
        assert torch.equal(found[f"{path}:out:0"], rows)
        assert path == "head" or float(rows.min()) < 0
    twice = run(net, batch, "act:in:*", "act:out:*")
    assert float(twice["act:in:0"].min()) < 0 <= float(twice["act:out:0"].min())
    assert torch.equal(twice["act:in:0"], found["stem:out:0"])


def test_rows_of_a_convolution_are_in_sample_then_raster_order():
    net, batch = wrap(conv_net()), images(3)
    layouts = sites_of(net, batch, "strided")
    assert [(layout.space, layout.width, layout.feature_axis) for layout in layouts] == [("grid6x6", 16, 1)]
    rows = collect(net, batch, layouts, Rows(), PRECISION)["strided:out:0"].reshape(3, 6, 6, 16)
    state = cloned(net.module, batch, ["strided"])["strided"][0]
    assert torch.equal(rows[2, 4, 1], state[2, :, 4, 1])


LENGTHS = [
    5,
    1,
    12,
    7,
    7,
    3,
    20,
    9,
    2,
    11,
    6,
    4,
    15,
    8,
    10,
    13,
    1,
    14,
    16,
    18,
    3,
    2,
    5,
    3,
    2,
    6,
    4,
    9,
    8,
    1,
    7,
    10,
]


@pytest.mark.parametrize("family", ["minilm", "llama", "gpt2"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("size", [1, 7, 32])
def test_padding_changes_nothing(family, left, size):
    """Samples alone, in batches of 7 and of 32, padded left and right: the same rows, and none of padding."""
    net, vocab = padding_net(family)
    parts = [LENGTHS[start : start + size] for start in range(0, len(LENGTHS), size)]
    layouts = sites_of(net, text_batch(LENGTHS[:3], vocab=vocab), "residual")
    batches = [text_batch(part, vocab=vocab, left=left, positions=True) for part in parts]
    found = [collect(net, batch, layouts, Rows(), PRECISION) for batch in batches]
    for layout in layouts:
        rows = torch.cat([one[str(layout.site)] for one in found])
        expected = alone(family)[layout.site.module]
        assert rows.shape == (sum(LENGTHS), layout.width)
        assert float((rows - expected).abs().max()) <= 1e-5


@functools.cache
def padding_net(family: str) -> tuple[Network, int]:
    if family == "minilm":
        return network(spec(MINILM)), 30000
    module = build(family.removesuffix("-float64"))
    return (wrap(module.double(), torch.float64) if family.endswith("64") else wrap(module)), 60


@functools.cache
def alone(family: str) -> dict[str, Tensor]:
    """The reference: each sample by itself, without any padding, mask, or position; block path to rows."""
    net, vocab = padding_net(family)
    blocks = (
        net.module.encoder.layer
        if family == "minilm"
        else net.module.get_submodule("h" if "gpt" in family else "layers")
    )
    paths = {block: path for path, block in net.module.named_modules() if block in list(blocks)}
    parts: dict[str, list[Tensor]] = {path: [] for path in paths.values()}
    handles = [
        block.register_forward_hook(lambda block, _, out: parts[paths[block]].append(out[0].clone()))
        for block in paths
    ]
    with torch.no_grad():
        for length in LENGTHS:
            net.module(input_ids=tokens(length, vocab, 0)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {path: torch.cat(rows) for path, rows in parts.items()}


def test_float64_shows_that_padding_differences_are_rounding():
    net, _ = padding_net("llama-float64")
    layouts = sites_of(net, text_batch(LENGTHS[:3]), "residual")
    found = collect(net, text_batch(LENGTHS, left=True, positions=True), layouts, Rows(), PRECISION)
    for layout in layouts:
        difference = found[str(layout.site)] - alone("llama-float64")[layout.site.module]
        assert float(difference.abs().max()) <= 1e-12


def test_kept_rows_come_in_sample_then_position_order():
    net = wrap(build("llama"))
    batch = text_batch([4, 6, 2], left=True, positions=True)
    keep = batch.mask & (torch.arange(6) != 4)
    state = cloned(net.module, batch, ["layers.0"])["layers.0"][0]
    found = run(net, batch._replace(keep=keep), "layers.0")["layers.0:out:0"]
    by_hand = [state[sample, place] for sample in range(3) for place in range(6) if keep[sample, place]]
    assert torch.equal(found, torch.stack(by_hand))


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_pooled_tokens(pooling):
    net = wrap(build("bert"))
    batch = text_batch([4, 6, 2, 5])
    keep = batch.mask.clone()
    keep[:, 0] = False
    keep[3] = False
    batch = batch._replace(keep=keep)
    found = run(net, batch, "residual", "pooler", rows=Rows(pooling=pooling))
    state = cloned(net.module, batch, ["encoder.layer.1"])["encoder.layer.1"][0]
    reduce = {"mean": lambda rows: rows.mean(0), "last": lambda rows: rows[-1], "cls": lambda rows: rows[0]}[
        pooling
    ]
    expected = torch.stack([reduce(state[sample, keep[sample]]) for sample in range(3)])
    rows = found["encoder.layer.1:out:0"]
    assert torch.allclose(rows[:3], expected, atol=1e-6)
    assert torch.isnan(rows[3]).all()
    assert found["pooler:out:0"].shape == (4, 32)
    assert not torch.isnan(found["pooler:out:0"]).any()


def test_one_bad_sample_does_not_touch_the_means_of_the_others():
    class Poisoned(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            x = input_ids.float()[..., None].repeat(1, 1, 2)
            return torch.where(x == 5, float("nan"), x)

    ids = torch.tensor([[1, 2, 3], [1, 5, 3], [4, 4, 0]])
    batch = Batch({"input_ids": ids}, ids > 0, ids > 0)
    rows = run(wrap(Poisoned()), batch, "", rows=Rows(pooling="mean"))[":out:0"]
    assert rows[:, 0].nan_to_num(-1).tolist() == [2.0, -1.0, 4.0]


@pytest.mark.parametrize(
    ("rows", "space", "pick"),
    [
        (Rows(), "seq17", lambda x: x.flatten(0, 1)),
        (Rows(positions="first"), "seq17", lambda x: x[:, 0]),
        (Rows(positions="last"), "seq17", lambda x: x[:, -1]),
        (Rows(positions="not-first"), "seq17", lambda x: x[:, 1:].flatten(0, 1)),
        (Rows(pooling="cls"), "sample", lambda x: x[:, 0]),
        (Rows(pooling="last"), "sample", lambda x: x[:, -1]),
        (Rows(pooling="mean"), "sample", lambda x: x.mean(1)),
        (Rows(pooling="mean", positions="not-first"), "sample", lambda x: x[:, 1:].mean(1)),
    ],
)
def test_rows_of_a_fixed_sequence(rows, space, pick):
    net, batch = wrap(build("vit")), family_batch("vit")
    layouts = sites_of(net, batch, "layers.0", pooling=rows.pooling)
    assert [layout.space for layout in layouts] == [space]
    found = collect(net, batch, layouts, rows, PRECISION)["layers.0:out:0"]
    assert torch.allclose(found, pick(cloned(net.module, batch, ["layers.0"])["layers.0"][0]), atol=1e-6)


def test_rows_can_be_written_to_and_share_no_memory():
    net, batch = wrap(build("vit")), family_batch("vit")
    found = run(net, batch, "layers.0", "layers.1:in")
    first, second = found.values()
    assert not first.is_inference()
    first += 1
    assert torch.equal(first, second + 1)
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


class Noisy(nn.Module):
    """Draws from every generator, also in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        draw = random.random() + float(np.random.random())  # noqa: NPY002
        return self.layer(x) + torch.rand(x.shape) + draw


def test_a_stochastic_network_is_deterministic():
    net, batch = wrap(Noisy()), Batch({"": torch.randn(4, 3)})
    layouts = sites_of(net, batch, "")
    first, second, other = (
        collect(net, batch, layouts, Rows(), Precision(seed=seed))[":out:0"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_dropout_is_off_and_batch_statistics_are_not_updated():
    module = conv_net().train()
    net, batch = wrap(module), images(4)
    before = copy.deepcopy(module.state_dict())
    first, second = (run(net, batch, "drop", "head")["head:out:0"] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Fails(nn.Module):
    """Works for a while, then raises."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv_net()
        self.last = nn.Identity()
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        if self.fail:
            raise ZeroDivisionError
        return self.last(x)


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_and_the_process_are_left_as_they_were(fails):
    module = Fails().train()
    module.inner.norm.eval()
    module.inner.stem.weight.requires_grad_(False)
    module.inner.norm.register_forward_hook(lambda *_: None)
    net, batch = wrap(module), images(4)
    layouts = sites_of(net, batch, "inner.strided", "last")
    module.fail = fails
    before = picture(module)
    if fails:
        with pytest.raises(ZeroDivisionError):
            collect(net, batch, layouts, Rows(), PRECISION)
    else:
        collect(net, batch, layouts, Rows(), PRECISION)
        collect(net, batch, layouts[:1], Rows(), PRECISION)
    assert picture(module) == before


def picture(module: nn.Module) -> list[Any]:
    """Everything that must not change, as plain values."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    parts = [
        (
            path,
            part.training,
            sorted(vars(part)),
            [dict(v) for k, v in vars(part).items() if "hook" in k and v is not None],
        )
        for path, part in module.named_modules()
    ]
    values = [(key, value.tolist()) for key, value in module.state_dict().items()]
    grads = [(parameter.requires_grad, parameter.grad) for parameter in module.parameters()]
    generators = torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), rest
    return [parts, values, grads, generators, torch.is_grad_enabled(), torch.is_inference_mode_enabled()]


def test_a_changed_shape_is_refused_with_both_shapes():
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, : 2 + int(x.flatten()[0] > 100)]

    net = wrap(Picky())
    layouts = sites_of(net, Batch({"": torch.zeros(3, 4)}), "")
    with pytest.raises(ModelError, match=r":out:0 has shape \(3, 3\).*2 features on axis 1"):
        collect(net, Batch({"": torch.full((3, 4), 200.0)}), layouts, Rows(), PRECISION)


def test_data_dependent_rows_are_refused():
    class Selects(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, : 2 + int(x.flatten()[0] > 100)]

    net = wrap(Selects())
    layouts = sites_of(net, Batch({"": torch.zeros(3, 4, 5)}), "")
    with pytest.raises(ModelError, match=r"has shape \(3, 3, 5\).*expected 2 rows"):
        collect(net, Batch({"": torch.full((3, 4, 5), 200.0)}), layouts, Rows(), PRECISION)


def test_values_keep_the_dtype_they_were_computed_in(tmp_path):
    net = load(spec(save("llama", tmp_path), dtype="bfloat16"))
    batch = family_batch("llama")
    rows = run(net, batch, "layers.0")["layers.0:out:0"]
    assert rows.dtype is torch.bfloat16
    assert torch.equal(rows, real_rows(cloned(net.module, batch, ["layers.0"])["layers.0"][0], batch))
    assert run(net, batch, "layers.0", rows=Rows(pooling="mean"))["layers.0:out:0"].dtype is torch.float32


def test_autocast():
    net, batch = wrap(build("bert")), family_batch("bert")
    layouts = sites_of(net, batch, "encoder.layer.0.output.dense")
    rows = collect(net, batch, layouts, Rows(), Precision(autocast="bfloat16"))
    assert [value.dtype for value in rows.values()] == [torch.bfloat16]
    assert not torch.is_autocast_enabled("cpu")


def test_several_sites_in_one_forward_equal_single_runs():
    net, batch = wrap(build("gpt2")), family_batch("gpt2")
    layouts = sites_of(net, batch, "**", "**:in")
    together = collect(net, batch, layouts, Rows(), PRECISION)
    assert list(together) == [str(layout.site) for layout in layouts]
    for layout in layouts:
        single = collect(net, batch, [layout], Rows(), PRECISION)[str(layout.site)]
        assert torch.equal(single, together[str(layout.site)])


def test_an_early_site_does_not_pay_for_later_blocks():
    net, batch = wrap(build("bert")), family_batch("bert")
    layouts = sites_of(net, batch, "encoder.layer.0")
    called = []
    net.module.encoder.layer[1].register_forward_pre_hook(lambda *_: called.append(1))
    collect(net, batch, layouts, Rows(), PRECISION)
    assert called == []


def test_integer_inputs_stay_and_floating_inputs_are_cast():
    class Reads(nn.Module):
        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            assert index.dtype is torch.int64
            return x

    net = wrap(Reads(), torch.bfloat16)
    batch = Batch({"": torch.ones(3, 2, dtype=torch.float64), "index": torch.arange(3)})
    assert run(net, batch, "")[":out:0"].dtype is torch.bfloat16


class Operations(TorchDispatchMode):
    """Counts what torch executes, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def cost(function: Callable[[], object]) -> tuple[Counter[str], int]:
    """What a call executes: operations by name, and floating point operations of its matrix products."""
    with FlopCounterMode(display=False) as flops, Operations() as operations:
        function()
    return operations.count, flops.get_total_flops()


def test_a_capture_computes_no_more_than_a_bare_forward_and_stops_early():
    """Six blocks cost one copy each and save the pooler; block 1 of 6 costs a third of them."""
    net = network(spec(MINILM, attention="eager"))
    batch = text_batch([6, 9, 3], vocab=30000)
    layouts = sites_of(net, batch, "residual")

    def bare() -> None:
        with torch.no_grad():
            net.module(**batch.inputs, **net.arguments)

    forward, flops = cost(bare)
    six, six_flops = cost(lambda: collect(net, batch, layouts, Rows(), PRECISION))
    two, two_flops = cost(lambda: collect(net, batch, layouts[1:2], Rows(), PRECISION))
    pooler = 2 * 3 * 384 * 384  # one row of each sample, times a matrix
    assert six_flops == flops - pooler
    assert two_flops * 3 == six_flops
    extra = six - forward
    assert (extra["index_select"], two["index_select"]) == (6, 1)
    assert sum(extra.values()) <= 6 * 8


@pytest.mark.gpu
def test_cuda_gives_the_rows_of_the_cpu():
    module = build("llama")
    batch = family_batch("llama")
    layouts = sites_of(wrap(module), batch, "residual")
    for rows in (Rows(), Rows(pooling="mean"), Rows(pooling="last")):
        here = collect(wrap(module.cpu()), batch, layouts, rows, PRECISION)
        there = collect(wrap(module.cuda()), batch, layouts, rows, PRECISION)
        for name, values in there.items():
            assert values.device.type == "cpu"
            assert torch.allclose(values, here[name], atol=1e-4)


def test_a_network_may_write_into_its_input() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    batch = Batch({"": torch.ones(2, 3)})
    first, second = (forward(wrap(Doubling()), batch) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(batch.inputs[""], torch.ones(2, 3))
