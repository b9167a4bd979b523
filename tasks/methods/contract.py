"""What a method file holds, and how it is found. No registry: a method exists because its file does.

Every method module has

    VERSION: int         raised when the meaning of a result changes
    KIND: Kind           how the engine runs it
    READS: dict          port name -> RowsPort, BatchesPort, ArtifactPort or GraphPort
    ARRAYS: dict         name of an output array -> names of its axes
    REFERENCE: str       the source: paper and equation
    SEEDS: tuple         rows of the project's list of methods that it runs
    class Config(Frozen), class Result(Frozen)

and, by KIND, these pure functions (`inputs` is `Inputs`, `block` is `Block`, a state is a dict of tensors):

    reduce      start(inputs, config) -> carry; partial(block, carry, config) -> state; merge(a, b) -> state;
                finish(state, carry, inputs, config) -> (Result, arrays);
                optional update(state, carry, inputs, config) -> carry or None when done (rounds; finish gets the last state);
                optional state_config(config) -> the part of the options that the state depends on;
                optional reduces(carry, config) -> Reduces: whose state it is, where that depends on the carry;
                optional one_pass(config) -> bool: whether a method with `update` may do without it
    map         start; outputs(inputs, config) -> {name: RowOutput}; apply(block, carry, config) -> {name: tensor};
                optional partial(block, outputs, carry, config) -> state and merge; finish
    pairs       start; outputs; begin(block, carry, config) -> row state; pair(state, block, other, carry, config) -> row state;
                optional again(state, block, carry, config) -> (row state, bool): after a look at all other rows, and whether to look again;
                optional at_once(inputs, config) -> int: rows of a block that are taken through all looks together;
                optional prepared(block, carry, config) -> block: what every block is made into before begin, pair and again see it;
                optional conclude(state, block, carry, config) -> {name: tensor}: the outputs, where they are not among the row state's
                tensors; optional partial and merge as for map; finish
    sequential  start(inputs, config) -> state; step(block, state, config) -> state; passes(config) -> int;
                batch_rows(config) -> int; optional begin_pass(state, number, config) -> state; finish(state, {}, inputs, config)
    whole       max_rows(config) -> int; solve(block, inputs, config) -> (Result, arrays); the rows are
                those of `config.samples` whole samples, or else `config.sample_rows` rows, drawn with `config.seed` (None or
                absent: all)
    combine     solve(inputs, config) -> (Result, arrays); no port takes rows, so that a stage runs once, over artifacts alone

Any method may also define check(inputs, config), which raises MethodError before any row is read (where it takes rows alone: before any
is captured), and parameters(config) -> names
of parameters of the network that its first rows port is of, which come as `inputs.weights`; `{module}` in a name stands for the
module path of the site (at a site of a parameter, of the module that it belongs to), `{parent}` and `{grandparent}` for what holds that
module and what holds its holder; and NEEDS: dict, names of modules to packages
beyond the project's own that it imports when it runs; where they are not installed the plan refuses it. A reduce method whose
Config has `weight_label` gets the numbers of that label of its samples as `block.weight`. One whose port has `tokens` and
whose `config.label` is `token` or `next_token` gets these as a label of its rows, unless the samples have a label of that name.
Two reduce methods whose carry, partial and merge are the same, with equal state_config, share one state.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from schemas.capture import ArrayCodec
from schemas.errors import MethodError, SpecError, UnknownNameError, nearest

Kind = Literal["reduce", "map", "pairs", "sequential", "whole", "combine"]
Gives = Literal["tokens", "classes", "embeddings"]
"""What a network says of its samples, by the loss: logits of tokens, logits of classes, or an embedding."""
State = dict[str, Tensor]
PACKAGE = "tasks.methods"
ROW_LABELS = ("token", "next_token")
"""Labels that rows have of their own: their token's id, and that of the row one position further in their sample; -1 for none."""


class Reduces(NamedTuple):
    """Functions that make a state, and what they read of the options."""

    partial: Callable[..., State]
    merge: Callable[[State, State], State]
    options: dict[str, object]


