"""The resolved shape of a capture: sites, row spaces, shards and units. All integers, no arrays."""

import re
from typing import Literal

from schemas.base import Frozen

Quantity = Literal["activation"]
Side = Literal["in", "out"]


class Site(Frozen):
    """A place in the network."""

    module: str
    """Module path, empty for the network itself."""
    side: Side = "out"
    call: int = 0
    """Which call of the module in one forward, from 0."""
    element: str = ""
    """Path into a tuple or mapping, such as `1` or `hidden.0`; empty: the first tensor."""

    def __str__(self) -> str:
        name = f"{self.module}:{self.side}:{self.call}"
        return f"{name}#{self.element}" if self.element else name

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The site that `str(site)` wrote."""
        found = re.fullmatch(r"(.*):(in|out):(\d+)(?:#(.*))?", text)
        if found is None:
            raise ValueError(
                f"{text!r} is no site; expected module:in|out:call, such as encoder.layer.0:out:0"
            )
        module, side, call, element = found.groups(default="")
        return cls.model_validate({"module": module, "side": side, "call": int(call), "element": element})

    @property
    def key(self) -> str:
        """The name of its group on disk; no character that a path or URL would mind."""
        return str(self).replace(":", "@").replace("#", "@").replace("/", "%2F") or "@"


class SiteLayout(Frozen):
    """A site whose shape is known."""

    site: Site
    space: str
    """The row space its rows live in."""
    width: int
    """Features per row."""
    feature_axis: int
    """The axis of the batch tensor that holds features; all others but the first are rows."""
    tokens: bool = False
    """Whether the tensor has one row per token, also where pooling leaves one per sample."""


class Space(Frozen):
    """A row space: arrays of one space share rows, shards and units."""

    name: str
    """`sample`, `tokens`, or the grid of the site, such as `grid7x7`."""
    n_rows: int
    per_sample: int | None
    """Rows of every sample; None where they are the kept tokens of each."""
    chunk_rows: int
    shard_rows: int
    unit_shards: int

    @property
    def n_shards(self) -> int:
        """Number of shards, the last of which may be short."""
        return -(-self.n_rows // self.shard_rows)

    @property
    def n_units(self) -> int:
        """Number of units."""
        return -(-self.n_shards // self.unit_shards)

    def unit_rows(self, unit: int) -> tuple[int, int]:
        """First row and one past the last of a unit."""
        size = self.shard_rows * self.unit_shards
        return unit * size, min((unit + 1) * size, self.n_rows)

    def shard_bounds(self, shard: int) -> tuple[int, int]:
        """First row and one past the last of a shard."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.n_rows)

    def unit_shard_range(self, unit: int) -> range:
        """The shards of a unit."""
        return range(unit * self.unit_shards, min((unit + 1) * self.unit_shards, self.n_shards))


class Layout(Frozen):
    """Shapes that are final before the first forward."""

    n_samples: int
    spaces: tuple[Space, ...]
    sites: tuple[SiteLayout, ...]

    def space(self, name: str) -> Space:
        """The space of that name."""
        return next(space for space in self.spaces if space.name == name)

    def sites_of(self, space: str) -> tuple[SiteLayout, ...]:
        """The sites whose rows live in a space, in order."""
        return tuple(site for site in self.sites if site.space == space)


class UnitRef(Frozen):
    """Names one unit of a capture."""

    space: str
    index: int

    @property
    def name(self) -> str:
        """As receipts are called."""
        return f"{self.space}-{self.index:06d}"
