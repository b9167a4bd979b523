"""What is asked of a capture, and the resolved spec that is its identity."""

from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator

from schemas.base import Frozen, content_id
from schemas.data import Data
from schemas.errors import SpecError
from schemas.gradients import ParameterGradients
from schemas.layout import Layout
from schemas.loss import Loss
from schemas.model import FloatName, Model

SCHEMA_VERSION = 1
"""Version of what lies on disk; readers refuse a newer one."""

Codec = Literal["none", "lz4", "zstd"]
ArrayCodec = Literal["none", "lz4", "zstd", "codes"]
"""Of any array: those of captures, and `codes` for small integers whose columns differ in spread (see `tasks/store/codecs.py`)."""
PaddingSide = Literal["right", "left"]
Positions = Literal["all", "first", "last", "not-first"]
SiteQuantity = Literal["activation", "activation_gradient"]
TOKEN_ID_BYTES, SAMPLE_ID_BYTES = 4, 8
"""What an id takes where nothing but ids is kept, as in the store's own tables."""


class Rows(Frozen):
    """Which rows of a sample are kept. Padding is always out."""

    special_tokens: Literal["keep", "drop"] = "keep"
    """Whether rows of the tokenizer's special tokens are kept."""
    positions: Positions = "all"
    """Which of the remaining positions are kept."""
    pooling: Literal["none", "mean", "last", "cls"] = "none"
    """Reduce the kept rows of a sample to one: their mean (float32), the last, or the first."""
    outlier_multiple: float = Field(10.0, gt=1, allow_inf_nan=False)
    """Rows whose norm exceeds this multiple of the unit's median norm are flagged in `rows/<space>/outlier`."""


class Precision(Frozen):
    """How values are computed."""

    autocast: Literal["off", "bfloat16", "float16"] = "off"
    """Run the forward under torch.autocast."""
    threads: int = Field(1, ge=1)
    """CPU threads of one worker; results can depend on it in the last bits."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of torch's generators before each batch."""


class StoreOptions(Frozen):
    """How rows lie on disk."""

    dtype: FloatName = "float32"
    """bfloat16 is stored as float32 values rounded to bfloat16, which compress to the same bytes."""
    codec: Codec = "lz4"
    """`none`, or Blosc with `lz4`, or with `zstd`: 2 to 5 % fewer bytes than `lz4` in float32, 6 to 11 % in bfloat16, encoded in up to
    twice the time, decoded as fast. Every chunk carries a crc32c."""
    chunk_rows: int | None = Field(None, ge=1, le=1 << 24)
    """Rows per chunk (the unit of reading); None: resolved from the widths."""
    shard_rows: int | None = Field(None, ge=1, le=1 << 26)
    """Rows per shard (the unit of writing), a multiple of chunk_rows; None: resolved from the widths."""
    unit_shards: int | None = Field(None, ge=1)
    """Shards per unit of work; None: resolved from the number of shards."""


class MethodCall(Frozen):
    """A method and its options."""

    method: str
    """`family.method` below tasks.methods, or the full dotted path of a module in an installed package."""
    config: dict[str, JsonValue] = Field(default_factory=dict)
    """The options of the method's Config."""


