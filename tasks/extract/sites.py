"""Sites: what a network offers (seen in a dry run), and what the patterns of a request mean."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from schemas.errors import ModelError, SpecError, UnknownNameError, nearest
from schemas.layout import SUFFIX, Side, Site, SiteLayout
from tasks.extract.aliases import alias_table, looks_like_alias
from tasks.extract.batches import Batch
from tasks.extract.collect import forward
from tasks.extract.geometry import Geometry, Probe, Shape, describe
from tasks.extract.guard import evaluating, seeded
from tasks.extract.hooks import observe, tensors
from tasks.extract.models import Network

_PIECES = re.compile(r"(\*\*\.|\*\*|\*|\?|\[!?[^\[\]]+\]|[{},])")
_CLASS = re.compile(r"\[!?[^\[\]]+\]")


class SiteInfo(NamedTuple):
    """A tensor that a forward passed through a module.

    `site.element` is empty for the first tensor; `path` is where it lies in a tuple or mapping. `refusal`
    says why it cannot be captured; then space, width and feature_axis mean nothing.
    """

    site: Site
    path: str
    type_name: str
    """Class of the module."""
    shape: Shape
    """In the dry run's first batch."""
    space: str = ""
    width: int = 0
    feature_axis: int = 0
    tokens: bool = False
    refusal: str = ""

    @property
    def usable(self) -> bool:
        """Whether it can be captured."""
        return not self.refusal


class _Seen(NamedTuple):
    shape: Shape
    floating: bool


_Place = tuple[str, Side, int, str]
"""Module, side, call, path of the tensor."""


def list_sites(network: Network, batch: Batch, other: Batch | None = None) -> list[SiteInfo]:
    """Every tensor in and out of every call of every module, in the order of the forward.

    Args:
        network: the network.
        batch: a batch of real samples.
        other: one that differs in samples and, for texts, in padded length; None: cut from the first.

    Returns:
        Also what cannot be captured, with the reason, and modules that the forward never calls.

    Raises:
        ModelError: if the network is compiled.

    Cost: two forwards.
    """
    other = other or cut(batch)
    runs = _watch(network, batch), _watch(network, other)
    probes = _probe(batch), _probe(other)
    if probes[0].samples == probes[1].samples or (probes[0].tokens and probes[0].tokens == probes[1].tokens):
        raise ModelError(
            f"a dry run needs two batches of differing samples and lengths; found {probes[0]}, {probes[1]}"
        )
    modules = dict(network.module.named_modules())
    infos = [_info(place, modules[place[0]], runs, probes, network.untrained) for place in runs[0]]
    return _mark_first(infos) + _never_called(modules, infos)


def cut(batch: Batch) -> Batch:
    """A batch one sample and one position smaller (a lone one is doubled), for a dry run."""
    samples = _probe(batch).samples
    rows = torch.arange(samples - 1) if samples > 1 else torch.zeros(2, dtype=torch.long)
    mask = batch.mask
    if mask is None:
        return Batch({name: value[rows.to(value.device)] for name, value in batch.inputs.items()})
    width = mask.shape[1]
    columns = torch.arange(width - 1) if width > 1 else torch.zeros(2, dtype=torch.long)

    def smaller(value: Tensor) -> Tensor:
        value = value[rows.to(value.device)]
        return value[:, columns.to(value.device)] if value.ndim > 1 and value.shape[1] == width else value

    return Batch({name: smaller(value) for name, value in batch.inputs.items()}, smaller(mask))


