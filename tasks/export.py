"""A compressed network out of its artifacts, as a folder that loads without them."""

import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from schemas.capture import CaptureSpec
from schemas.errors import NotFoundError, SpecError, UnknownNameError, nearest
from schemas.model import FactoryModel, Model, TransformersModel
from schemas.stage import ResolvedStage
from tasks.compressed.files import DESCRIPTION, TENSORS, replaced, save_compressed
from tasks.compressed.layer import CompressedLayer
from tasks.engine.prepare import StageJob, artifact_inputs
from tasks.extract.models import model_folder, network
from tasks.extract.pretrained import HEADS
from tasks.methods.compressed_networks import Candidates
from tasks.methods.compression import model as method
from tasks.readers import ArtifactView, Capture, Root, list_artifacts, open_artifact, open_capture

METHOD = "compression.model"
TOKENIZER = (
    "tokenizer*.json",
    "*.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "preprocessor_config.json",
    "generation_config.json",
)
"""Globs over files of a tokenizer, and of how a network is used, which are copied."""
WRITTEN = (TENSORS, DESCRIPTION, "config.json", *TOKENIZER)
"""Globs over all that an export writes."""


def compressed_artifact(root: Root, wanted: str) -> ArtifactView:
    """An artifact by its id, the first letters of it, or the name of its stage.

    Args:
        root: where artifacts lie.
        wanted: which.

    Raises:
        NotFoundError: if it is none of these.
        SpecError: if several artifacts were made for a stage of that name.
    """
    try:
        return open_artifact(root, wanted)
    except NotFoundError:
        try:
            made = list_artifacts(root, METHOD, stage=wanted)
        except UnknownNameError:
            made = []
        if not made:
            raise
    if len(made) > 1:
        raise SpecError(f"stage {wanted!r} has made {', '.join(a.id for a in made)}; name one of them")
    return open_artifact(root, made[0].id)


class Exported(NamedTuple):
    """What a folder holds."""

    name: str
    """Of the candidate."""
    folder: Path
    stored_bytes: int
    """Of the network's tensors."""
    tensor_bytes: int
    """Of the file of tensors."""
    layers: dict[str, CompressedLayer]
    network: nn.Module


def export(view: ArtifactView, folder: Path, candidate: str = "") -> Exported:
    """Write a candidate of a `compression.model` artifact.

    Args:
        view: the artifact.
        folder: new, or one that an export wrote before.
        candidate: its name; empty for the best.

    Raises:
        SpecError: if the artifact is of another method, has no best candidate, or the folder holds something else too.
        UnknownNameError: if there is no such candidate.
        ModelError: if the network is no longer there, or another.
    """
    stage = view.artifact.stage
    if stage.method != METHOD:
        raise SpecError(
            f"artifact {view.id} is of {stage.method}; expected one of {METHOD}, which chooses layers"
        )
    target = folder.resolve()
    _check_folder(target)
    candidates = _candidates(view, stage)
    chosen = candidate or view.result["best"]
    names = {one.name: one for one in candidates.all}
    if not chosen:
        raise SpecError(
            f"artifact {view.id} has no candidate of the wanted size; name one of {', '.join(names)}"
        )
    if chosen not in names:
        raise UnknownNameError(
            f"artifact {view.id} has no candidate {chosen!r}; nearest: {nearest(chosen, names)}. All: {'; '.join(names)}"
        )
    capture = open_capture(view.root, stage.rows["network"][0].capture)
    made = copied(capture.spec)
    layers = candidates.made(made, names[chosen])
    point = next(point for point in view.result["points"] if point["name"] == chosen)
    about = _about(view, capture, point) | candidates.architecture(names[chosen])
    with replaced(target) as place:
        save_compressed(place, made, layers, about)
        _copy_tokenizer(capture.spec.request.model, place)
    held = {id(tensor): tensor for tensor in made.state_dict(keep_vars=True).values()}  # tied ones once
    stored = sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    return Exported(chosen, folder, stored, (target / TENSORS).stat().st_size, layers, made)


def _check_folder(folder: Path) -> None:
    """Refuse a place whose files would be lost."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SpecError(f"{folder} is a file; name a new folder")
    if folder == Path.cwd():
        raise SpecError(f"{folder} is where you are and cannot be replaced; name a new folder")
    found = sorted(file.name for file in folder.iterdir())
    if found and DESCRIPTION not in found:
        raise SpecError(f"{folder} holds something else; name a new folder")
    strange = [name for name in found if not any(fnmatchcase(name, pattern) for pattern in WRITTEN)]
    if strange:
        raise SpecError(
            f"{folder} holds {strange[0]} beside what an export wrote, which would be lost; move it, or name a new folder"
        )


def copied(spec: CaptureSpec) -> nn.Module:
    """The network of a capture, with modules of its own."""
    import copy

    return copy.deepcopy(
        network(spec.request.model, "cpu", spec.request.precision.threads, spec.weights).module
    )


def _candidates(view: ArtifactView, stage: ResolvedStage) -> Candidates:
    job = StageJob(view.root, stage, "cpu", (), 0.0)
    config = method.Config.model_validate(stage.config)
    return Candidates(method.start(artifact_inputs(job, method, {}), config))


def _about(view: ArtifactView, capture: Capture, point: dict[str, Any]) -> dict[str, Any]:
    """What the folder tells of the network."""
    request: Model = capture.spec.request.model
    source: dict[str, Any] = {"kind": request.kind, "weights": capture.spec.weights}
    if isinstance(request, TransformersModel):
        source |= {
            "name": request.name,
            "auto": HEADS[request.head],
            "attention": request.attention,
            "dtype": request.dtype,
        }
    elif isinstance(request, FactoryModel):
        source |= {"factory": request.factory, "arguments": request.arguments, "dtype": request.dtype}
    net = network(request, "cpu", capture.spec.request.precision.threads, capture.spec.weights)
    return {"source": source, "artifact": view.id, "quality": point, "untrained": list(net.untrained)}


def _copy_tokenizer(request: Model, folder: Path) -> None:
    if isinstance(request, TransformersModel):
        for pattern in TOKENIZER:
            for file in sorted(Path(model_folder(request)).glob(pattern)):
                shutil.copyfile(file, folder / file.name)
