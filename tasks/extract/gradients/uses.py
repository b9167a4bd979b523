"""Sees every use of a parameter in a forward, as the operation that takes it, and gives each its share of the backward.

No layer is asked what it is: a weight that is used by a function, by two layers, or by one layer twice is seen like any other.
Parameters go into operations without their gradient, so that none is formed; where nothing before an operation needs a gradient, its
output opens the graph.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tasks.extract.gradients.call import Call, NoRule
from tasks.extract.gradients.graph import opened
from tasks.extract.gradients.keepers import Keeper
from tasks.extract.gradients.rules import uses_of

PICKING = frozenset({"__getitem__", "index_select", "gather", "take_along_dim"})
"""Operations that take rows by their numbers."""
READ_ONLY = frozenset({"detach", "requires_grad_"})
GRAD_SET: Any = vars(torch._C.TensorBase)["grad"].__set__
"""What a backward of its own does beside the network."""
TURNED = frozenset({"T", "mT", "H", "mH", "real", "imag"})
"""Properties that are a tensor with a graph."""


class Uses(TorchFunctionMode):
    """Active during a forward and its backward (a checkpointed part of a network runs again there)."""

    def __init__(
        self,
        names: Mapping[int, str],
        looped: Iterable[int],
        frozen: Iterable[int],
        n: int,
        keeper: Keeper,
        open_all: bool,
    ) -> None:
        """Prepare.

        Args:
            names: `id` of each parameter whose gradient is wanted to its name.
            looped: `id` of those that take part as they are.
            frozen: `id` of every other parameter.
            n: samples of the batch.
            keeper: takes the terms.
            open_all: whether the graph begins at the first use of any parameter, not only of a wanted one.
        """
        super().__init__()
        self._names = dict(names)
        self._all = frozenset(names) | frozenset(frozen)
        self._n = n
        self._keeper = keeper
        self._open_all = open_all
        self._waiting: Counter[str] = Counter()
        self._moved = False
        """Whether inputs were picked by number in this forward, so that rows may be those of other samples."""
        self._looped = frozenset(looped)
        self.hidden: set[int] = set()
        """`id` of looped parameters that were used without a graph, as a checkpoint does that runs again."""
        self.refused: dict[str, str] = {}
        """Parameter to why a use of it has no rule."""
        self.forms: list[tuple[str, str, str]] = []
        """Operation, parameter, and how its output's first axis counts samples, in the order of the forward."""
        self._ends: list[tuple[Node | None, str]] = []
        """Where in the graph each of these is, and what."""

    def __exit__(self, *error: Any) -> None:
        self._ends = []
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self._moved = self._moved or self._moves(func, args, kwargs)
        given = _flat((*args, *kwargs.values()))
        if self._looped and not torch.is_grad_enabled():
            self.hidden.update(self._looped.intersection(map(id, given)))
        found = [a for a in given if id(a) in self._all]
        if not found:
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") in ("__get__", *READ_ONLY) or func == GRAD_SET:
            return self._property(func, found, args, kwargs)
        out = func(*_aliases(args, self._all), **_aliases(kwargs, self._all))
        wanted = [name for a in found if (name := self._names.get(id(a))) is not None]
        if not torch.is_grad_enabled() or not isinstance(out, Tensor | tuple | list | None):
            return out
        if torch._C._functorch.peek_interpreter_stack() is not None:
            self._refuse(wanted, func, "it is used inside a transform of torch.func, as vmap")
            return out
        if out is None:
            self._refuse(wanted, func, "it is written into a tensor")
            return out
        if not isinstance(out, Tensor):
            self._refuse(wanted, func, "it gives several tensors")
            return out
        return self._watch(func, args, kwargs, out, wanted)

    def _moves(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> bool:
        """Whether an operation takes inputs of samples in an order of its own; what has a graph shows there."""
        if getattr(func, "__name__", "") not in PICKING:
            return False
        values = args[0] if args else None
        if (
            not isinstance(values, Tensor)
            or values.requires_grad
            or values.ndim == 0
            or len(values) != self._n
        ):
            return False
        index = _first_axis_index(func, args, kwargs)
        if index is None:
            return False
        each = torch.arange(self._n, device=index.device, dtype=index.dtype)
        return index.shape[0] != self._n or not torch.equal(index.flatten(), each)

    def taken_ends(self) -> list[tuple[Node | None, str]]:
        """Where in the graph each use is, and what; once, or the graph and its hooks would wait for each other."""
        ends, self._ends = self._ends, []
        return ends

    def refuse_unseen(self, leaves: Iterable[Tensor]) -> None:
        """Refuse parameters that the graph reaches though no operation was seen to take them, as through a function of the user."""
        for leaf in leaves:
            name = self._names.get(id(leaf))
            if name is not None:
                self.refused.setdefault(
                    name, "it is used where no operation can be seen, as in an autograd.Function"
                )

    def _property(
        self, func: Callable[..., Any], found: list[Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        name = getattr(getattr(func, "__self__", None), "__name__", "")
        if name in TURNED:
            self._refuse([n for a in found if (n := self._names.get(id(a)))], func, f"its .{name} is used")
            return func(*_aliases(args, self._all), **kwargs)
        return func(*args, **kwargs)

    def _watch(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any, out: Tensor, wanted: list[str]
    ) -> Tensor:
        if out.is_complex():
            self._refuse(wanted, func, "it gives complex numbers")
            return out
        if not out.is_floating_point():
            return out
        if not out.requires_grad and (wanted or self._open_all):
            out = opened(out)
        if not wanted:
            return out
        if self._moved:
            self._refuse(
                wanted, func, "samples were taken in another order before it: nothing tells whose a row is"
            )
            return out
        try:
            if func is F.embedding and self._n > 1 and len(out) == 1 and out.ndim > 2:
                out = out.expand(self._n, *out.shape[1:])  # of positions, the same for all samples
            call = Call(_detached(args), _detached(kwargs), out, self._n, self._name, self._keeper)
            with _exact(out):
                uses = uses_of(func, call, wanted)
        except NoRule as reason:
            self._refuse(wanted, func, str(reason))
            return out
        for use in uses:
            self._waiting[use.name] += 1
            self.forms.append((_title(func), use.name, self._form(out)))
            self._ends.append((out.grad_fn, " ".join(self.forms[-1])))
        out.register_hook(lambda g: self._arrived(uses, g))  # type: ignore[no-untyped-call]
        return out

    def _form(self, out: Tensor) -> str:
        return "samples" if len(out) == self._n else "samples x positions"

    def _arrived(self, uses: list[Any], g: Tensor) -> None:
        with _exact(g), torch._C.DisableTorchFunction():  # what we compute need not be seen
            for use in uses:
                if use.name not in self.refused:
                    self._keeper.add(use.name, use.term(g))
                self._waiting[use.name] -= 1
                if self._waiting[use.name] == 0 and use.name not in self.refused:
                    self._keeper.settle(use.name)

    def _name(self, argument: Any) -> str | None:
        return self._names.get(id(argument))

    def _refuse(self, names: list[str], func: Callable[..., Any], reason: str) -> None:
        for name in names:
            self.refused.setdefault(name, f"{_title(func)}: {reason}")


def _first_axis_index(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Tensor | None:
    """The whole numbers by which an operation picks along the first axis, if it does."""
    name = getattr(func, "__name__", "")
    if name == "__getitem__":
        first = args[1][0] if isinstance(args[1], tuple) and len(args[1]) else args[1]
        index = torch.as_tensor(first) if isinstance(first, list | np.ndarray) and len(first) else first
        index = index if isinstance(index, Tensor) else None
    else:
        given = kwargs.get("dim", next((a for a in args[1:] if isinstance(a, int)), None))
        index = next((a for a in (*args[1:], *kwargs.values()) if isinstance(a, Tensor)), None)
        index = index if given in (0, None) or given == -args[0].ndim else None
    whole = index is not None and index.ndim > 0 and not index.is_floating_point()
    return index if whole and index is not None and index.dtype not in (torch.bool, torch.uint8) else None


def _exact(like: Tensor) -> AbstractContextManager[Any]:
    """What we compute is not the network's: autocast would take it to half precision."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _flat(values: Iterable[Any]) -> list[Any]:
    """Every argument, those inside lists and tuples too."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, list | tuple):
            found += _flat(value)
        else:
            found.append(value)
    return found


def _aliases(value: Any, known: frozenset[int]) -> Any:
    """The arguments with every known parameter as a tensor without gradient that shares its memory."""
    if isinstance(value, Tensor):
        return value.detach() if id(value) in known else value
    if isinstance(value, dict):
        return {key: _aliases(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_aliases(item, known) for item in value) if type(value) in (list, tuple) else value
    return value


def _detached(value: Any) -> Any:
    """The arguments as rules see them: parameters as they are, to be known; everything else without graph."""
    if isinstance(value, torch.nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    return tuple(_detached(item) for item in value) if isinstance(value, tuple) else value


def _title(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))
