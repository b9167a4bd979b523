"""Widths of a narrower residual stream for a whole pre-norm transformer, and what each loses at every norm: slicing.

Connect `compression.residual_moments` of all norms that read the stream, in the order of the network: both of each block, and the one
before the head. A network in the leading directions has dense layers with fewer rows and columns, and matrices between the bases of one
norm and the next; `tasks.compressed.sliced.slice_network` makes it. The first and the last norm have one width, since embeddings and head
belong to both. Without a dimension lost the network stays exactly as it is; LayerNorm gives one dimension for nothing.

Not every network can be sliced. Those with norms after the sum (BERT, MiniLM) cannot: their norms scale the stream itself. A head that
shares weights with the embedding gets its own, and matrices between bases cost up to 2 width^2 numbers a block: at three quarters of its
width GPT-2 of 124 million numbers, of which the embedding has 39, holds 5 % more of them, though it computes less.

`lost` is what the stream loses at each norm on the rows that were read, not what the network says worse, and losses of earlier norms change
what reaches later ones: judge the network itself.

Arrays: `loss` (site, kept), share of the energy lost at width 0, 1, ...; `directions` (site, order, feature); `widths` (share, site), dealt
so that sites lose least together.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, ArtifactPort, Inputs, Member
from tasks.numerics import slicing

VERSION = 1
KIND = "combine"
READS = {"sites": ArtifactPort("compression.residual_moments", several=True, least=3, one_width=True)}
ARRAYS = {
    "loss": ("site", "kept"),
    "directions": ("site", "order", "feature"),
    "widths": ("share", "site"),
}
REFERENCE = (
    "Ashkboos, Croci, Gennari do Nascimento, Hoefler, Hensman, SliceGPT: compress large language models by deleting rows and columns, "
    "ICLR (2024), section 3; directions are those of the network as it is, where the published code takes them block by block from the "
    "network sliced so far. Widths dealt out by Fox, Operations Research 14 (1966) 209"
)
SEEDS = (204,)


class Config(Frozen):
    """Which widths."""

    kept: tuple[float, ...] = Field(default=(0.9, 0.75, 0.6), min_length=1)
    """Shares of the stream's width that are kept, between 0 and 1."""
    multiple: int = Field(default=8, ge=1)
    """Widths are rounded down to a multiple, which matrix products are fast with; the full width is always one."""


class AtShare(Frozen):
    """What a width loses. Losses are shares of the energy of rows, on the rows that were read."""

    kept: float
    """Share of the width that was asked for."""
    width: int
    """At all sites."""
    lost: float
    """Mean over sites, with one width."""
    lost_random: float
    """What random directions of that width lose on average."""
    lost_most: float
    worst: str
    """The site that loses most."""
    widths: tuple[int, ...]
    """Of each site, with the same mean width at most, dealt so that sites lose least together."""
    lost_dealt: float
    """Mean over sites, with these."""


class Result(Frozen):
    """A narrower network."""

    kind: Literal["sliced"]
    """What stands for the network."""
    sites: tuple[str, ...]
    """In the order of the network."""
    width: int
    centred: bool
    """Norms take out the mean over features."""
    n_rows: int
    """Of the site with fewest."""
    lossless: int
    """The least width at which no site loses more than 1e-12 of its energy."""
    at: tuple[AtShare, ...]
    """For each of the shares that were asked for, falling."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before solving.

    Raises:
        MethodError: for shares outside of 0 to 1, a multiple above the width, sites of different widths or norms, or a site that comes
            twice.
    """
    members = inputs.series["sites"]
    if not all(0 < share <= 1 for share in config.kept):
        raise MethodError(f"found kept {config.kept}, expected shares above 0, of 1 at most")
    for name in ("width", "centred"):
        found = {member.result[name] for member in members}
        if len(found) > 1:
            raise MethodError(
                f"sites have different `{name}`, {sorted(found)}; connect the norms of one network alone, with one set of options"
            )
    width, sites = int(members[0].result["width"]), [member.site for member in members]
    if config.multiple > width:
        raise MethodError(f"widths of {width} features have no multiple of {config.multiple}; lower it")
    twice = sorted({site for site in sites if sites.count(site) > 1})
    if twice:
        raise MethodError(f"the site {twice[0]} comes twice; connect one artifact of each norm")


def solve(inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Losses at all widths, and widths for the asked shares.

    Raises:
        MethodError: see `check`.

    Cost: a sort of sites times width losses, for each share.
    """
    check(inputs, config)
    members = inputs.series["sites"]
    loss = torch.stack([member.arrays["loss"].double() for member in members])
    at = tuple(_at(share, loss, members, config) for share in sorted(set(config.kept), reverse=True))
    result = Result(
        kind="sliced",
        sites=tuple(member.site for member in members),
        width=loss.shape[1] - 1,
        centred=bool(members[0].result["centred"]),
        n_rows=min(int(member.result["n_rows"]) for member in members),
        lossless=int((loss > 1e-12).sum(1).max()),
        at=at,
        caveats=_caveats(members, at),
    )
    arrays: dict[str, Tensor] = {
        "loss": loss,
        "directions": torch.stack([member.arrays["directions"] for member in members]),
        "widths": torch.tensor([one.widths for one in at], dtype=torch.int64, device=loss.device),
    }
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _at(share: float, loss: Tensor, members: tuple[Member, ...], config: Config) -> AtShare:
    width = loss.shape[1] - 1
    kept = slicing.rounded(share, width, config.multiple)
    widths = slicing.dealt(loss, kept, config.multiple)
    worst, most = slicing.worst(loss, [kept] * len(loss))
    return AtShare(
        kept=share,
        width=kept,
        lost=float(loss[:, kept].mean()),
        lost_random=1 - kept / width,
        lost_most=most,
        worst=members[worst].site,
        widths=tuple(widths),
        lost_dealt=float(torch.stack([one[k] for one, k in zip(loss, widths, strict=True)]).mean()),
    )


def _caveats(members: tuple[Member, ...], at: tuple[AtShare, ...]) -> tuple[str, ...]:
    notes = [
        "losses are of the stream at each norm, of rows of the network as it is: judge the sliced network itself"
    ]
    rows, width = min(int(m.result["n_rows"]) for m in members), int(members[0].result["width"])
    if rows < 10 * width:
        notes.append(f"{rows} rows for {width} features: directions hold more of these rows than of others")
    if at[-1].width + 1 > width:
        notes.append(
            "no share is small enough to make the stream narrower: ask for less, or a smaller `multiple`"
        )
    return tuple(notes)
