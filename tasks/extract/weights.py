"""Which bytes a network and its tokenizer are. Nothing here imports torch or transformers before it must."""

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import ModelError
from schemas.model import FactoryModel, Model, RecordedModel, TransformersModel

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = ("*.safetensors", "*.bin")
"""What weights are called, in order of preference: only the first kind that is there is read."""

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.model",
)  # fmt: skip

CODE = "*.py"
"""Python files of a network's own, which are run only where `trust_remote_code` says so."""

_BLOCK_BYTES = 1 << 22


def model_folder(model: TransformersModel) -> Path:
    """The local folder of a network: given, inside an installed package, or in the hub's cache.

    `package:<module>[/<folder>]` is a folder inside an installed package. Any other name that is no folder
    is one of the hub, downloaded unless HF_HUB_OFFLINE is set.

    Raises:
        ModelError: if there is no such folder, package, or cached download.
    """
    if model.name.startswith("package:"):
        return _package_folder(model.name)
    local = Path(model.name).expanduser()
    if local.is_dir():
        return local
    if model.name.startswith((".", "/", "~")) or model.name.count("/") > 1:
        raise ModelError(f"there is no folder {model.name!r}; expected one with config.json and weights")
    return _hub_folder(model)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, sorted; empty where there are none."""
    for pattern in WEIGHTS:
        found = [path for path in sorted(folder.glob(pattern)) if path.name != "training_args.bin"]
        if found:
            return found
    return []


NO_NETWORK = "recorded"
"""Where a network's digest stands, if there is none."""


def weights_digest(model: Model) -> str | None:
    """sha256 over the configuration and weight files of a network, and its code where that is trusted; None for a factory.

    Cost: one read of the weights.

    Raises:
        ModelError: if the folder lacks either.
    """
    if isinstance(model, RecordedModel):
        return NO_NETWORK
    if isinstance(model, FactoryModel):
        return None
    folder = model_folder(model)
    code = folder.glob(CODE) if model.trust_remote_code else ()
    return _digest(
        [check_folder(folder) / "config.json", *folder.glob("*.index.json"), *weight_files(folder), *code]
    )


def tokenizer_digest(model: Model) -> str | None:
    """sha256 over the files of a network's tokenizer; None where there are none."""
    folder = tokenizer_folder(model)
    files = [] if folder is None else [path for pattern in TOKENIZER for path in folder.glob(pattern)]
    return _digest(files) if files else None


def tokenizer_folder(model: Model) -> Path | None:
    """Where the files of a network's tokenizer are looked for; None for a network that takes no texts."""
    if isinstance(model, TransformersModel):
        return model_folder(model)
    named = model.tokenizer if isinstance(model, FactoryModel) else None
    return None if named is None else Path(named)


def check_folder(folder: Path) -> Path:
    """The folder again, if it holds a configuration and weights.

    Raises:
        ModelError: naming what is missing.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no config.json; expected a folder that transformers' save_pretrained wrote"
        )
    if (folder / "compression.json").is_file():
        raise ModelError(
            f"{folder} holds a compressed network, which transformers would fill with random layers; use model: {{kind: factory, factory: "
            f"'subspan:load_compressed', arguments: {{folder: {folder}}}}}"
        )
    if not weight_files(folder):
        raise ModelError(
            f"{folder} holds config.json but no weights ({' or '.join(WEIGHTS)}): a network made from its "
            "configuration alone would be random; use a factory if that is meant"
        )
    return folder


def own_code(folder: Path, trusted: bool) -> str:
    """For messages: the way out where a folder has code of its own, which is not run; empty where that is not the matter."""
    if trusted or not any(folder.glob(CODE)):
        return ""
    return f"; {folder} holds Python files of its own, which are not run: if you trust them, set model.trust_remote_code to true"


def weight_bytes(folder: Path, item_bytes: int) -> int:
    """Bytes that the weights take at `item_bytes` per number, by safetensors headers or file sizes."""
    files = weight_files(folder)
    if any(path.suffix != ".safetensors" for path in files):
        return sum(path.stat().st_size for path in files)
    return item_bytes * sum(_numbers(path) for path in files)


def module_digest(module: "nn.Module") -> str:
    """sha256 over a network's parts, parameters and buffers, for a network that a factory makes.

    Covers the type and options of every module, the source files of modules that are not torch's or transformers' own, and
    the name, dtype, shape and bytes of every tensor. Cost: one pass over all tensors, copied to the CPU one at a time.
    """
    import torch

    total = hashlib.sha256()
    for source in sorted(_source_files(module)):
        total.update(f"{source.name}\0{hashlib.sha256(source.read_bytes()).hexdigest()}\n".encode())
    for path, part in module.named_modules():
        options = re.sub(r" at 0x[0-9a-f]+", "", part.extra_repr())
        total.update(f"{path}\0{type(part).__qualname__}\0{options}\n".encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(plain.view(torch.uint8).numpy().data)
    return total.hexdigest()


def _source_files(module: "nn.Module") -> set[Path]:
    """The files that define a network's own modules: equal weights under other code are another network."""
    names = {type(part).__module__ for part in module.modules()}
    own = [sys.modules.get(name) for name in names if name.partition(".")[0] not in ("torch", "transformers")]
    files = (getattr(one, "__file__", None) for one in own)
    return {Path(file) for file in files if file and Path(file).is_file()}


def _package_folder(name: str) -> Path:
    package, _, folder = name.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{name!r}: package {package!r} is not installed here; install it where the workers run"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / folder
    if not path.is_dir():
        raise ModelError(f"{name!r}: package {package!r} has no folder {folder!r} in {path.parent}")
    return path


def _hub_folder(model: TransformersModel) -> Path:
    from huggingface_hub import snapshot_download

    try:
        for weights in WEIGHTS:
            wanted = ["config.json", "*.index.json", weights, *TOKENIZER]
            wanted += [CODE] if model.trust_remote_code else []
            folder = Path(snapshot_download(model.name, revision=model.revision, allow_patterns=wanted))
            if weight_files(folder):
                break
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model.name!r} (revision {model.revision or 'default'}) is no local folder and not to be had "
            f"from the hub or its cache: {error}; give a folder, or download it first"
        ) from error
    return folder


def _digest(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(files):
        one = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                one.update(block)
        total.update(f"{path.name}\0{one.hexdigest()}\n".encode())
    return total.hexdigest()


def _numbers(path: Path) -> int:
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    count = 0
    for name, entry in header.items():
        if name != "__metadata__":
            size = 1
            for axis in entry["shape"]:
                size *= axis
            count += size
    return count
