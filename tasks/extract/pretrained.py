"""Networks that transformers loads: from local files, without noise, every weight accounted for."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from schemas.errors import ModelError, ResourceError
from schemas.model import TransformersModel
from tasks.extract.weights import check_folder, model_folder, own_code, weight_bytes

HEADS = {
    "base": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}


class Loaded(NamedTuple):
    """A network as it came from its folder, and the parameters that were not in it."""

    module: nn.Module
    untrained: tuple[str, ...]


def load(model: TransformersModel, device: torch.device) -> Loaded:
    """Loads a network on the CPU, or spread over the GPUs of this process where `device_map` says so and `device` is one.

    The weights of a pooler may be missing: many checkpoints have none. They are filled with NaN, so that
    nothing random can enter a capture.

    Raises:
        ModelError: if the folder is incomplete or transformers cannot load it.
        ResourceError: if the weights do not fit the device's free memory; both numbers are in the message.
    """
    folder = check_folder(model_folder(model))
    dtype: torch.dtype = getattr(torch, model.dtype)
    spread = model.device_map == "auto" and device.type == "cuda"
    if spread:
        _need_accelerate(model.name)
    _check_memory(weight_bytes(folder, dtype.itemsize), device, model.name, spread)
    module, info = _from_pretrained(model, folder, dtype, spread)
    return Loaded(module, _settle_missing(module, info, model))


def _from_pretrained(
    model: TransformersModel, folder: Path, dtype: torch.dtype, spread: bool
) -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    place = {"device_map": "auto"} if spread else {}
    with _quiet():
        try:
            module, info = getattr(transformers, HEADS[model.head]).from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=model.attention,
                local_files_only=True,
                trust_remote_code=model.trust_remote_code,
                output_loading_info=True,
                **place,
            )
        except torch.OutOfMemoryError as error:
            raise ResourceError(f"{model.name!r} does not fit the devices of this worker: {error}") from error
        except Exception as error:  # transformers raises many kinds for a folder that it cannot read
            raise ModelError(
                f"transformers cannot load {model.name!r} as {model.head}: {error}{own_code(folder, model.trust_remote_code)}"
            ) from error
    return module, info


def _settle_missing(module: nn.Module, info: dict[str, Any], model: TransformersModel) -> tuple[str, ...]:
    missing = sorted(info["missing_keys"])
    needed = [name for name in missing if "pooler" not in name.split(".")]
    broken = [
        str(item)
        for kind in ("mismatched_keys", "error_msgs", "conversion_errors")
        for item in info.get(kind) or ()
    ]
    if needed or broken:
        shown = ", ".join((needed + broken)[:5])
        raise ModelError(
            f"the checkpoint of {model.name!r} lacks {len(needed + broken)} weights that head "
            f"{model.head!r} needs, such as {shown}; they would be random. "
            "Choose a head that the checkpoint was trained with"
        )
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in missing:
            parameters[name].fill_(float("nan"))
    return tuple(missing)


def _need_accelerate(name: str) -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise ModelError(f"{name!r} with device_map 'auto' needs accelerate: pip install accelerate")


def _check_memory(needed: int, device: torch.device, name: str, spread: bool) -> None:
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if spread else [device]
    free = sum(free_bytes(each) for each in devices)
    if needed > free:
        where = f"the {len(devices)} GPUs of this worker have" if spread else f"{device} has"
        cure = "more or larger GPUs" if spread else "a larger device, device_map: auto"
        raise ResourceError(
            f"the weights of {name!r} take {needed:,} bytes, {where} {free:,} free: use {cure}, or a smaller dtype"
        )


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; for the CPU what can be had without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


@contextmanager
def _quiet() -> Iterator[None]:
    """No load report and no progress bar: what matters in them is checked, and raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
