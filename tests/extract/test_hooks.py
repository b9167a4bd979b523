"""Hooks: every kind of input and output, calls counted, early end, and no trace left."""

import dataclasses
import gc
import weakref
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from schemas.errors import ModelError
from schemas.layout import Site
from tasks.extract.hooks import observe, record, tensors


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclasses.dataclass
class Plain:
    state: Tensor
    note: str = ""


@dataclasses.dataclass
class Output(ModelOutput):
    hidden: tuple[Tensor, ...] | None = None
    logits: Tensor | None = None


A, B = torch.arange(6.0).reshape(2, 3), torch.full((2, 3), 7.0)

KINDS: dict[str, tuple[Any, dict[str, Tensor]]] = {
    "tensor": (A, {"": A}),
    "tuple": ((A, None, B), {"0": A, "2": B}),
    "list": ([A, B], {"0": A, "1": B}),
    "nested": ((("text", (A,)), [B]), {"0.1.0": A, "1.0": B}),
    "dict": ({"note": 1, "hidden": [A, B]}, {"hidden.0": A, "hidden.1": B}),
    "ordered": (OrderedDict(a=A, b=B), {"a": A, "b": B}),
    "namedtuple": (Pair(A, B), {"0": A, "1": B}),
    "dataclass": (Plain(A), {"state": A}),
    "output": (Output(hidden=(A,), logits=B), {"hidden.0": A, "logits": B}),
}


class Returns(nn.Module):
    """Returns what it was made with."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.value


class Chain(nn.Module):
    """One layer called three times, then a last one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.last = nn.Linear(3, 3)
        self.finished = 0

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x)
        x = self.last(x)
        self.finished += 1
        return x


