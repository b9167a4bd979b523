"""Networks: loaded from a transformers folder or made by a factory, quietly, completely, on one device."""

import functools
import inspect
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from schemas.base import canonical_json, sha256
from schemas.errors import ModelError, ResourceError
from schemas.model import FactoryModel, Model, RecordedModel
from tasks.extract import pretrained
from tasks.extract.allocator import keep_memory
from tasks.extract.imports import imported, source_file
from tasks.extract.turns import FORWARDS
from tasks.extract.weights import NO_NETWORK, model_folder, module_digest, tokenizer_digest, weights_digest

PAGE_BYTES = 4096
KERNELS = 8
"""Compiled kernels that oneDNN keeps where making one takes time: convolutions, and products of less than float32."""
KERNEL_CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
OWN_CAPACITY = "SUBSPAN_KERNEL_CAPACITY"
"""What this project set, which child processes inherit and may change."""
_LOADING = threading.Lock()
"""Threads of a process must not load the same network twice."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

__all__ = [
    "Network", "find_device", "load", "model_folder", "module_digest", "network", "tokenizer_digest",
    "weights_digest", "wrap",
]  # fmt: skip


class Network(NamedTuple):
    """A network ready for captures."""

    module: nn.Module
    """In evaluation mode."""
    device: torch.device
    """Where its inputs go."""
    takes_mask: bool
    """Whether its forward has an `attention_mask`."""
    max_length: int | None
    """Most tokens of a sample that it has positions for; None where nothing limits them."""
    input_dtype: torch.dtype
    """What floating-point inputs are cast to."""
    arguments: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments of every forward, such as `use_cache=False`."""
    untrained: tuple[str, ...] = ()
    """Parameters that were not in the checkpoint; they hold NaN, and no site may depend on them."""
    own: bool = False
    """Whether its modules belong to one thread: see `tasks.extract.replica`."""
    digest: str = ""
    """What identifies it: sha256 of its checkpoint's files, or of a factory's code, parts and tensors."""


def network(model: Model, device: str = "cpu", threads: int = 1, digest: str | None = None) -> Network:
    """The network, loaded once per process; another model or device replaces it.

    Raises:
        ModelError: if what is loaded is not the network of that digest; see also `load`.
    """
    with _LOADING:
        return _checked(model, device, threads, digest)


def _checked(model: Model, device: str, threads: int, digest: str | None) -> Network:
    found = _cached(canonical_json(model), type(model), device, threads)
    if digest is not None and found.digest != digest:
        _cached.cache_clear()
        found = _cached(canonical_json(model), type(model), device, threads)
    if digest is not None and found.digest != digest:
        raise ModelError(
            f"the network loaded here has digest {found.digest[:12]}, the one that was planned {digest[:12]}: its files changed, or its "
            "factory gives another network each time; seed the factory, or plan the run again"
        )
    return found


def load(model: Model, device: str = "cpu", threads: int = 1) -> Network:
    """Loads a network and puts it on a device, in evaluation mode.

    Args:
        model: what to load.
        device: `cpu`, `cuda` or `cuda:<index>`.
        threads: CPU threads of torch in this process.

    Raises:
        ModelError: if it cannot be loaded, or a weight is missing from its checkpoint.
        ResourceError: if there is no such device, or its memory does not suffice.
    """
    keep_memory()
    torch.set_num_threads(threads)
    place = find_device(device)
    if isinstance(model, RecordedModel):
        return wrap(nn.Identity(), getattr(torch, model.dtype))._replace(digest=NO_NETWORK)
    untrained: tuple[str, ...] = ()
    if isinstance(model, FactoryModel):
        module = _move(_make(model), place, getattr(torch, model.dtype))
    else:
        loaded = pretrained.load(model, place)
        untrained = loaded.untrained
        spread = hasattr(loaded.module, "hf_device_map")
        module = loaded.module if spread else _move(loaded.module, place, None)
        _read_whole(module)
    _keep_kernels(module)
    digest = weights_digest(model) or _factory_digest(model, module)
    net = wrap(module.eval(), getattr(torch, model.dtype), untrained)._replace(digest=digest)
    return net if any(True for _ in module.parameters()) else net._replace(device=place)


