"""Which network is captured."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StringConstraints, model_serializer

from schemas.base import Frozen

ImportPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""`module.path:name` of a callable."""

Head = Literal["base", "causal-lm", "masked-lm", "sequence-classification", "image-classification"]

FloatName = Literal["float32", "float16", "bfloat16"]


class TransformersModel(Frozen):
    """A network that the transformers library loads."""

    kind: Literal["transformers"] = "transformers"
    name: str
    """A local folder, a hub name, or `package:<module>[/<folder>]` for a folder inside an installed package."""
    revision: str | None = None
    """The hub revision; a local folder is identified by its bytes."""
    head: Head = "base"
    """Which auto class loads it: the bare network or one with a head."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """The attention implementation; it changes the last bits of every value."""
    dtype: FloatName = "float32"
    """The dtype of weights and computation."""
    device_map: Literal["none", "auto"] = "none"
    """`auto` spreads a network that is larger than one GPU over all GPUs of one worker (needs accelerate); planning loads it into
    main memory."""
    trust_remote_code: bool = False
    """Run the Python files that lie in the network's folder, which may do anything; without it they are refused. Their bytes are part
    of the identity."""

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Networks without code of their own keep the id that they had before there was such an option."""
        found = plain(self)
        if not self.trust_remote_code:
            found.pop("trust_remote_code", None)
        return found


class FactoryModel(Frozen):
    """Any `torch.nn.Module`, made by a function that takes the arguments and returns it."""

    kind: Literal["factory"] = "factory"
    factory: ImportPath
    """`module.path:function`, importable where the workers run."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    tokenizer: str | None = None
    """Folder with the files of a tokenizer that transformers loads, for data that are texts; such as one that `subspan export` wrote."""
    dtype: FloatName = "float32"
    """The dtype that weights and floating inputs are cast to."""


class RecordedModel(Frozen):
    """No network: the samples are steps of a training, of which data of the kind `recording` or `checkpoints` hold weights, updates or
    gradients. Sites are then parameters, `name:weight`, `name:update` and `name:grad`."""

    kind: Literal["recorded"] = "recorded"
    dtype: FloatName = "float32"
    """What values are read as before they are stored."""


Model = TransformersModel | FactoryModel | RecordedModel