class CaptureRequest(Frozen):
    """One capture as a user writes it."""

    model: Model
    data: Data
    sites: tuple[str, ...] = ()
    """Globs over sites, `path[:in|out[:call]]`; `*` stays inside one path part, `**` crosses parts, `[0-9]` and `{a,b}` choose;
    TransformerLens names are aliases.
    May be empty where there is a loss, and for recorded steps, where it means all."""
    quantities: tuple[SiteQuantity, ...] = Field(("activation",), min_length=1)
    """What is kept at each site: the activation, the gradient of the sample's loss there, or both, row by row of one forward."""
    loss: Loss | None = None
    """What gradients are of: one number per sample."""
    parameter_gradients: ParameterGradients | None = None
    """Gradients of parameters per sample, and in which form; None: none."""
    rows: Rows = Rows()
    precision: Precision = Precision()
    store: StoreOptions = StoreOptions()
    batch_tokens: int = Field(1024, ge=1)
    """Most padded tokens in a batch of texts; part of the identity, never sized by the machine. A CPU is as fast with 1,024 as with
    more, and needs less memory; a GPU wants some ten thousand."""
    batch_samples: int = Field(64, ge=1)
    """Most samples in a batch."""
    batch_overhead: int = Field(64, ge=0)
    """What a batch costs beside its tokens, in tokens: small makes many batches with little padding (CPU), thousands make
    few large ones (GPU)."""
    padding_side: PaddingSide = "right"
    """Where batches of texts are padded. `left` also gives the network `position_ids`; values differ in the last bits only."""
    max_length: int | None = Field(None, ge=1)
    """Longest sample in tokens; None: what the network takes."""
    too_long: Literal["refuse", "truncate"] = "refuse"
    """What a longer sample does; truncated ones are counted."""
    keep: Literal["rows", "states"] = "rows"
    """`states` stores only what `fuse` computed, no rows."""
    fuse: tuple[MethodCall, ...] = ()
    """One-pass methods that run while rows are in memory."""

    @property
    def code(self) -> tuple[str, ...]:
        """What runs that is not of this project: functions by import path, and folders whose Python files are trusted."""
        model, source, loss = self.model, self.data.source, self.loss
        named = (
            getattr(model, "factory", None),
            getattr(source, "factory", None),
            getattr(loss, "function", None),
        )
        trusted = getattr(model, "trust_remote_code", False)
        return (*filter(None, named), *([f"the Python files of {model.name}"] if trusted else ()))  # type: ignore[union-attr]

    @model_validator(mode="after")
    def _check_gradients(self) -> "CaptureRequest":
        wanted = [
            name
            for name, asked in (
                ("parameter_gradients", self.parameter_gradients),
                ("quantities: activation_gradient", self.wants_activation_gradients),
            )
            if asked
        ]
        if wanted and self.loss is None:
            raise SpecError(
                f"a capture has {wanted[0]} and no loss; say what gradients are of, such as loss: {{kind: lm}}"
            )
        recorded = self.model.kind == "recorded"
        if recorded != (self.data.source.kind in ("recording", "checkpoints")):
            raise SpecError(
                f"model.kind is {self.model.kind!r} and data.source.kind {self.data.source.kind!r}: steps of a training (recording, "
                "checkpoints) and model: {kind: recorded} go together"
            )
        if recorded and (self.loss is not None or self.quantities != ("activation",)):
            raise SpecError(
                "a capture of recorded steps has no loss and no quantities of its own: they were chosen when it was recorded"
            )
        if self.loss is None and not self.sites and not recorded:
            raise SpecError(
                "a capture has no sites and no loss, so that nothing would be kept; name sites, such as ['**']"
            )
        return self

    @property
    def wants_activation_gradients(self) -> bool:
        """Whether gradients are kept at sites."""
        return "activation_gradient" in self.quantities and bool(self.sites)

    @property
    def wants_gradients(self) -> bool:
        """Whether a unit runs the network backward."""
        return self.wants_activation_gradients or self.parameter_gradients is not None


class CaptureSpec(Frozen):
    """Everything that changes a stored value or its layout. Its content id names the capture."""

    schema_version: int = SCHEMA_VERSION
    request: CaptureRequest
    """As asked, without `fuse` unless only states are kept."""
    weights: str
    """sha256 over the network's weights and configuration."""
    data: str
    """Fingerprint of the samples, in order, with keys and labels."""
    tokenizer: str | None
    """sha256 of the tokenizer's files; None where there is none."""
    partition: str | None = None
    """The file, where the data are partitioned."""
    layout: Layout
    """Resolved sites, row spaces, arrays and units."""

    @property
    def id(self) -> str:
        """The name of the capture on disk: the same for the same question, wherever its network and data lie.

        Names, paths and patterns are left out for what they stand for: hashes, and the resolved layout. So is where the
        network is computed.
        """
        content = self.model_dump(mode="json")
        request = content["request"]
        for part, keys in (
            (request["model"], ("name", "revision", "device_map", "tokenizer")),
            (request["data"]["source"], ("path", "paths")),
        ):
            for key in keys:
                part.pop(key, None)
        del request["sites"]
        _drop_defaults(content)
        request["store"] = {key: request["store"][key] for key in ("dtype", "codec")}
        return content_id(content)


def ids_bytes(spec: CaptureSpec, n_tokens: int) -> int | None:
    """What must be kept to compute a capture again, beside its network: token ids of texts, and each sample's number in the source.

    Samples that are no texts (images, vectors, tensors) stay where they are: their numbers are all that is counted.

    Args:
        spec: of the capture.
        n_tokens: tokens of all samples, as the network takes them.

    Returns:
        Bytes, uncompressed; None for recorded steps, which no network gives again.
    """
    if spec.request.model.kind == "recorded":
        return None
    tokens = 0 if spec.tokenizer is None else n_tokens
    return TOKEN_ID_BYTES * tokens + SAMPLE_ID_BYTES * spec.layout.n_samples


def _drop_defaults(content: dict[str, Any]) -> None:
    """Take out what came later and says nothing, so that older captures keep their names."""
    request = content["request"]
    if request["parameter_gradients"] is not None:
        del request["parameter_gradients"]["parameters"]
    if request["quantities"] == ["activation"]:
        del request["quantities"]
    if request["loss"] is not None:
        request["loss"].pop("prototypes", None)
    for key in ("loss", "parameter_gradients"):
        if request[key] is None:
            del request[key]
    for layout in content["layout"]["sites"]:
        for key in ("shape", "features"):
            if layout[key] is None:
                del layout[key]
        if layout["site"]["quantity"] == "activation":
            del layout["site"]["quantity"]
    gradients = content["layout"]["gradients"]
    if gradients is None:
        del content["layout"]["gradients"]
    else:
        gradients["looped"] = sorted(gradients["looped"])
        del (
            gradients["weighed"],
            gradients["as_it_is"],
            gradients["frozen"],
        )  # of the cost, and of what is not there