@dataclass(frozen=True)
class RowsPort:
    """A port that takes the rows of a site, of one or several captures."""

    several: bool = True
    """Whether several captures may be read as one."""
    labels: bool = False
    """Whether blocks carry the samples' labels."""
    values: bool = True
    """Whether rows are read. False, at a single port: `block[port]` is [row, 0], for methods that read row-aligned arrays only."""
    tokens: bool = False
    """Whether `config.label` may name one of `ROW_LABELS`, which blocks then carry too. Their codes are token ids and have no names in
    `Inputs.categories`: a vocabulary is long, and few of it occur."""


@dataclass(frozen=True)
class ArtifactPort:
    """A port that takes the arrays and result of another method."""

    method: str
    """`family.method` that must have made the artifact."""
    others: tuple[str, ...] = ()
    """Methods that may have made it as well: with the arrays, and the fields of the result, that the port's method reads."""
    several: bool = False
    """Whether the port takes a series of artifacts, of several sites or captures: `Inputs.series`."""
    least: int = 1
    """Fewest artifacts of a series."""
    one_width: bool = False
    """Whether they must be made of rows as wide as each other's, and as those of the first port of rows."""
    aligned: bool = False
    """Whether its row-aligned arrays come block by block with the rows, as `Block.aligned`, rather than whole in `Inputs.artifacts`.
    It must be made over the captures and site of the first port of rows, in their order. Of `others` that give rows nothing all arrays come
    in `Inputs.artifacts`. With `several`, in map methods: `<port>.0`, `<port>.1` and so on in `Block.aligned` and `Inputs.made`, of all
    stages at that site."""
    own_rows: bool = False
    """Whether it must be made over these rows though its arrays come whole."""
    one_place: bool = False
    """Whether it must be made of rows of the network, and at the site, of the first port of rows."""
    of_rows: bool = False
    """Whether samples and labels of the rows that it was made over come with it, all at once, and how many samples it has in common with
    others: `Made.over`. Not for a port that takes several."""

    @property
    def makers(self) -> tuple[str, ...]:
        """All methods that may have made it."""
        return (self.method, *self.others)


@dataclass(frozen=True)
class BatchesPort(RowsPort):
    """A port that takes the network of one capture with a loss, over that capture's samples: `Block.network`."""

    several: bool = False


@dataclass(frozen=True)
class GraphPort:
    """A port that takes a file of edges between the samples of the first port of rows, which has one row of each: `Inputs.graphs`."""


@runtime_checkable
class NetworkView(Protocol):
    """A network with one batch. Graphs may be gone through twice.

    `at` are tensors in the place of parameters, by name, with their graphs; the network itself is left as it is.
    """

    n: int
    """Samples."""
    rows: Tensor
    """int64 [sample]: which rows of the block they are."""
    mask: Tensor | None
    """bool [sample, token], False where a text is padded; None where samples have no tokens."""
    gives: Gives
    tells: bool
    """Whether losses say how good outputs are, which products with random vectors do not."""
    targets: Tensor
    """int64 [sample]: what the loss of each compares with; 1 but for texts."""

    def losses(self, at: Mapping[str, Tensor] | None = None) -> Tensor:
        """[sample]: the loss of each, from a new forward with its graph."""

    def output(self, at: Mapping[str, Tensor] | None = None, module: nn.Module | None = None) -> Tensor:
        """The tensor that the loss takes, from a new forward with its graph.

        Args:
            at: see the class.
            module: a changed copy of the network, which runs in its place: `NetworkBlock.copy`.

        Raises:
            MethodError: if the loss is a function of something else.
        """

    def rows_of(self, output: Tensor) -> Tensor:
        """[row, number]: from such a tensor, what the network says: logits of each real token, logits of each sample, or an embedding of
        each sample, as the loss takes it."""

    def loss_of(self, output: Tensor) -> Tensor:
        """[sample]: the loss of each from such a tensor."""

    def summed(self, losses: Tensor) -> Tensor:
        """[sample]: losses as sums over targets, however the loss reduces them."""

    def right(self, output: Tensor) -> Tensor:
        """float64 [sample]: share of its targets for which such a tensor is largest: 0 or 1 for a class.

        Raises:
            MethodError: if the loss has no classes.
        """

    def ends(self) -> tuple[Tensor, Tensor]:
        """[sample, ...] each: the input that can vary (floating input, or what the embedding of words gives), and the output, with its
        graph.

        Raises:
            MethodError: if there is no such input, or more than one.
        """


