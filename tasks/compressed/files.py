"""Compressed networks as folders: tensors in safetensors, and how to rebuild the modules that they belong to in a JSON file.

A folder of a transformers network has its `config.json` too and loads by itself; other networks are given, with their own layers.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from tasks.compressed import sliced
from tasks.compressed.layer import CompressedLayer
from tasks.compressed.network import rebuilt
from tasks.compressed.shared import tie

TENSORS, DESCRIPTION = "compressed.safetensors", "compression.json"
"""Not what transformers calls them: it would load the rest of the network around random layers."""
FORMAT = 2
"""With an `architecture`; folders without one keep 1, which older versions read."""


def save_compressed(
    folder: Path, network: nn.Module, layers: Mapping[str, CompressedLayer], about: Mapping[str, Any]
) -> None:
    """Write a network with compressed layers.

    Args:
        folder: an empty one, made where it is not there.
        network: with the layers in their places; those that share tensors are tied.
        layers: by path.
        about: what else is told of it, as JSON: `source` says what it was made from, and `auto` in it which class of
            transformers makes the network; none for others. `architecture` is what `sliced.slice_network` returned, where it was sliced.
    """
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    tie(network)
    save_model(network, str(folder / TENSORS))
    config = getattr(network, "config", None)
    if callable(save := getattr(config, "save_pretrained", None)):
        save(folder)
    told = {path: {"kind": layer.kind, "spec": layer.spec()} for path, layer in layers.items()}
    description = {"format": FORMAT if "architecture" in about else 1, "layers": told, **about}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    shutil.copymode(
        folder / DESCRIPTION, folder / TENSORS
    )  # safetensors lets nobody else read what it writes


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder beside another, in whose place it comes when it is whole; an error leaves the other as it was.

    Args:
        folder: without links or `..`, or what is beside it would be elsewhere.
    """
    beside, before = (folder.with_name(f".{folder.name}.{name}") for name in ("new", "old"))
    shutil.rmtree(beside, ignore_errors=True)
    try:
        yield beside
        if folder.exists():
            shutil.rmtree(before, ignore_errors=True)
            folder.replace(
                before
            )  # at once: removing it takes time, and what ends meanwhile would leave a part
        beside.replace(folder)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def load_compressed(folder: str | Path, network: nn.Module | None = None) -> nn.Module:
    """A compressed network as a plain module in evaluation mode.

    Args:
        folder: that `subspan export` wrote.
        network: of the same architecture, whose tensors are replaced; needed for networks that transformers does not load.

    Raises:
        FileNotFoundError: if the folder is none of these.
        ValueError: if a newer version wrote it, or the network must be given.
        RuntimeError: if the tensors do not fit the network.
    """
    from safetensors.torch import load_model

    place = Path(folder)
    try:
        description = json.loads((place / DESCRIPTION).read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{place} has no {DESCRIPTION}; expected a folder that `subspan export` wrote"
        ) from error
    if description["format"] > FORMAT:
        raise ValueError(
            f"{place} has format {description['format']}, this version reads up to {FORMAT}: install a newer subspan"
        )
    made = _architecture(place, description) if network is None else network
    if "architecture" in description:
        sliced.rebuild(made, description["architecture"])
    made = rebuilt(made, description["layers"])
    load_model(made, str(place / TENSORS))
    return made.eval()


def _architecture(folder: Path, description: Mapping[str, Any]) -> nn.Module:
    """A transformers network of the folder's config, with numbers that will be replaced."""
    source = description["source"]
    if not str(source.get("auto", "")).startswith("AutoModel"):
        raise ValueError(
            f"{folder} holds a network of {source.get('factory', 'your own')}; make it, and give it as `network`: its code is yours to run"
        )
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    auto, dtype = getattr(transformers, source["auto"]), getattr(torch, source["dtype"])
    made: nn.Module = auto.from_config(config, attn_implementation=source["attention"], dtype=dtype)
    return made