def resolve(
    patterns: Sequence[str],
    infos: Sequence[SiteInfo],
    pooling: Literal["none", "mean", "last", "cls"] = "none",
) -> tuple[SiteLayout, ...]:
    """The sites that patterns mean, in network order, without repeats.

    A pattern is `path[:in|out[:call]][#element]` with `out:0` and the first tensor by default; `:grad` behind it means the gradient
    there, and `name:grad` (`:norm`, `:weight`, `:update`) a quantity of a parameter. In the path
    `*` stays inside one part, `**` crosses parts, `[0-9]` and `{a,b}` choose; `:*` means all calls. A pattern may also be written in
    alias names (`blocks.*.hook_resid_post`, `residual`). What a glob matches but cannot be captured is left
    out; what is named outright is refused.

    Args:
        patterns: as in a request.
        infos: what `list_sites` gave.
        pooling: other than `none` puts every site into the space `sample`.

    Raises:
        UnknownNameError: if a pattern matches nothing; the message has the nearest names.
        ModelError: if it matches only what cannot be captured; the message says why.
    """
    aliases = alias_table(
        list(dict.fromkeys(_tensor(info.site) for info in infos if not info.site.is_parameter))
    )
    chosen: set[Site] = set()
    for pattern in patterns:
        chosen.update(_match(pattern, infos, aliases))
    return tuple(_layout(info, pooling) for info in infos if info.site in chosen)


def _watch(network: Network, batch: Batch) -> dict[_Place, _Seen]:
    seen: dict[_Place, _Seen] = {}

    def visit(module: str, side: Side, call: int, value: Any) -> None:
        for path, tensor in tensors(value):
            seen[module, side, call, path] = _Seen(tuple(tensor.shape), tensor.is_floating_point())

    devices = [network.device] if network.device.type == "cuda" else []
    with (
        seeded(0, devices),
        evaluating(network.module),
        torch.no_grad(),  # and not inference mode, in which a network could not differentiate anything
        observe(network.module, None, visit),
    ):
        forward(network, batch)
    return seen


def _probe(batch: Batch) -> Probe:
    if batch.mask is not None:
        return Probe(batch.mask.shape[0], batch.mask.shape[1])
    return Probe(next(iter(batch.inputs.values())).shape[0], None)


def _info(
    place: _Place,
    module: nn.Module,
    runs: tuple[dict[_Place, _Seen], dict[_Place, _Seen]],
    probes: tuple[Probe, Probe],
    untrained: Iterable[str],
) -> SiteInfo:
    path, side, call, element = place
    first, second = runs[0][place], runs[1].get(place)
    if second is None:
        geometry = Geometry(refusal="whether it is reached depends on the data")
    elif not first.floating:
        geometry = Geometry(refusal="it holds no floating-point numbers")
    elif side == "out" and path and any(name.startswith(f"{path}.") for name in untrained):
        geometry = Geometry(refusal="its weights are not in the checkpoint")
    else:
        geometry = describe(module, (first.shape, second.shape), probes)
    site = Site(module=path, side=side, call=call, element=element)
    return SiteInfo(site, element, type(module).__name__, first.shape, *geometry)


def _mark_first(infos: Iterable[SiteInfo]) -> list[SiteInfo]:
    marked: list[SiteInfo] = []
    calls: set[tuple[str, Side, int]] = set()
    for info in infos:
        call = info.site.module, info.site.side, info.site.call
        first = call not in calls
        calls.add(call)
        marked.append(info._replace(site=info.site.model_copy(update={"element": ""})) if first else info)
    return marked


def _never_called(modules: dict[str, nn.Module], infos: Iterable[SiteInfo]) -> list[SiteInfo]:
    called = {info.site.module for info in infos}
    return [
        SiteInfo(Site(module=path), "", type(module).__name__, (), refusal="the forward never calls it")
        for path, module in modules.items()
        if path not in called
    ]


class _Pattern(NamedTuple):
    path: str
    side: str
    call: str
    element: str
    suffix: str
    """Of the quantity; empty for activations."""
    tensor: bool
    """Whether side, call or element are given, which parameters do not have."""


def _parse(pattern: str) -> _Pattern:
    ending = re.search(rf":({'|'.join(sorted(set(SUFFIX.values())))})$", pattern)
    plain = pattern[: ending.start()] if ending else pattern
    body, _, element = plain.partition("#")
    path, side, call = [*body.split(":"), "", ""][:3]
    if body.count(":") > 2 or side not in ("", "in", "out") or not re.fullmatch(r"\d*|\*", call):
        raise UnknownNameError(
            f"site {pattern!r} is not of the form path[:in|out[:call]][#element], or parameter:grad, :norm, :weight or :update; "
            "`*`, `[0-9]` and `{a,b}` choose within the path"
        )
    return _Pattern(path, side or "out", call or "0", element, ending[1] if ending else "", plain != path)


