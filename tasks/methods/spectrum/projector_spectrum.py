"""The spectrum of the two projectors of an image-text network: the flat band where both modalities agree, and directions of one alone.

Connect embeddings before their projection, such as `visual_projection:in:0`. Cosines of an image x and a text y go through W_image^T
W_text = U S V^T; its flat middle band is where the modalities agree, its ends belong to one of them. The band here is the singular
values within a factor of their median: `variant: reconstructed`, as the paper's rule was not read. Keeping the band means to
compare x by U_band^T x instead of W_image x. Arrays: `singular_value`; `image_basis` and `text_basis`, the band's directions on both sides
as rows; `energy`, the share of the rows' squared length in each direction of their side.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.numerics.split import spread

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "singular_value": ("order",),
    "image_basis": ("band", "image_feature"),
    "text_basis": ("band", "text_feature"),
    "energy": ("order",),
}
REFERENCE = (
    "IsoCLIP: decomposing CLIP projectors for efficient intra-modal alignment: spectrum of the inter-modal operator, isotropic and "
    "anisotropic directions; the band's rule is reconstructed from the abstract"
)
SEEDS = (148,)


class Config(Frozen):
    """Which projectors, and how flat."""

    image: str = "visual_projection.weight"
    """Projector of images."""
    text: str = "text_projection.weight"
    """Projector of texts."""
    side: Literal["image", "text"] = "image"
    """Whose embeddings the rows are."""
    factor: float = Field(default=1.5, gt=1)
    """Singular values of the band lie between their median over this and their median times this."""
    variant: Literal["reconstructed"] = "reconstructed"
    """How the band is found."""
    groups: int = Field(default=20, ge=5, le=200)
    """Groups that samples are spread into for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""


