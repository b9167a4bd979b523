"""What a network makes of parameters before samples come in, as the `1 + weight` of a norm layer or `weight.T`, and the way back to them.

An expression is one tensor for all samples, so that it counts as a parameter where it is used; each sample's gradient of it is then brought
back through the expression's own little graph.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, saved_tensors_hooks
from torch.utils._pytree import tree_map_only

from tasks.extract.gradients.call import Holder, Use
from tasks.extract.gradients.graph import leaf_of
from tasks.extract.gradients.plan import Maps
from tasks.extract.gradients.projections import Side as SideName
from tasks.extract.gradients.terms import Formed, Outer, Side, Term, Values, form

KEY = "="
"""What keys of expressions begin with; no parameter's name does."""
IN_PLACE = frozenset(
    f"__i{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
)
MOST_ROW_BY_ROW = 1 << 23
"""Numbers of an expression times samples that are brought back one by one at any rate."""
DEAR = 16
"""Beyond, an expression may have so many times the entries of all parameters, or passes of the network cost less (measured on experts)."""
SMALL = 1 << 16
"""Entries of parameters and expressions whose gradients are brought back for all samples at once."""


def in_transform() -> bool:
    """Whether a transform of torch.func or a forward derivative is under way, in which tensors are not what they seem."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def writes(name: str) -> bool:
    """Whether an operation of this name writes into its first argument."""
    return name == "__setitem__" or name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))


class Expression(NamedTuple):
    """A tensor that depends on parameters and constants alone."""

    leaves: dict[str, Tensor]
    """Parameters' values by name, where the graph of the expression begins."""
    value: Tensor
    """With this graph: what nobody sees being used brings its gradient to the leaves."""
    version: int
    """Of its memory when it was made."""

    @property
    def plain(self) -> bool:
        """Whether it is a parameter itself."""
        return self._lies_as(lambda leaf: (leaf.shape, leaf.stride()))

    @property
    def turned(self) -> bool:
        """Whether it is a matrix transposed, and nothing more."""
        return self.value.ndim == 2 and self._lies_as(lambda leaf: (leaf.shape[::-1], leaf.stride()[::-1]))

    def _lies_as(self, places: Callable[[Tensor], tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
        leaf = next(iter(self.leaves.values()))
        same = len(self.leaves) == 1 and self.value.data_ptr() == leaf.data_ptr()
        return same and (self.value.shape, self.value.stride()) == places(leaf)

    def brought_back(self, use: Use, n: int) -> list[Use]:
        """A use of it by n samples as uses of its parameters."""
        if self.plain:
            return [Use(name, use.term) for name in self.leaves]
        if self.turned:
            return [Use(name, partial(_turned, use.term)) for name in self.leaves]
        return [
            Use(name, partial(_pulled_back, use.term, self.value, leaf, n))
            for name, leaf in self.leaves.items()
        ]

    def is_dear(self, n: int, size: int) -> bool:
        """Whether bringing back rows one by one, each through all of it, costs more than passes of a network of this size."""
        entries = self.value.numel()
        return n * entries > MOST_ROW_BY_ROW and entries > DEAR * size and _repeated(self.value) is None

    def by_rows(self, n: int) -> list[Use]:
        """A use of an expression whose rows are those of n samples: each sample's gradient is that of its rows."""
        return [Use(name, partial(_row_by_row, self.value, leaf, n)) for name, leaf in self.leaves.items()]


class Whole:
    """Keeps sides of expressions until the backward, whose projections are those of their parameters; others as their keeper does."""

    def __init__(self, keeper: Holder) -> None:
        self._keeper = keeper

    def hold(self, name: str, side: Side, axis: SideName) -> Side:
        """The side itself, of an expression."""
        return side if name.startswith(KEY) else self._keeper.hold(name, side, axis)

    def maps(self, name: str) -> Maps | None:
        """None for an expression: terms are wanted whole."""
        return None if name.startswith(KEY) else self._keeper.maps(name)


class Expressions:
    """What one forward made of the parameters that are wanted."""

    def __init__(self, names: Mapping[int, str], frozen: Iterable[int]) -> None:
        """Prepare.

        Args:
            names: `id` of each parameter that is wanted to its name.
            frozen: `id` of parameters that count as constants.
        """
        self._names = dict(names)
        self._constants = frozenset(frozen)
        self._begun: dict[int, Expression] = {}
        self._made: dict[int, Expression] = {}
        self._leaves: dict[int, str] = {}
        self.by = object()
        """The pass, as leaves know it."""
        self.why: dict[str, str] = {}
        """Parameter to why a use of it had no rule, so that an expression begins there."""

    @property
    def names(self) -> Iterable[str]:
        """Of parameters that are wanted."""
        return self._names.values()

    def __contains__(self, key: object) -> bool:
        """Whether a tensor of this `id` is a parameter or an expression: it takes part without its gradient."""
        return key in self._names or key in self._constants or key in self._made

    def among(self, given: Iterable[Any]) -> dict[str, Expression]:
        """Those among arguments, by what `key` calls them."""
        return {f"{KEY}{id(a)}": self._made[id(a)] for a in given if id(a) in self._made}

    def is_written(self, given: Iterable[Any]) -> bool:
        """Whether somebody wrote into an expression among arguments after it was made, so that more than parameters is in it."""
        return any(one.value._version != one.version for one in self.among(given).values())

    def key(self, argument: Any) -> str | None:
        """The name of a parameter that is not frozen here and now, the number of an expression; None for anything else."""
        name = self._name(argument)
        return name or (f"{KEY}{id(argument)}" if id(argument) in self._made else None)

    def names_of(self, given: Iterable[Any]) -> list[str]:
        """Parameters that are wanted among arguments, and those that expressions there are made of."""
        names: list[str] = []
        for a in given:
            made, name = self._made.get(id(a)), self._name(a)
            names += [name] if name else made.leaves if made else []
        return names

    def name_of_leaf(self, leaf: Tensor) -> str | None:
        """The parameter where an expression begins, or that is a leaf itself."""
        return self._names.get(id(leaf)) or self._leaves.get(id(leaf))

    def follow(self, func: Any, args: Any, kwargs: Any, given: Iterable[Any], why: str) -> Tensor | None:
        """What an operation makes of parameters, expressions and constants.

        Args:
            func: the operation.
            args: of it.
            kwargs: of it.
            given: every single argument.
            why: no rule covers it.

        Returns:
            The result, with a graph, to be known from now on, or without one if it depends on no number of theirs; None if a tensor with a
            graph of samples is among the arguments (those without one count as constants), if it writes into one, or gives anything but one
            tensor of real numbers.

        Cost: the operation, once more.
        """
        name = getattr(func, "__name__", "")
        if writes(name) or kwargs.get("out") is not None or kwargs.get("inplace") or in_transform():
            return None
        tensors = [a for a in given if isinstance(a, Tensor)]
        known = {id(a): found for a in tensors if (found := self._known(a)) is not None}
        if any((a.requires_grad and id(a) not in self) or a.layout != torch.strided for a in tensors):
            return None
        args, kwargs = tree_map_only(
            Tensor, lambda t: known[id(t)].value if id(t) in known else t.detach(), (args, kwargs)
        )
        # Or a checkpoint would run again to bring a gradient back; detached, or what saves its own output would hold itself.
        with saved_tensors_hooks(Tensor.detach, lambda saved: saved):
            made = func(*args, **kwargs)
        if not isinstance(made, Tensor) or made.is_complex():
            return None
        if not made.requires_grad:  # as zeros_like: of its shape alone
            return made
        self.why |= {name: why for a in tensors if (name := self._names.get(id(a))) and name not in self.why}
        leaves = {key: leaf for expression in known.values() for key, leaf in expression.leaves.items()}
        self._made[id(made)] = Expression(leaves, made, made._version)
        return made

    def _known(self, tensor: Tensor) -> Expression | None:
        name = self._name(tensor)
        if name is not None and id(tensor) not in self._begun:
            leaf = leaf_of(tensor, self.by)
            self._begun[id(tensor)] = Expression({name: leaf}, leaf, leaf._version)
            self._leaves[id(leaf)] = name
        begun = None if name is None else self._begun[id(tensor)]
        return begun or self._made.get(id(tensor))

    def _name(self, a: Any) -> str | None:
        name = self._names.get(id(a))
        return name if name is not None and a.requires_grad else None


def _turned(term: Callable[[Tensor], Term], g: Tensor) -> Term:
    found = term(g)
    if isinstance(found, Outer):
        return Outer(found.columns, found.rows)
    return Formed(lambda k: form(found, slice(k, k + 1))[0].mT)


def _pulled_back(term: Callable[[Tensor], Term], value: Tensor, leaf: Tensor, n: int, g: Tensor) -> Term:
    found = term(g)
    if max(value.numel(), leaf.numel()) > SMALL:
        return Formed(
            lambda k: _through(value, leaf, form(found, slice(k, k + 1)), 1)[0].flatten(
                1 if leaf.ndim > 1 else 0
            )
        )
    return Values(_through(value, leaf, form(found, slice(0, n)), n))


def _row_by_row(value: Tensor, leaf: Tensor, n: int, g: Tensor) -> Term:
    one = _repeated(value)

    def gradient(k: int) -> Tensor:
        if one is not None:  # what is the same for all samples, before it was laid along them
            edge, shape = one
            found = _through(edge, leaf, g[k : k + 1].sum_to_size(shape)[None], 1)
        else:
            rows = torch.zeros_like(g)
            rows[k] = g[k]
            found = _through(value, leaf, rows[None], 1)
        return found[0].flatten(1 if leaf.ndim > 1 else 0)

    return Formed(gradient)


def _repeated(value: Tensor) -> tuple[GradientEdge, tuple[int, ...]] | None:
    """Of what an expression is an expansion along its first axis, and its shape; None where it is none."""
    node: Any = value.grad_fn
    if node is None or node.name() != "ExpandBackward0":
        return None
    shape = tuple(node._saved_self_sym_sizes)
    along = len(shape) == value.ndim and shape[0] != 1
    return None if along else (GradientEdge(*node.next_functions[0]), shape)


def _through(value: Tensor | GradientEdge, leaf: Tensor, gradients: Tensor, n: int) -> Tensor:
    """[sample, ...]: gradients of a parameter from those of an expression, or of what it comes from."""
    given = gradients
    if isinstance(value, Tensor):
        given = gradients.reshape(n, *value.shape).to(value.dtype)
    found: Tensor | None = torch.autograd.grad(
        value,
        leaf,
        given if n > 1 else given[0],
        retain_graph=True,
        is_grads_batched=n > 1,
        allow_unused=True,
    )[0]
    if found is None:
        return leaf.new_zeros(n, *leaf.shape)
    found = found.to_dense() if found.is_sparse else found
    return found.contiguous() if n > 1 else found[None]