def taken(module: nn.Module, sites: list[Site], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with record(module, sites, lambda site, tensor: found.update({str(site): tensor.clone()})):
        module(*args, **kwargs)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_output(kind):
    value, expected = KINDS[kind]
    assert list(dict(tensors(value))) == list(expected)
    for element, tensor in expected.items():
        site = Site(module="", element=element)
        assert torch.equal(taken(Returns(value), [site])[str(site)], tensor)
    first = next(iter(expected.values()))
    assert torch.equal(taken(Returns(value), [Site(module="")])[":out:0"], first)


@pytest.mark.parametrize(
    ("args", "kwargs", "element", "expected"),
    [
        ((A, B), {}, "", A),
        ((A, B), {}, "1", B),
        ((), {"mask": A, "hidden_states": B}, "", B),
        ((), {"mask": A, "hidden_states": B}, "mask", A),
        ((), {"x": A}, "", A),
        ((A,), {"hidden_states": B}, "", A),
        (("text", {"deep": [A]}), {}, "1.deep.0", A),
        ((None, A), {}, "", A),
    ],
)
def test_every_kind_of_input(args, kwargs, element, expected):
    site = Site(module="", side="in", element=element)
    assert torch.equal(taken(Returns(0), [site], *args, **kwargs)[str(site)], expected)


def test_calls_are_counted():
    net, x = Chain(), torch.randn(2, 3)
    sites = [Site(module="layer", side=side, call=call) for call in range(3) for side in ("in", "out")]
    found = taken(net, sites, x)
    state = x
    for call in range(3):
        assert torch.equal(found[f"layer:in:{call}"], state)
        state = net.layer(state)
        assert torch.equal(found[f"layer:out:{call}"], state)


@pytest.mark.parametrize(("call", "stops"), [(0, True), (2, True)])
def test_the_forward_ends_with_the_last_site(call, stops):
    net = Chain()
    seen = []
    net.last.register_forward_hook(lambda *_: seen.append("last"))
    taken(net, [Site(module="layer", call=call)], torch.randn(2, 3))
    assert seen == []
    assert net.finished == 0


def test_no_except_clause_of_the_network_stops_the_early_end():
    class Catches(Chain):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except Exception:  # noqa: BLE001
                raise AssertionError from None

    assert "layer:out:1" in taken(Catches(), [Site(module="layer", call=1)], torch.randn(2, 3))


def test_sites_that_are_not_reached_are_named():
    with pytest.raises(ModelError, match=r"without reaching layer:out:3, layer:out:7"):
        taken(Chain(), [Site(module="layer", call=c) for c in (0, 3, 7)], torch.randn(2, 3))


def test_an_element_that_is_not_there_is_named():
    with pytest.raises(ModelError, match=r":out:0#5 holds no tensor at '5'; it is a tuple with 0, 2"):
        taken(Returns(KINDS["tuple"][0]), [Site(module="", element="5")])


def test_an_unknown_module_is_named():
    with pytest.raises(ModelError, match=r"Chain has no module 'layer\.weights'"):
        taken(Chain(), [Site(module="layer.weights")], torch.randn(2, 3))


def test_hooks_see_what_earlier_hooks_made():
    net = Chain()
    net.layer.register_forward_hook(lambda module, args, output: output * 0 + 5)
    found = taken(net, [Site(module="layer")], torch.randn(2, 3))
    assert torch.equal(found["layer:out:0"], torch.full((2, 3), 5.0))


class Raises(Chain):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken")


@pytest.mark.parametrize("way", ["whole", "early", "error in forward", "error in sink", "unknown module"])
def test_hook_dicts_are_as_before(way):
    net = Raises() if way == "error in forward" else Chain()
    net.layer.register_forward_hook(lambda *_: None)
    before = hook_dicts(net)
    sites = [Site(module="layer", side="in")] + ([Site(module="last")] if way == "whole" else [])
    sites += [Site(module="nowhere")] if way == "unknown module" else []

    def sink(site: Site, tensor: Tensor) -> None:
        if way == "error in sink":
            raise RuntimeError("broken")

    def run() -> None:
        with record(net, sites, sink):
            net(torch.randn(2, 3))

    if "error" in way or "unknown" in way:
        with pytest.raises(RuntimeError):
            run()
    else:
        run()
    assert hook_dicts(net) == before


def hook_dicts(net: nn.Module) -> list[dict[str, Any]]:
    return [
        {name: dict(value) for name, value in vars(module).items() if "hook" in name and value is not None}
        if module is not None
        else {}
        for module in net.modules()
    ]


@pytest.mark.parametrize("last", [False, True])
def test_no_tensor_of_the_network_is_kept(last):
    references = []
    sites = [Site(module="layer", call=call) for call in range(3)] + ([Site(module="last")] if last else [])
    net = Chain()
    with torch.inference_mode(), record(net, sites, lambda _, tensor: references.append(weakref.ref(tensor))):
        net(torch.randn(2, 3))
    gc.collect()
    assert [reference() for reference in references] == [None] * len(sites)


@pytest.mark.parametrize("compiled", ["wrapped", "wrapped part", "in place", "part in place"])
def test_compiled_networks_are_refused(compiled):
    net: nn.Module = Chain()
    site = Site(module="layer")
    if compiled == "wrapped":
        net = torch.compile(net, backend="eager")
    elif compiled == "wrapped part":
        net.layer = torch.compile(net.layer, backend="eager")
    elif compiled == "in place":
        net.compile(backend="eager")
    else:
        net.layer.compile(backend="eager")
    with pytest.raises(ModelError, match=r"is compiled by torch.*_orig_mod"):
        taken(net, [site], torch.randn(2, 3))
    with pytest.raises(ModelError, match="is compiled by torch"), observe(net, None, lambda *_: None):
        pass


def test_observe_sees_every_call_in_order():
    net = Chain()
    seen = []
    with observe(net, None, lambda path, side, call, value: seen.append((path, side, call))):
        net(torch.randn(2, 3))
    layer = [("layer", side, call) for call in range(3) for side in ("in", "out")]
    assert seen == [("", "in", 0), *layer, ("last", "in", 0), ("last", "out", 0), ("", "out", 0)]
