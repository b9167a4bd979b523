"""The longest sample that a network takes, and what becomes of longer ones."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from schemas.capture import CaptureRequest
from schemas.errors import DataError
from schemas.model import Model, TransformersModel
from tasks.extract.weights import TOKENIZER, model_folder, own_code, tokenizer_folder

SANE_LENGTH = 10_000_000
"""Tokenizers say `no limit` by a number far above this."""

OFFSET_POSITIONS = frozenset(
    {
        "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "markuplm", "mpnet", "roberta",
        "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip
"""Model types that number positions from the padding id plus one, and so lose that many of their table."""


def load_tokenizer(model: Model) -> Any:
    """The tokenizer of a network, once per process.

    Raises:
        DataError: if its folder has none that loads.
    """
    folder = tokenizer_folder(model)
    if folder is None or not any(path for pattern in TOKENIZER for path in folder.glob(pattern)):
        raise DataError(
            f"the data are texts, but {getattr(model, 'name', 'the network')} has no tokenizer (none of {', '.join(TOKENIZER)} in "
            f"{folder}); use a language model, or data that are tensors or images"
        )
    return _tokenizer(str(folder), _trusted(model))


@lru_cache(maxsize=2)
def _tokenizer(folder: str, trusted: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    except Exception as error:
        raise DataError(
            f"the tokenizer in {folder} cannot be loaded: {type(error).__name__}: {error}{own_code(Path(folder), trusted)}"
        ) from error


def _trusted(model: Model) -> bool:
    """Whether code in the folder may run: told in so many words, as transformers would ask at the terminal else."""
    return isinstance(model, TransformersModel) and model.trust_remote_code


def special_ids(tokenizer: Any) -> np.ndarray:
    """int64: ids of special tokens. The id of unknown words is none, unless it has another role as well."""
    by_role = dict(tokenizer.special_tokens_map)
    roles = {role: token for role, token in by_role.items() if isinstance(token, str)}
    unknown = roles.pop("unk_token", None)
    tokens = {str(token) for token in tokenizer.all_special_tokens}
    if unknown not in roles.values():
        tokens -= {str(unknown)}
    return np.array(sorted(tokenizer.convert_tokens_to_ids(list(tokens))), dtype=np.int64)


class Limit:
    """Most tokens of a sample, and why."""

    def __init__(self, tokens: int | None, first_position: int = 0) -> None:
        self.tokens = tokens
        """None: nothing limits it."""
        self.first_position = first_position
        """Position id of a sample's first token."""


def limit_of(model: Model, request: CaptureRequest, tokenizer: Any = None) -> Limit:
    """The longest sample: what is asked, else what network and tokenizer take.

    Raises:
        DataError: if more is asked than the network has positions for.
    """
    if not isinstance(model, TransformersModel):
        return Limit(_own_length(tokenizer) if request.max_length is None else request.max_length)
    positions, first, table = _positions(str(model_folder(model)), _trusted(model))
    if request.max_length is not None:
        if table and positions is not None and request.max_length > positions:
            raise DataError(
                f"max_length is {request.max_length}, but {model.name} has positions for {positions} tokens; "
                f"expected at most {positions}"
            )
        return Limit(request.max_length, first)
    known = [n for n in (positions, _own_length(tokenizer)) if isinstance(n, int) and n > 0]
    return Limit(min(known, default=None), first)


def _own_length(tokenizer: Any) -> int | None:
    """What a tokenizer says is the longest text."""
    own = getattr(tokenizer, "model_max_length", None)
    return own if isinstance(own, int) and 0 < own < SANE_LENGTH else None


@lru_cache(maxsize=8)
def _positions(folder: str, trusted: bool) -> tuple[int | None, int, bool]:
    """Positions that a network has, the id of the first, and whether they are a table that ends."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the configuration in {folder} cannot be read: {error}{own_code(Path(folder), trusted)}"
        ) from error
    most = getattr(config, "max_position_embeddings", None)
    positions = most if isinstance(most, int) and most > 0 else None
    pad = getattr(config, "pad_token_id", None)
    first = (1 if pad is None else pad) + 1 if config.model_type in OFFSET_POSITIONS else 0
    rotary = any(getattr(config, name, None) is not None for name in ("rope_parameters", "rope_theta"))
    return (None if positions is None else positions - first), first, not rotary


def check_lengths(
    lengths: np.ndarray,
    limit: int | None,
    request: CaptureRequest,
    key: Callable[[int], str],
    what: str,
) -> np.ndarray:
    """bool [n]: which samples are too long.

    Args:
        lengths: int64 [n], tokens before truncation.
        limit: the most.
        request: whether they are refused.
        key: the name of a sample.
        what: what the samples are, for the message.

    Raises:
        DataError: if there are such and `too_long` is `refuse`.
    """
    over = lengths > limit if limit is not None else np.zeros(len(lengths), dtype=bool)
    if over.any() and request.too_long == "refuse":
        longest = int(lengths.argmax())
        raise DataError(
            f"{int(over.sum())} of {len(lengths)} {what} are longer than {limit} tokens; the longest, "
            f"{key(longest)!r}, has {int(lengths[longest])}. Set too_long: truncate to cut and count them, "
            "raise max_length if the network takes more, or leave them out of the data"
        )
    return over