def wrap(
    module: nn.Module, input_dtype: torch.dtype = torch.float32, untrained: tuple[str, ...] = ()
) -> Network:
    """A network around a module that is already where it should be."""
    parameters = inspect.signature(module.forward).parameters
    no_cache = hasattr(module, "config") and "use_cache" in parameters
    return Network(
        module=module,
        device=next((tensor.device for tensor in module.parameters()), torch.device("cpu")),
        takes_mask="attention_mask" in parameters,
        max_length=_max_length(module),
        input_dtype=input_dtype,
        arguments={"use_cache": False} if no_cache else {},
        untrained=untrained,
    )


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ResourceError: if torch knows no such device or this process sees none.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ResourceError(f"there is no device {name!r}; expected cpu, cuda or cuda:<index>") from error
    if device.type not in ("cpu", "cuda"):
        raise ResourceError(f"device {name!r} is not supported; expected cpu, cuda or cuda:<index>")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= seen:
        raise ResourceError(f"device {name!r} was asked for, but torch sees {seen} CUDA devices here")
    return device


@functools.lru_cache(maxsize=1)
def _cached(model: bytes, kind: type[Model], device: str, threads: int) -> Network:
    with FORWARDS.alone():  # a factory may seed generators
        return load(kind.model_validate_json(model), device, threads)


def _make(model: FactoryModel) -> nn.Module:
    factory = imported(model.factory, "factory", ModelError)
    try:
        module = factory(**model.arguments)
    except (Exception, SystemExit) as error:
        raise ModelError(f"factory {model.factory!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"factory {model.factory!r} returned a {type(module).__name__}, expected a torch.nn.Module"
        )
    return module


def _factory_digest(model: Model, module: nn.Module) -> str:
    code = b""
    if isinstance(model, FactoryModel):
        file = source_file(model.factory)
        code = (
            Path(file).read_bytes() if file and not file.startswith(str(Path(torch.__file__).parent)) else b""
        )
    return sha256(code + module_digest(module).encode())


def _move(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            what = (
                "has no values (meta device)" if tensor.is_meta else "is not initialised yet (a lazy module)"
            )
            raise ModelError(
                f"{name} of {type(module).__name__} {what}: let the factory run a forward, or load the weights, first"
            )
    needed = sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())
    try:
        return module.to(device=device, dtype=dtype)
    except torch.OutOfMemoryError as error:
        free = torch.cuda.mem_get_info(device)[0]
        raise ResourceError(
            f"{type(module).__name__} needs {needed:,} bytes on {device}, which has {free:,} free: "
            "use a larger device, a smaller dtype, or device_map: auto"
        ) from error


def _read_whole(module: nn.Module) -> None:
    """Bring weights that are mapped from a file into memory: else the pages of an embedding come one by one, with the words
    that need them, and a worker grows for as long as it meets new words."""
    for tensor in module.parameters():
        if tensor.device.type == "cpu" and tensor.is_contiguous() and type(tensor.data) is torch.Tensor:
            tensor.detach().view(-1).view(torch.uint8)[::PAGE_BYTES].sum()


def _keep_kernels(module: nn.Module) -> None:
    """Set oneDNN's part, unless the user did; it is read once, at the first forward of a process: the first network decides.

    In a float32 network without convolutions oneDNN computes activation functions only, whose kernels cost nothing to make: none
    is kept.
    """
    costly = any(isinstance(part, _CONVOLUTIONS) for part in module.modules()) or any(
        weight.dtype != torch.float32 for weight in module.parameters()
    )
    users = os.environ.get(KERNEL_CAPACITY) != os.environ.get(OWN_CAPACITY)
    if not users:  # unset, or set by this process or its parent for another network
        os.environ[KERNEL_CAPACITY] = os.environ[OWN_CAPACITY] = str(KERNELS if costly else 0)


def _max_length(module: nn.Module) -> int | None:
    limit = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    # Networks such as RoBERTa begin counting after the padding index, and so lose those positions.
    for name, part in module.named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(part, nn.Embedding)
            and part.padding_idx is not None
        ):
            return limit - part.padding_idx - 1
    return limit
