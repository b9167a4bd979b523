"""Sees every use of a parameter in a forward, as the operation that takes it, and gives each its share of the backward.

No layer is asked what it is: a weight that is used by a function, by two layers, or by one layer twice is seen like any other.
Parameters go into operations without their gradient, so that none is formed; where nothing before an operation needs a gradient, its
output opens the graph.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from tasks.extract.gradients.call import Call, NoRule, Use
from tasks.extract.gradients.expressions import Expression, Expressions, Whole, in_transform, writes
from tasks.extract.gradients.graph import DifferentiatesItself, Graph, leaf_of, opened, refuse_kept
from tasks.extract.gradients.keepers import Keeper
from tasks.extract.gradients.rules import uses_of

READ_ONLY = frozenset({"detach", "requires_grad_"})
HOOKS = frozenset({"register_hook", "register_post_accumulate_grad_hook", "retain_grad"})
DIFFERENTIATES = (torch.autograd.grad, Tensor.backward)
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
        follows: bool = True,
        size: int = 0,
    ) -> None:
        """Prepare.

        Args:
            names: `id` of each parameter whose gradient is wanted to its name.
            looped: `id` of those that take part as they are.
            frozen: `id` of every other parameter.
            n: samples of the batch.
            keeper: takes the terms.
            open_all: whether the graph begins at the first use of any parameter, not only of a wanted one.
            follows: whether expressions are followed; the graph is that of the network alone if not.
            size: entries of all parameters: about what a pass costs.
        """
        super().__init__()
        self._known = Expressions(names, frozen)
        self._n = n
        self.keeper = keeper
        self._open_all = open_all
        self._follows = follows
        self._size = size
        self.cut = False
        """Whether the graph is not the network's: something of samples was written into an expression."""
        self._waiting: Counter[str] = Counter()
        self._rows: dict[int, Tensor] = {}
        """`id` of expressions of which each sample has rows to what takes their place."""
        self._looped = frozenset(looped)
        self.hidden: set[int] = set()
        """`id` of looped parameters that were used without a graph, as a checkpoint does that runs again."""
        self.differentiates = False
        """Whether the network's forward differentiates something: it must run as it is, or parameters would lack their gradients."""
        self._data: dict[int, tuple[Tensor, Tensor]] = {}
        """`id` of parameters whose `.data` the network has, through which it may write unseen, and what they held."""
        self._is_over = False
        self.in_backward = False
        self.runs_again = False
        """Whether parts may run again in the backward, with uses of their own."""
        self.refused: dict[str, str] = {}
        """Parameter to why a use of it has no rule."""
        self.forms: list[tuple[str, str, str]] = []
        """Operation, parameter, and how its output's first axis counts samples, in the order of the forward."""
        self.ends: list[Node | None] = []
        """Operations that used a parameter; until the end."""

    def __exit__(self, *error: Any) -> None:
        self._is_over = True  # the network may keep what has hooks
        self.ends, self._rows = [], {}  # or the graph and its hooks would wait for each other
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DIFFERENTIATES and not in_transform():
            self._differentiated(func)
        given = _flat((*args, *kwargs.values()))
        if self._looped and not torch.is_grad_enabled():
            self.hidden.update(self._looped.intersection(map(id, given)))
        found = [a for a in given if id(a) in self._known]
        if not found:
            return func(*args, **kwargs)
        if self._known.is_written(found):
            self._cut()
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", *READ_ONLY):
            return self._property(func, found, args, kwargs)
        into = args[0] if args and writes(name) and torch.is_grad_enabled() else None
        if into is found[0] and into.is_leaf and into.requires_grad:
            return func(*args, **kwargs)  # which raises: nobody may write into a parameter
        if name in HOOKS:
            self._refuse(self._known.names_of(found), func, "its gradient is looked at or changed")
            return func(*args, **kwargs)
        made = self._known.among(found)
        versions = [(a, a._version) for a in given if made and isinstance(a, Tensor) and not a.is_inference()]
        out = func(*_aliases(args, self._known), **_aliases(kwargs, self._known))
        wanted = self._known.names_of(found)
        if any(a._version != version for a, version in versions):
            self._refuse(wanted, func, "it writes into a tensor")
            return out
        if not torch.is_grad_enabled() or not (
            out is None or any(isinstance(o, Tensor) for o in _flat([out]))
        ):
            return out
        if in_transform():
            self._refuse(
                wanted, func, "it is used inside a transform of torch.func, as vmap, or a forward derivative"
            )
            return out
        if out is None:
            self._refuse(wanted, func, "it is written into a tensor")
            return out
        if not isinstance(out, Tensor):
            self._refuse(
                wanted,
                func,
                "one operation that gives several tensors, as attention and recurrent layers of torch do",
            )
            return self._begin(out, given)
        return self._watch(func, args, kwargs, out, wanted)

    @property
    def is_written_through_data(self) -> bool:
        """Whether a parameter whose `.data` was taken holds other values since."""
        return any(not torch.equal(_sums(a), before) for a, before in self._data.values())

    def _cut(self) -> None:
        self.cut = True
        self._refuse_all("the network writes into what it made of parameters, and goes on from there")

    def _refuse_all(self, reason: str) -> None:
        for name in self._known.names:
            self.refused.setdefault(name, reason)

    def _differentiated(self, func: Callable[..., Any]) -> None:
        """What a network asks gradients for.

        Raises:
            DifferentiatesItself: in a forward.
        """
        if not self.in_backward:
            self._noticed()
        elif func is torch.autograd.grad:  # adds to no parameter's gradient, though uses are passed
            self._refuse_all("the network differentiates something in its backward")

    def _noticed(self, *_: Any) -> None:
        if not self.in_backward and not self._is_over:
            self.differentiates = True
            raise DifferentiatesItself

    def refuse_unseen(self, graph: Graph) -> None:
        """Refuse parameters that the graph reaches though no operation was seen to take them, as through a function of the user."""
        refuse_kept(graph, self._known.by)
        for leaf in graph.leaves:
            name = self._known.name_of_leaf(leaf)
            if name is not None:
                unseen = "it is used where no operation can be seen, as in an autograd.Function"
                self.refused.setdefault(name, self._known.why.get(name, unseen))

    def _property(
        self, func: Callable[..., Any], found: list[Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        name = getattr(getattr(func, "__self__", None), "__name__", "")
        if name in TURNED:
            why = f"{_title(func)}: its .{name} is used"
            followed = self._follows and torch.is_grad_enabled()
            made = self._known.follow(func, args, kwargs, _flat(args), why) if followed else None
            if made is not None:
                return made
            self._refuse(self._known.names_of(found), func, f"its .{name} is used")
            return self._begin(func(*_aliases(args, self._known), **kwargs), found)
        if name == "data":
            self._data.setdefault(id(args[0]), (args[0], _sums(args[0])))
        if name == "data" and func.__name__ == "__set__":
            self._refuse_all("the network puts other values in the place of a parameter's")
        return func(*args, **kwargs)

    def _begin(self, out: Any, given: list[Any]) -> Any:
        """What an operation gave of which no rule will know, at the beginning of a graph where graphs begin anywhere."""
        if not self._open_all or not torch.is_grad_enabled():
            return out
        by, places = self._by(given), {_place(a) for a in given if isinstance(a, Tensor)}

        def begun(t: Tensor) -> Tensor:
            if t.requires_grad or not t.is_floating_point():
                return t
            is_view = _place(t) in places  # into which nobody may write, so that it needs no copy
            return leaf_of(t, by) if is_view else opened(t, by)

        return tree_map_only(Tensor, begun, out)

    def _by(self, given: Iterable[Any]) -> object:
        """The pass, where what begins at these must not be kept: parameters that are wanted would miss its gradient."""
        return self._known.by if self._known.names_of(given) else None

    def _watch(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any, out: Tensor, wanted: list[str]
    ) -> Tensor:
        if out.is_complex() or out.is_nested:
            self._refuse(
                wanted, func, "it gives complex numbers" if out.is_complex() else "it gives nested tensors"
            )
            return out
        if not out.is_floating_point():
            return out
        if not out.requires_grad and (wanted or self._open_all):
            out = opened(out, self._known.by if wanted else None)
        if self._open_all and out.grad_fn is not None:
            out.grad_fn.register_prehook(self._noticed)
        if not wanted:
            return out
        try:
            uses, left = self._uses(func, args, kwargs, out)
        except NoRule as reason:
            if not self._follows:
                self._refuse(wanted, func, str(reason))
                return out
            if (
                func is F.scaled_dot_product_attention
                and (attended := self._attended(args, kwargs)) is not None
            ):
                return attended
            given = _flat((*args, *kwargs.values()))
            made = self._known.follow(func, args, kwargs, given, f"{_title(func)}: {reason}")
            return self._with_samples(func, args, kwargs, out, wanted, str(reason)) if made is None else made
        if left:
            return self._with_samples(
                func, args, kwargs, out, left, "a rule takes what is made of it for samples"
            )
        self._hook(_made_inside(out, (*args, *kwargs.values())), out, uses, _title(func))
        return out

    def _hook(self, hooked: Tensor, out: Tensor, uses: list[Use], title: str) -> None:
        """Await the gradient of an output, `hooked` or a view of it."""
        for use in uses:
            self._waiting[use.name] += 1
            self.forms.append((title, use.name, "samples" if len(out) == self._n else "samples x positions"))
        node: Any = hooked.grad_fn
        shape, port = out.shape, hooked.output_nr
        self.ends.append(node)
        # Of the node and not of the tensor: after hooks by which a network changes its gradient.
        node.register_prehook(
            lambda g: self._arrived(uses, None if g[port] is None else g[port].reshape(shape))
        )

    def _with_samples(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
        out: Tensor,
        wanted: list[str],
        why: str,
    ) -> Tensor:
        """An operation of samples and of expressions: these take part as samples do where their first axis may count them."""
        given = _flat((*args, *kwargs.values()))
        made = {
            key: one
            for key, one in self._known.among(given).items()
            if one.value.ndim and len(one.value) == self._n
        }
        if any(one.is_dear(self._n, self._size) for one in made.values()):
            why = "what is made of parameters there has too many rows of samples to bring each back by itself"
            made = {}
        if not made:
            self._refuse(wanted, func, why)
            return out
        known = {id(one.value): self._opened(one) for one in made.values()}
        args, kwargs = tree_map_only(Tensor, lambda t: known.get(id(t), t), (args, kwargs))
        found: Tensor = self.__torch_function__(func, (), args, kwargs)
        return found

    def _opened(self, made: Expression) -> Tensor:
        """An expression of which each sample has rows of its own, at the beginning of a graph."""
        key = id(made.value)
        if key not in self._rows:
            self._rows[key] = opened(made.value, self._known.by)
            self._hook(self._rows[key], self._rows[key], made.by_rows(self._n), "rows")
        return self._rows[key]

    def _attended(self, args: tuple[Any, ...], kwargs: Any) -> Tensor | None:
        """Attention whose mask alone is made of parameters, as of relative positions: with a copy of it for each sample."""
        given = (
            dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
            | kwargs
        )
        mask, query = given.get("attn_mask"), given["query"]
        others = [value for key, value in given.items() if key != "attn_mask" and id(value) in self._known]
        if id(mask) not in self._known or others or len(query) % self._n:
            return None
        for _ in range(query.ndim - mask.ndim):
            mask = self.__torch_function__(torch.unsqueeze, (), (mask, 0))
        own = (
            self.__torch_function__(Tensor.expand, (), (mask, self._n, *mask.shape[1:]))
            if len(mask) == 1
            else mask
        )
        if id(own) in self._known:
            return None
        rows = own.repeat_interleave(len(query) // self._n, 0)
        return F.scaled_dot_product_attention(**{**given, "attn_mask": rows})

    def _uses(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any, out: Tensor
    ) -> tuple[list[Use], list[str]]:
        """What an operation does with parameters, and those of expressions that its rule takes for samples."""
        given = _flat((*args, *kwargs.values()))
        made, known = self._known.among(given), self._known
        keeper = Whole(self.keeper) if made else self.keeper
        call = Call(_detached(args, known), _detached(kwargs, known), out, self._n, known.key, keeper)
        with _exact(out):
            found = uses_of(func, call, [key for a in given if (key := known.key(a))])
        uses = [
            u
            for use in found
            for u in (made[use.name].brought_back(use, self._n) if use.name in made else [use])
        ]
        covered = {use.name for use in found}
        return uses, [name for key in made.keys() - covered for name in made[key].leaves]

    def _arrived(self, uses: list[Any], g: Tensor | None) -> None:
        self._noticed()
        if g is None or self._is_over:
            return
        with _exact(g), torch._C.DisableTorchFunction():  # what we compute need not be seen
            for use in uses:
                if use.name not in self.refused:
                    self.keeper.add(use.name, use.term(g))
                self._waiting[use.name] -= 1
                if self._waiting[use.name] == 0 and use.name not in self.refused and not self.runs_again:
                    self.keeper.settle(use.name)

    def _refuse(self, names: list[str], func: Callable[..., Any], reason: str) -> None:
        for name in names:
            self.refused.setdefault(name, f"{_title(func)}: {reason}")


def _sums(tensor: Tensor) -> Tensor:
    """Of its values and their squares: who writes changes one of them."""
    values = tensor.detach().double()
    return torch.stack([values.sum(), values.square().sum()])


def _place(tensor: Tensor) -> int:
    """Where its memory begins."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _made_inside(out: Tensor, args: tuple[Any, ...]) -> Tensor:
    """The tensor of which an operation returns a view that it made itself: what the network writes into the view does not cut it off."""
    base = out._base
    inside = base is not None and base.requires_grad and base.numel() == out.numel()
    return base if base is not None and inside and not any(base is a for a in _flat(args)) else out


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


def _aliases(value: Any, known: Container[int]) -> Any:
    """The arguments with every known parameter as a tensor without gradient that shares its memory."""
    if isinstance(value, Tensor):
        return value.detach() if id(value) in known else value
    if isinstance(value, dict):
        return {key: _aliases(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_aliases(item, known) for item in value) if type(value) in (list, tuple) else value
    return value


def _detached(value: Any, known: Container[int]) -> Any:
    """The arguments as rules see them: parameters as they are, to be known; everything else without graph."""
    if isinstance(value, Tensor):
        return value if id(value) in known else value.detach()
    if isinstance(value, dict):
        return {key: _detached(item, known) for key, item in value.items()}
    return tuple(_detached(item, known) for item in value) if isinstance(value, tuple) else value


def _title(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))
