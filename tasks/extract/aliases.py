"""TransformerLens names for the places every transformer has, and short names for all blocks of one kind.

A family says how its blocks and their parts are called, below any prefix that a head adds. Blocks are
counted in the order in which they run, so that ALBERT's one layer, called six times, has the names blocks.0
to blocks.5.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from schemas.layout import Side, Site


class Family(NamedTuple):
    """Module names of one architecture. Parts of a block are relative to it, the rest to the network."""

    blocks: str
    """Regular expression of a block's path."""
    attention: str
    """What the attention adds to the residual stream."""
    mlp: str
    """What the MLP adds to it."""
    embed: str
    """The token (or patch) embedding."""
    final_norm: str | None = None


FAMILIES = {
    "bert": Family(
        r"encoder\.layer\.\d+", "attention.output.dense", "output.dense", "embeddings.word_embeddings"
    ),
    "gpt2": Family(r"h\.\d+", "attn", "mlp", "wte", "ln_f"),
    "llama": Family(r"layers\.\d+", "self_attn", "mlp", "embed_tokens", "norm"),
    "vit": Family(r"layers\.\d+", "attention", "mlp", "embeddings.patch_embeddings", "layernorm"),
    "albert": Family(
        r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+",
        "attention.dense", "ffn_output", "embeddings.word_embeddings",
    ),
}  # fmt: skip

SHORT = {"residual": "hook_resid_post", "attention": "hook_attn_out", "mlp": "hook_mlp_out"}
"""Short name to the TransformerLens name that it means in all blocks."""


def alias_table(sites: Sequence[Site]) -> dict[str, tuple[Site, ...]]:
    """The alias names that hold for a network, each with its site (short names: one per block).

    Args:
        sites: every call of every module, in the order of the forward.
    """
    called = {(site.module, site.side, site.call) for site in sites}
    for family in FAMILIES.values():
        for prefix in _prefixes(family, sites):
            blocks = _blocks(family, prefix, sites)
            if blocks and _has_parts(family, blocks[0], called):
                return _names(family, prefix, blocks, called)
    return {}


def looks_like_alias(pattern: str) -> bool:
    """Whether a pattern is written in alias names."""
    return pattern in SHORT or "hook_" in pattern


def _prefixes(family: Family, sites: Iterable[Site]) -> list[str]:
    """What stands before the block paths, shortest first: empty without a head, such as `bert.` with one."""
    found = (re.fullmatch(rf"(?P<prefix>(?:.*\.)?){family.blocks}", site.module) for site in sites)
    return sorted({match["prefix"] for match in found if match}, key=lambda prefix: (len(prefix), prefix))


def _blocks(family: Family, prefix: str, sites: Iterable[Site]) -> list[Site]:
    pattern = re.compile(re.escape(prefix) + family.blocks)
    found = (site for site in sites if site.side == "out" and pattern.fullmatch(site.module))
    return list(dict.fromkeys(Site(module=site.module, call=site.call) for site in found))


def _has_parts(family: Family, block: Site, called: set[tuple[str, Side, int]]) -> bool:
    return all(
        (f"{block.module}.{part}", "out", block.call) in called for part in (family.attention, family.mlp)
    )


def _names(
    family: Family, prefix: str, blocks: Sequence[Site], called: set[tuple[str, Side, int]]
) -> dict[str, tuple[Site, ...]]:
    table: dict[str, tuple[Site, ...]] = {"hook_embed": (Site(module=prefix + family.embed),)}
    for index, block in enumerate(blocks):
        name = f"blocks.{index}"
        table[f"{name}.hook_resid_pre"] = (block.model_copy(update={"side": "in"}),)
        table[f"{name}.hook_attn_out"] = (_part(block, family.attention),)
        table[f"{name}.hook_mlp_out"] = (_part(block, family.mlp),)
        table[f"{name}.hook_resid_post"] = (block,)
    if family.final_norm is not None:
        table["ln_final.hook_normalized"] = (Site(module=prefix + family.final_norm),)
    for short, long in SHORT.items():
        table[short] = tuple(table[f"blocks.{index}.{long}"][0] for index in range(len(blocks)))
    return {name: found for name, found in table.items() if _all_called(found, called)}


def _part(block: Site, name: str) -> Site:
    return Site(module=f"{block.module}.{name}", call=block.call)


def _all_called(sites: Iterable[Site], called: set[tuple[str, Side, int]]) -> bool:
    return all((site.module, site.side, site.call) in called for site in sites)