def _match(pattern: str, infos: Sequence[SiteInfo], aliases: dict[str, tuple[Site, ...]]) -> set[Site]:
    wanted = _parse(pattern)
    found = [info for info in infos if _fits(wanted, info)]
    if not found and looks_like_alias(wanted.path):
        sites = {
            site for name, group in aliases.items() if glob(wanted.path).fullmatch(name) for site in group
        }
        found = [
            info for info in infos if _suffix(info.site) == wanted.suffix and _tensor(info.site) in sites
        ]
    if not found:
        raise UnknownNameError(_unknown(pattern, wanted, infos, aliases))
    usable = {info.site for info in found if info.usable}
    if not usable:
        raise ModelError(f"site {pattern!r} cannot be captured: {found[0].site}: {found[0].refusal}")
    return usable


def _fits(wanted: _Pattern, info: SiteInfo) -> bool:
    site = info.site
    if _suffix(site) != wanted.suffix or not glob(wanted.path).fullmatch(site.module):
        return False
    if site.is_parameter:
        return not wanted.tensor
    element = info.path == wanted.element if wanted.element else not site.element
    return element and wanted.call in ("*", str(site.call)) and site.side == wanted.side


def _tensor(site: Site) -> Site:
    """The site of the activation there."""
    return site.model_copy(update={"quantity": "activation"})


def _suffix(site: Site) -> str:
    return SUFFIX.get(site.quantity, "")


def glob(pattern: str) -> re.Pattern[str]:
    """The expression of a pattern over dotted names: `*` within a dot part, `**` across; `**.` and `.**` also match nothing. `[0-9]` is
    one character of those, `[!0-9]` one of all others, and `{a,b}` either, which may be patterns.

    Raises:
        SpecError: for braces without their other half, or a range that runs backwards.
    """
    meaning = {"**.": r"(?:.*\.)?", "**": ".*", "*": r"[^.]*", "?": r"[^.]", "{": "(?:", "}": ")"}
    found, depth = "", 0
    for piece in _PIECES.split(pattern):
        depth += (piece == "{") - (piece == "}")
        if _CLASS.fullmatch(piece):
            found += r"(?!\.)" + re.sub(r"([\\&|~])", r"\\\1", piece.replace("[!", "[^"))
        elif piece == "," and depth:
            found += "|"
        else:
            found += meaning.get(piece, re.escape(piece))
    try:
        return re.compile(found)
    except re.error as error:
        raise SpecError(
            f"the glob {pattern!r} cannot be read: {error.msg}; write {{a,b}} and [0-9] with both ends"
        ) from error


def _unknown(
    pattern: str, wanted: _Pattern, infos: Sequence[SiteInfo], aliases: dict[str, tuple[Site, ...]]
) -> str:
    same = [info for info in infos if glob(wanted.path).fullmatch(info.site.module)]
    if same:
        calls = {str(info.site) for info in same}
        elements = {f"{info.site}#{info.path}" for info in same if info.path}
        return f"site {pattern!r} is not reached; these are: {nearest(pattern, calls | elements)}"
    if any(sign in wanted.path for sign in "*?[{"):
        there = nearest(wanted.path, _paths(infos))
        return f"the glob {pattern!r} matches no module of the network; it has {there}"
    names = [*_paths(infos), *aliases]
    return f"the network has no site {pattern!r}; nearest: {nearest(wanted.path, names)}"


def _paths(infos: Iterable[SiteInfo]) -> list[str]:
    return [info.site.module for info in infos if info.site.module]


def _layout(info: SiteInfo, pooling: str) -> SiteLayout:
    space = info.space if pooling == "none" else "sample"
    return SiteLayout(
        site=info.site, space=space, width=info.width, feature_axis=info.feature_axis, tokens=info.tokens
    )
