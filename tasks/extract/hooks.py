"""Hooks: see what goes in and out of modules during one forward, and leave no trace.

A tensor is handed over at the very moment its module gets or returns it. Whoever takes it must copy it
there and then: the network may write into it in the next line (in-place activations, `x += skip`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from schemas.errors import ModelError
from schemas.layout import Side, Site

Sink = Callable[[Site, Tensor], None]
Visit = Callable[[str, Side, int, Any], None]
"""Called with module path, side, call index, and everything that went in or came out."""


class _ReachedAll(BaseException):
    """Leaves a forward once every wanted site was seen; no `except Exception` of the network catches it."""


@contextmanager
def record(module: nn.Module, sites: Iterable[Site], sink: Sink) -> Iterator[None]:
    """Hands the tensors of `sites` to `sink` during the one forward inside the `with`.

    The forward is left, and so is the `with` block, as soon as the last site was seen. Calls of a module
    are numbered from 0 in the order in which they begin (`in`) or end (`out`).

    Raises:
        ModelError: if the forward ended before some site was reached, or a site held no tensor; or if the
            network is compiled, or has no such module.
    """
    waiting = by_call(sites)

    def visit(path: str, side: Side, call: int, value: Any) -> None:
        for site in waiting.pop((path, side, call), ()):
            sink(site, tensor_at(value, site))
        if not waiting:
            raise _ReachedAll

    with observe(module, {(path, side) for path, side, _ in waiting}, visit):
        try:
            yield
        except _ReachedAll:
            return
    missed = ", ".join(str(site) for group in waiting.values() for site in group)
    if missed:
        raise ModelError(
            f"the forward of {type(module).__name__} ended without reaching {missed}: "
            "the calls of a module depend on the data; capture only sites that every batch reaches"
        )


@contextmanager
def observe(module: nn.Module, places: Iterable[tuple[str, Side]] | None, visit: Visit) -> Iterator[None]:
    """Calls `visit` for the inputs (`in`) and outputs (`out`) of modules; every one where `places` is None.

    Inputs come as a mapping: positional ones under their index, then keyword ones, `hidden_states` first.

    Raises:
        ModelError: if the network is compiled, or a place names no module.
    """
    if places is None:
        modules = dict(module.named_modules())
        for path, part in modules.items():
            refuse_compiled(path, part)
        wanted = {(path, side) for path in modules for side in _SIDES}
    else:
        wanted = set(places)
        modules = {path: _descend(module, path) for path, _ in wanted}
    handles = []
    try:
        for path, side in sorted(wanted):
            handles.append(_install(modules[path], path, side, visit))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _descend(module: nn.Module, path: str) -> nn.Module:
    """The part at a path; nothing on the way may be compiled."""
    refuse_compiled("", module)
    part = module
    for name in path.split(".") if path else ():
        child = part._modules.get(name)
        if child is None:
            raise ModelError(f"{type(module).__name__} has no module {path!r}: there is no {name!r}")
        refuse_compiled(path, child)
        part = child
    return part


def refuse_compiled(path: str, part: nn.Module) -> None:
    """Raise ModelError if a module is compiled."""
    # Set by torch.compile(module) and by module.compile(); isinstance would import all of torch._dynamo.
    if type(part).__name__ == "OptimizedModule" or part.__dict__.get("_compiled_call_impl") is not None:
        raise ModelError(
            f"{path or 'the network'} ({type(part).__name__}) is compiled by torch, which may ignore hooks "
            "in silence: give the module as it was before torch.compile (`compiled._orig_mod`)"
        )


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested tuples, mappings and dataclasses, depth first, with its path (`hidden.0`)."""
    if isinstance(value, Tensor):
        yield path, value
    for name, child in _children(value):
        yield from tensors(child, f"{path}.{name}" if path else name)


def tensor_at(value: Any, site: Site) -> Tensor:
    """The tensor of a site in what its module got or returned.

    Raises:
        ModelError: if there is none.
    """
    path = site.element
    for found, tensor in tensors(value):
        if not path or found == path:
            return tensor
    names = ", ".join(name or "the tensor itself" for name, _ in tensors(value)) or "no tensor"
    raise ModelError(f"{site} holds no tensor at {path!r}; it is a {type(value).__name__} with {names}")


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(name), child) for name, child in value.items())
    elif isinstance(value, (tuple, list)):
        yield from ((str(index), child) for index, child in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))


_SIDES: tuple[Side, Side] = ("in", "out")


def by_call(sites: Iterable[Site]) -> dict[tuple[str, Side, int], list[Site]]:
    """Sites by the call of a module that reaches them."""
    groups: dict[tuple[str, Side, int], list[Site]] = {}
    for site in sites:
        groups.setdefault((site.module, site.side, site.call), []).append(site)
    return groups


def _install(module: nn.Module, path: str, side: Side, visit: Visit) -> Any:
    calls = 0

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        visit(path, "in", calls - 1, _arguments(args, kwargs))

    def after(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal calls
        calls += 1
        visit(path, "out", calls - 1, output)

    if side == "in":
        return module.register_forward_pre_hook(cast("Any", before), with_kwargs=True)
    return module.register_forward_hook(after)


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    named = {str(index): value for index, value in enumerate(args)}
    if "hidden_states" in kwargs:
        named["hidden_states"] = kwargs["hidden_states"]
    return named | kwargs
