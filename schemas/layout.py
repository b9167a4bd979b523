"""The resolved shape of a capture: sites, row spaces, shards and units. All integers, no arrays."""

import re
from typing import Literal

from pydantic import Field

from schemas.base import Frozen

Quantity = Literal[
    "activation", "activation_gradient", "parameter_gradient", "gradient_norm", "weight", "update"
]
"""What is kept: of a tensor that the network passes on, or of a parameter."""
Side = Literal["in", "out"]
SUFFIX: dict[Quantity, str] = {
    "activation_gradient": "grad",
    "parameter_gradient": "grad",
    "gradient_norm": "norm",
    "weight": "weight",
    "update": "update",
}
"""How the name of a site says what is kept there; activations say nothing."""
OF_PARAMETERS: frozenset[Quantity] = frozenset({"parameter_gradient", "gradient_norm", "weight", "update"})


class Site(Frozen):
    """A quantity at a place in the network: a tensor of a module, or a parameter.

    As text `encoder.layer.0:out:0` is an activation, `encoder.layer.0:out:0:grad` the gradient there, `encoder.layer.0.bias:grad` the
    gradient of a parameter, and `:grad` one of all parameters together.
    """

    module: str = ""
    """Path of the module, or name of the parameter; empty for the network itself, or all parameters together."""
    side: Side = "out"
    call: int = 0
    """Which call of the module in one forward, from 0."""
    element: str = ""
    """Path into a tuple or mapping, such as `1` or `hidden.0`; empty: the first tensor."""

    quantity: Quantity = "activation"

    @property
    def is_parameter(self) -> bool:
        """Whether it is of a parameter rather than of a tensor that passes through."""
        return self.quantity in OF_PARAMETERS

    @property
    def place(self) -> str:
        """The site without its quantity."""
        if self.is_parameter:
            return self.module
        name = f"{self.module}:{self.side}:{self.call}"
        return f"{name}#{self.element}" if self.element else name

    def __str__(self) -> str:
        suffix = SUFFIX.get(self.quantity)
        return f"{self.place}:{suffix}" if suffix else self.place

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The site that `str(site)` wrote."""
        tensor = re.fullmatch(r"(.*):(in|out):(\d+)(?:#(.*?))?(:grad)?", text)
        if tensor is not None:
            module, side, call, element, gradient = tensor.groups(default="")
            quantity = "activation_gradient" if gradient else "activation"
            return cls.model_validate(
                {"module": module, "side": side, "call": int(call), "element": element, "quantity": quantity}
            )
        parameter = re.fullmatch(r"([^:]*):(grad|norm|weight|update)", text)
        if parameter is None:
            raise ValueError(
                f"{text!r} is no site; expected module:in|out:call, such as encoder.layer.0:out:0, with :grad for the gradient "
                "there, or parameter:grad"
            )
        quantity = next(q for q in OF_PARAMETERS if SUFFIX[q] == parameter[2])
        return cls(module=parameter[1], quantity=quantity)

    @property
    def key(self) -> str:
        """The name of its group on disk; no character that a path or URL would mind."""
        return self.place.replace(":", "@").replace("#", "@").replace("/", "%2F") or "@"

    @property
    def array(self) -> str:
        """Where its rows lie below a capture's folder."""
        return f"sites/{self.key}/{self.quantity}"


class SiteLayout(Frozen):
    """A site whose shape is known."""

    site: Site
    space: str
    """The row space its rows live in."""
    width: int
    """Features per row."""
    feature_axis: int
    """The axis of the batch tensor that holds features; all others but the first are rows. 1 for parameters."""
    tokens: bool = False
    """Whether the tensor has one row per token, also where pooling leaves one per sample."""
    shape: tuple[int, ...] | None = None
    """What a row is, flattened: the axes of a parameter's gradient; None: a vector."""
    features: tuple[str, ...] | None = None
    """Names of the features, where they have some."""


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


class GradientLayout(Frozen):
    """What is known of gradients before the first backward pass."""

    parameters: tuple[str, ...] = ()
    """Names, in the order of `named_parameters`; a tied one has its first name."""
    looped: dict[str, str] = Field(default_factory=dict)
    """Parameter to why its gradients take a pass for each sample: slower, as exact."""
    frozen: tuple[str, ...] = ()
    """Parameters that were meant too and have no gradient: frozen, not in the checkpoint, or no floats."""
    as_it_is: bool = False
    """Whether the network differentiates itself in its forward, so that it runs as it is."""
    weighed: bool = False
    """Whether a batch takes four passes or more, as its graph does not tell that rows stay with their samples: slower, as exact."""
    mean_targets: float = 1.0
    """Targets of a sample, on average over the capture."""
    n_classes: int = 0
    """Classes of the loss; 0 where it has none."""
    loss_digest: str = ""
    """sha256 of what the loss is made of beside its options: a function's file, the bytes of prototypes."""


class Layout(Frozen):
    """Shapes that are final before the first forward."""

    n_samples: int
    spaces: tuple[Space, ...]
    sites: tuple[SiteLayout, ...]
    gradients: GradientLayout | None = None
    """None where the capture has no loss."""

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