class Result(Frozen):
    """What was found."""

    n_rows: int
    n_zero: int
    """Rows without a direction before the projection or inside the band, which are left out of cosines."""
    n_groups: int
    """That hold rows."""
    rank: int
    """Singular values of the operator, numerically not zero."""
    band_first: int
    """Place of the band's largest singular value, from 0: so many directions are stronger."""
    band: int
    """Directions of the band."""
    band_null: int
    """The same for Gaussian projectors of these shapes."""
    flatness: float | None
    """Least over largest singular value of the band: 1 for an isotropic one."""
    energy: Interval | None
    """Share of the rows' squared length inside the band."""
    energy_null: float
    """The same for random directions."""
    cosine: Interval | None
    """Mean cosine of pairs of different rows after the projection, without bounds where it is not positive; None without pairs."""
    cosine_band: Interval | None
    """The same where the band is kept instead."""
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """Both projectors."""
    return (config.image, config.text)


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the projectors do not end in the same space, or the rows are not what one of them takes.
    """
    shapes = {"image": inputs.weights[config.image].shape, "text": inputs.weights[config.text].shape}
    if any(len(shape) != 2 for shape in shapes.values()) or shapes["image"][0] != shapes["text"][0]:
        raise MethodError(
            f"{config.image} and {config.text} have the shapes {tuple(shapes['image'])} and {tuple(shapes['text'])}, expected two "
            "matrices into the same space, [shared, features]"
        )
    if shapes[config.side][1] != inputs.widths["x"]:
        raise MethodError(
            f"the site has {inputs.widths['x']} features, the projector of {config.side}s takes {shapes[config.side][1]}; connect its "
            "input, such as visual_projection:in:0, or set `side`"
        )


def start(inputs: Inputs, config: Config) -> State:
    """The operator's decomposition, the rows' projector, and the band. Cost: image text min(image, text)."""
    image, text = (inputs.weights[name].double() for name in parameters(config))
    u, s, vh = torch.linalg.svd(image.T @ text, full_matrices=False)
    rank = int(
        (s > max(len(u), vh.shape[1]) * torch.finfo(inputs.weights[config.image].dtype).eps * s[0]).sum()
    )
    first, last = _band(s[:rank], config.factor)
    own = image if config.side == "image" else text
    return {
        "image": u[:, :rank].T.contiguous(),
        "text": vh[:rank].contiguous(),
        "values": s[:rank],
        "projector": own,
        "band": torch.tensor([first, last]),
    }


def partial(block: Block, carry: State, config: Config) -> State:
    """Sums of directions and of energies, by group."""
    x = block["x"].double()
    first, last = carry["band"].tolist()
    along = x @ carry[config.side].T
    projected, kept = x @ carry["projector"].T, along[:, first:last]
    lengths = [torch.linalg.vector_norm(rows, dim=1) for rows in (projected, kept)]
    good = (lengths[0] > 0) & (lengths[1] > 0)
    group = spread(block.sample, config.groups)
    none = torch.zeros(config.groups, dtype=torch.float64, device=x.device)
    state = {
        "n": none.index_add(0, group, good.double()),
        "zero": none.index_add(0, group, (~good).double()),
        "energy": _summed(along.square(), group, config.groups),
        "square": none.index_add(0, group, x.square().sum(1)),
    }
    for name, rows, length in zip(("whole", "inside"), (projected, kept), lengths, strict=True):
        unit = rows / length.where(good, 1.0)[:, None]
        state[name] = _summed(unit * good[:, None], group, config.groups)
    return state


def merge(a: State, b: State) -> State:
    """Of both sets of rows."""
    return {name: a[name] + b[name] for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Band, energies and cosines.

    Raises:
        MethodError: for less than two groups with rows.
    """
    there = (state["n"] + state["zero"]) > 0
    groups = {name: values[there] for name, values in state.items()}
    n_groups = int(there.sum())
    if n_groups < 2:
        raise MethodError(f"samples fall into {n_groups} groups, expected at least 2; capture more samples")
    first, last = carry["band"].tolist()
    total = {name: values.sum(0) for name, values in groups.items()}
    whole = _measured(total, first, last)
    without = [
        _measured({name: total[name] - values[g] for name, values in groups.items()}, first, last)
        for g in range(n_groups)
    ]
    energy, cosine, cosine_band = (
        grouped_moments.interval(value, [w[k] for w in without], config.confidence, 1.0)
        for k, value in enumerate(whole)
    )
    values = carry["values"]
    result = Result(
        n_rows=int(total["n"] + total["zero"]),
        n_zero=int(total["zero"]),
        n_groups=n_groups,
        rank=len(values),
        band_first=first,
        band=last - first,
        band_null=_null(inputs, config),
        flatness=float(values[last - 1] / values[first]) if last > first else None,
        energy=energy,
        energy_null=(last - first) / inputs.widths["x"],
        cosine=cosine,
        cosine_band=cosine_band,
        caveats=grouped_moments.caveats(n_groups, config.groups),
    )
    shares = total["energy"] / total["square"].where(total["square"] > 0, 1.0)
    found = {"singular_value": values, "energy": shares}
    found |= {f"{side}_basis": carry[side][first:last].contiguous() for side in ("image", "text")}
    return result, {name: Array(array, ARRAYS[name]) for name, array in found.items()}


def _band(values: Tensor, factor: float) -> tuple[int, int]:
    """First place and one past the last of the values, which descend, that lie within a factor of their median."""
    if not len(values):
        return 0, 0
    middle = float(values.quantile(0.5))
    inside = (values <= middle * factor) & (values >= middle / factor)
    return int((values > middle * factor).sum()), int((values > middle * factor).sum() + inside.sum())


def _null(inputs: Inputs, config: Config) -> int:
    rng = torch.Generator().manual_seed(0)
    image, text = (
        torch.randn(inputs.weights[name].shape, dtype=torch.float64, generator=rng)
        for name in parameters(config)
    )
    values = torch.linalg.svdvals(image.T @ text)[: len(image)]
    first, last = _band(values, config.factor)
    return last - first


def _summed(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """[group, feature]"""
    return rows.new_zeros(groups, rows.shape[1]).index_add(0, group, rows)


def _measured(sums: State, first: int, last: int) -> tuple[float, float, float]:
    """Share of the energy in the band, and mean cosines."""
    n, square = float(sums["n"]), float(sums["square"])
    inside = float(sums["energy"][first:last].sum()) / square if square > 0 else float("nan")
    cosines = [
        (float(sums[name].square().sum()) - n) / (n * (n - 1)) if n > 1 else float("nan")
        for name in ("whole", "inside")
    ]
    return inside, cosines[0], cosines[1]
