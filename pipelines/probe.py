"""What can be captured of a network: every site with its row space and width, from two small forwards."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dry_run import dry_run
from schemas.capture import CaptureRequest
from schemas.data import ArrayFiles, Data, StdlibDocstrings, Subset
from schemas.errors import SpecError
from schemas.model import Model, TransformersModel
from tasks.engine.network import trainable
from tasks.extract.data import open_source
from tasks.extract.encode import make_encoder
from tasks.extract.models import network
from tasks.extract.sites import SiteInfo
from tasks.extract.weights import model_folder, tokenizer_digest

PROBE_SAMPLES = 4
TEXT = Data(source=StdlibDocstrings(), subset=Subset(max_samples=PROBE_SAMPLES))


def sites_table(model: Model, data: Data | None = None) -> list[dict[str, Any]]:
    """Every site of a network, in the order of its forward.

    Args:
        model: the network.
        data: samples to send through it; None: docstrings for a network with a tokenizer, zeros for one that takes
            images.

    Returns:
        site, space, width, type, and why it cannot be captured where it cannot.

    Raises:
        SpecError: if there are no data and none can be made up for this network.
    """
    with tempfile.TemporaryDirectory() as folder:
        chosen = data or _made_up(model, Path(folder))
        request = CaptureRequest(model=model, data=chosen, sites=("**",), too_long="truncate")
        source = open_source(chosen)
        encoder = make_encoder(source, range(min(PROBE_SAMPLES, len(source))), model, request)
        infos = dry_run(network(model), encoder, request)
    return [_line(info) for info in infos]


def parameters_table(model: Model) -> list[dict[str, Any]]:
    """Every parameter of a network that can be trained, with its shape, in the order of the network."""
    return [
        {
            "parameter": name,
            "shape": " x ".join(map(str, value.shape)),
            "dtype": str(value.dtype).removeprefix("torch."),
        }
        for name, value in trainable(network(model)).items()
    ]


def _line(info: SiteInfo) -> dict[str, Any]:
    usable = info.usable
    return {
        "site": str(info.site),
        "space": info.space if usable else None,
        "width": info.width if usable else None,
        "type": info.type_name,
        "not captured because": info.refusal or None,
    }


def _made_up(model: Model, folder: Path) -> Data:
    if isinstance(model, TransformersModel):
        if tokenizer_digest(model) is not None:
            return TEXT
        config = json.loads((model_folder(model) / "config.json").read_text())
        if "image_size" in config:
            side = config["image_size"]
            height, width = (side, side) if isinstance(side, int) else side
            np.save(
                folder / "images.npy",
                np.zeros((2, config.get("num_channels", 3), height, width), dtype=np.float32),
            )
            return Data(source=ArrayFiles(path=str(folder / "images.npy")))
    raise SpecError(
        "listing the sites takes a forward, and this network does not say what it takes: give --input-shape of one sample, "
        "such as 3,224,224"
    )