@runtime_checkable
class NetworkBlock(Protocol):
    """A network with some samples."""

    parameters: Mapping[str, Tensor]
    """Those that can be trained, in the order of the network."""

    def copy(self) -> nn.Module:
        """The network's modules anew, in evaluation mode, with the same tensors: modules in it may be replaced, tensors not changed."""

    def batches(self) -> Iterator[NetworkView]:
        """Its samples in batches of the capture's size; the network may be used inside the loop's body only."""


Port = RowsPort | ArtifactPort | GraphPort


@dataclass(frozen=True)
class Block:
    """Some rows, aligned over ports. `block["x"]` is the [row, feature] tensor of port x, in the store's dtype."""

    rows: Mapping[str, Tensor]
    sample: Tensor
    """int64 [row]: index of the sample, counted like `index`."""
    position: Tensor
    """int64 [row]: position in the sample."""
    index: Tensor
    """int64 [row]: index of the row over all captures laid end to end; in `reduce`, whose states are kept per capture,
    in its own capture."""
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    """Label name -> [row] codes (int64) or numbers (float64)."""
    weight: Tensor | None = None
    """float64 [row], or None for ones."""
    aligned: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Aligned artifact port -> name of an array -> [row] or [row, ...]. Indices of rows in them count over all captures laid end to end."""
    network: NetworkBlock | None = None
    """For a `BatchesPort`: the network with the samples of the rows, which have no values then."""

    def __getitem__(self, port: str) -> Tensor:
        return self.rows[port]

    def __len__(self) -> int:
        return int(self.sample.shape[0])


def along_rows(arrays: Mapping[str, Tensor], captures: Sequence[str], name: str) -> Tensor:
    """[row, ...]: a row-aligned array of an artifact over all captures laid end to end, rows of failed samples included."""
    if name in arrays:
        return arrays[name]
    return torch.cat([arrays[f"{capture}/{name}"] for capture in captures])


@dataclass(frozen=True)
class Member:
    """An artifact of a series."""

    site: str
    captures: tuple[str, ...]
    """Ids of the captures that it was made from."""
    arrays: Mapping[str, Tensor]
    """Row-aligned ones of several captures are named `<capture>/<name>`: `along_rows`."""
    result: Mapping[str, Any]
    method: str = ""
    """`family.method` that made it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its options."""

    def along_rows(self, name: str) -> Tensor:
        """[row, ...]: a row-aligned array over all captures laid end to end, rows of failed samples included."""
        return along_rows(self.arrays, self.captures, name)

    @property
    def label(self) -> str:
        """For messages and results."""
        return f"{' + '.join(capture[:8] for capture in self.captures)} {self.site}"


@dataclass(frozen=True)
class MadeOver:
    """The rows that an artifact was made over."""

    block: Block
    """Without values, in order; `index` is the place in `along_rows`. Rows of failed samples are left out."""
    categories: Mapping[str, tuple[str, ...]]
    """Label name -> names of its codes."""
    shared: int
    """Of its samples, how many the first port of rows reads too, as far as sources of data are named alike."""
    reference: int
    """Of its samples, how many the artifacts that its stage reads were made from, which are not of the rows themselves."""


@dataclass(frozen=True)
class Made:
    """How an artifact was made."""

    method: str
    """`family.method`"""
    version: int
    config: Mapping[str, Any]
    site: str
    """Of its first port of rows, by name; empty without."""
    captures: tuple[str, ...]
    """Their ids, in order."""
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Artifact port of its stage -> ids of what it read there. In the place of an artifact whose arrays came with the rows stands what made
    it: an id of its method and options, and under `<port>.<its port>` what that read."""
    over: MadeOver | None = None
    """For a port with `of_rows`."""


@dataclass(frozen=True)
class Edges:
    """A graph of samples without direction, on the CPU: no loops, each pair once."""

    ends: Tensor
    """int64 [edge, 2]: samples as `Block.sample` counts them, over all captures laid end to end, those that failed too; the smaller
    first, ascending."""
    weights: Tensor
    """float64 [edge], positive; 1 where the file has none."""
    ids: Literal["key", "row"] = "key"
    """What the file names samples by: their keys, or rows of the data."""
    loops: int = 0
    """Lines from a sample to itself, which were left out."""
    repeated: int = 0
    """Lines that came once more, whose weights were added; both directions of a pair are one edge, of the larger weight."""
    weightless: int = 0
    """Pairs of weight 0, which were left out."""


