"""Where a site stands in a network, read from its name: which kind of place, and how deep."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from schemas.layout import SUFFIX, Site
from schemas.stage import site_of

RESIDUAL, ATTENTION, MLP = "residual stream", "attention", "MLP"
KINDS = (RESIDUAL, ATTENTION, MLP)
"""Kinds that get a name of their own; every other site is of the kind of its path pattern."""

IN_ORDER = "sites in order"
"""The kind of all sites of a network whose names do not repeat."""
_FIRST, _LAST = -1, 1_000_000
_NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])")
_EMBEDDING = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe)$")
_FINAL = re.compile(r"(^|\.)(ln_f|ln_final|final_layer_?norm|layernorm|norm)$")
_BLOCK = re.compile(r"(^|\.)(h|layers?|blocks?|albert_layers|resblocks)\.\*(\.output)?( \(input\))?$")
_ATTENTION = re.compile(r"(^|\.)(\w*attn\w*|attention(\.output(\.dense)?)?|self_attention)$")
_MLP = re.compile(r"(^|\.)(mlp|ffn|feed_forward|\*\.output\.dense)$")


class Place(NamedTuple):
    """Where a site stands."""

    kind: str
    """`residual stream`, `attention`, `MLP`, the site's name with numbers as `*`, or `sites in order`."""
    order: tuple[int, ...]
    """Sorts the places of a kind by depth."""
    label: str
    """Short name of the depth: `emb`, a layer number, `end`; empty where the name has no number; of sites in order their name."""


def places(sites: Sequence[str]) -> dict[str, Place]:
    """The place of each site, in the order given.

    The depth is what varies among the sites of one pattern. Where two patterns claim one kind (a block and
    a part of it), the shortest keeps the name and the others are called by their pattern.

    Args:
        sites: `str(Site)` of each.
    """
    parsed = {text: site_of(text) for text in sites}
    patterns = {text: pattern_of(site) for text, site in parsed.items()}
    kinds = _kinds(list(dict.fromkeys(patterns.values())))
    orders = _orders(parsed, patterns)
    return {text: _place(kinds[patterns[text]], orders[text], site) for text, site in parsed.items()}


def along_network(sites: Sequence[str], at: dict[str, Place]) -> dict[str, Place]:
    """The places, or one line of sites in the order given where few of them are layers of one kind."""
    members: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for place in at.values():
        members[place.kind].add(place.order)
    if len(sites) < 3 or 2 * sum(len(m) for m in members.values() if len(m) > 1) >= len(sites):
        return at
    return {text: Place(IN_ORDER, (n,), _name(site_of(text))) for n, text in enumerate(sites)}


def _name(site: Site) -> str:
    """With side, element and call only where they say something."""
    call = f":{site.call}" if site.call else ""
    return (site.module or "network") + _beside(site) + call


def _beside(site: Site) -> str:
    side = "" if site.side == "out" else " (input)"
    element = f"#{site.element}" if site.element else ""
    quantity = f" ({SUFFIX[site.quantity]})" if site.quantity in SUFFIX else ""
    return side + element + quantity


def pattern_of(site: Site) -> str:
    """The site's name with its numbers as `*`; side and element only where they say something."""
    return (_NUMBER.sub("*", site.module) or "network") + _beside(site)


def _kinds(patterns: list[str]) -> dict[str, str]:
    """Pattern to kind; a kind takes one pattern with numbers, one before the layers and one after them."""
    kinds: dict[str, str] = {}
    taken: set[tuple[str, str]] = set()
    for pattern in sorted(patterns, key=lambda p: (p.count("."), p.endswith("(input)"))):
        place = (_kind(pattern), _part(pattern))
        kinds[pattern] = pattern if place in taken else place[0]
        taken.add(place)
    return kinds


def _part(pattern: str) -> str:
    if "*" in pattern:
        return "layers"
    return "emb" if _EMBEDDING.search(pattern) else "end"


def _kind(pattern: str) -> str:
    if pattern.endswith(tuple(f" ({suffix})" for suffix in SUFFIX.values())):
        return pattern
    name = pattern.removesuffix(" (input)")
    if _BLOCK.search(name) or ("*" not in name and (_EMBEDDING.search(name) or _FINAL.search(name))):
        return RESIDUAL
    if _ATTENTION.search(name):
        return ATTENTION
    return MLP if _MLP.search(name) else pattern


def _orders(parsed: dict[str, Site], patterns: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Site to the numbers of its name (and call) that vary among the sites of its pattern."""
    numbers = {t: (*map(int, _NUMBER.findall(site.module)), site.call) for t, site in parsed.items()}
    members: dict[str, list[str]] = defaultdict(list)
    for text, pattern in patterns.items():
        members[pattern].append(text)
    orders = {}
    for texts in members.values():
        columns = list(zip(*(numbers[text] for text in texts), strict=True))
        varying = [i for i, column in enumerate(columns) if len(set(column)) > 1] or [
            max(len(columns) - 2, 0)
        ]
        for text in texts:
            orders[text] = (
                tuple(numbers[text][i] for i in varying) if len(columns) > 1 or len(texts) > 1 else ()
            )
    return orders


def _place(kind: str, order: tuple[int, ...], site: Site) -> Place:
    if kind == RESIDUAL and not _NUMBER.search(site.module):
        first = bool(_EMBEDDING.search(site.module))
        return Place(kind, (_FIRST if first else _LAST, site.call), "emb" if first else "end")
    outside = kind in (ATTENTION, MLP) and not _NUMBER.search(site.module)  # beside those of the layers
    return Place(kind, (_LAST, *order) if outside else order, ".".join(map(str, order)))