@dataclass(frozen=True)
class Inputs:
    """What is known before any block is read."""

    widths: Mapping[str, int]
    """Rows port -> features."""
    n_rows: int
    """Rows that the blocks will hold in all, failed samples included."""
    n_samples: int
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Label name -> names of its codes."""
    artifacts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Artifact port -> its arrays; of an aligned port, those that are not aligned with rows."""
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Artifact port -> its result."""
    made: Mapping[str, Made] = field(default_factory=dict)
    """Artifact port that takes one artifact, or several that are aligned, -> how it was made; of methods with a port that has `of_rows` or
    takes several that are aligned."""
    captures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Rows port -> ids of the captures that are read, in their order."""
    sites: Mapping[str, str] = field(default_factory=dict)
    """Rows port -> the site that is read, by name."""
    series: Mapping[str, tuple[Member, ...]] = field(default_factory=dict)
    """Artifact port that takes several -> its members: stages as the run file has them, and sites in their order in each."""
    seen: Mapping[str, int] = field(default_factory=dict)
    """For a `BatchesPort`: artifact port that takes several -> samples of the network's capture from which these were made too, as far as
    sources of data are named alike."""
    strangers: Mapping[str, int] = field(default_factory=dict)
    """For a `BatchesPort`: artifact port that takes several -> how many of these were made from a network of other weights; what a factory
    makes in another dtype is not compared."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Rows port -> what a row is, flattened (row-major), such as the two axes of a weight; absent: a vector."""
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """For a `BatchesPort`: parameters that can be trained, with their shapes, in the order of the network."""
    graphs: Mapping[str, Edges] = field(default_factory=dict)
    """Graph port -> its edges."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """What `parameters(config)` names, by the name as written, in the network's dtype; linear maps are [out, in], also those of
    GPT-2, which stores them the other way."""


@dataclass(frozen=True)
class RowOutput:
    """A row-aligned output of a map or pairs method."""

    dtype: str
    """A NumPy dtype name."""
    width: int | None = None
    """Length of the second axis; None for one value per row."""
    dim: str = "component"
    """Name of the second axis."""
    codec: ArrayCodec | None = None
    """`codes` for small integers whose columns differ in spread, which take fewer bytes so; None for what suits floats and indices."""


@dataclass(frozen=True)
class Array:
    """An output array with named axes."""

    values: Tensor
    dims: tuple[str, ...]


Arrays = dict[str, Array]


@cache
def list_methods() -> tuple[str, ...]:
    """Names `family.method` of every method file of the project, in order."""
    package = importlib.import_module(PACKAGE)
    found = pkgutil.walk_packages(package.__path__, prefix=f"{PACKAGE}.")
    names = [(info.name.removeprefix(f"{PACKAGE}."), info.ispkg) for info in found]
    return tuple(name for name, is_package in names if not is_package and name.count(".") == 1)


def module_path(method: str, allowed: tuple[str, ...] = ()) -> str:
    """The import path of a method's module.

    Args:
        method: `family.method`, or a full dotted path into one of the allowed packages.
        allowed: top-level packages outside the project that the worker's configuration trusts.

    Raises:
        UnknownNameError: if no such method exists; the message lists the nearest names.
        SpecError: if the path lies in a package that is not allowed.
    """
    if method in list_methods():
        return f"{PACKAGE}.{method}"
    top = method.partition(".")[0]
    if top in allowed and importlib.util.find_spec(method) is not None:
        return method
    if method.count(".") > 1 and importlib.util.find_spec(top) is not None:
        raise SpecError(
            f"method {method!r} lies in package {top!r}, which this worker does not allow; "
            f"add it to SUBSPAN_METHOD_PACKAGES in the worker's environment"
        )
    raise UnknownNameError(f"there is no method {method!r}; nearest: {nearest(method, list_methods())}")


def require_packages(module: ModuleType, method: str) -> None:
    """Refuse a method whose packages are not installed. Imports none of them.

    Raises:
        MethodError: with what to install.
    """
    needed = getattr(module, "NEEDS", {})
    missing = [package for name, package in needed.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise MethodError(
            f"{method} needs {' and '.join(missing)}, found no such package: pip install {' '.join(missing)}"
        )


def load_method(method: str, allowed: tuple[str, ...] = ()) -> ModuleType:
    """The module of a method, imported."""
    return importlib.import_module(module_path(method, allowed))
