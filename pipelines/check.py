"""`subspan verify`: every byte of captures and artifacts against what was sealed, or every value against what the network gives again."""

from typing import TYPE_CHECKING, Any

from pipelines.status import find
from schemas.capture import CaptureSpec
from schemas.errors import SpecError, SubspanError
from tasks.store.artifacts import list_artifacts, read_artifact, verify_artifact
from tasks.store.capture_spec import read_spec, refuse_code
from tasks.store.location import Location
from tasks.store.manifest import list_captures
from tasks.store.names import read_names
from tasks.store.paths import CAPTURES, all_units, manifest_path
from tasks.store.receipts import receipt_of
from tasks.store.verify import verify

if TYPE_CHECKING:
    from tasks.recompute import OnUnit, Recomputed

WHOLE, DAMAGED, OPEN = "whole", "damaged", "open (not sealed)"
BEGUN = (".zarr", ".receipts")
"""What the folders of a capture end in, sealed or not."""


def damages(root: Location, name: str) -> list[dict[str, Any]]:
    """What is damaged of one capture or artifact, or of `all`.

    `all` also names captures without a manifest: open ones, which nothing can be compared with, and those that an
    artifact or a name was made from, which therefore were sealed once: there the manifest is what is damaged.

    Returns:
        One entry per thing: `id`, `what`, `state`, and `damage`, a list of `path` and `what`.

    Raises:
        SpecError: if the id names a run, which holds nothing to check.
    """
    if name != "all":
        kind, found = find(root, name)
        return [_checked(root, kind, found)]
    sealed, artifacts = list_captures(root), list_artifacts(root)
    wanted = [("capture", i) for i in sealed] + [("artifact", i) for i in artifacts]
    return [_checked(root, kind, found) for kind, found in wanted] + _unsealed(root, sealed, artifacts)


def recomputed(
    root: Location,
    name: str,
    units: int | None = None,
    seed: int = 0,
    trust_code: bool = False,
    on_unit: "OnUnit | None" = None,
) -> "Recomputed":
    """A capture computed again in this process and compared with the store: see `tasks.recompute`.

    With the threads that the capture asks for, on a device of the kind that made its first unit; on the CPU where there is none.

    Raises:
        SpecError: if the name is not one capture's, or the capture names code and `trust_code` does not say that it may run.
        SubspanError: what `recompute` refuses.
    """
    from pipelines.serial import set_threads

    kind, found = find(root, name) if name != "all" else (name, name)
    if kind != "capture":
        raise SpecError(
            f"{name!r} is no capture; name one that is sealed: rows of captures are what can be computed again"
        )
    spec = read_spec(root, found)
    if not trust_code:
        refuse_code(spec, "give --trust-code")
    set_threads(spec.request.precision.threads)
    from tasks.recompute import recompute

    return recompute(root, found, units, seed, _device(root, found, spec), on_unit)


def _device(root: Location, capture: str, spec: CaptureSpec) -> str:
    import torch

    first = receipt_of(root, capture, all_units(spec)[0])
    return "cuda" if first and first.fingerprint.device != "cpu" and torch.cuda.is_available() else "cpu"


def _checked(root: Location, kind: str, name: str) -> dict[str, Any]:
    if kind == "run":
        raise SpecError(f"{name!r} is a run; verify its captures and artifacts, or `all`")
    found = verify(root, name) if kind == "capture" else verify_artifact(root, name)
    return _entry(kind, name, DAMAGED if found else WHOLE, [damage._asdict() for damage in found])


def _entry(kind: str, name: str, state: str, damage: list[dict[str, str]]) -> dict[str, Any]:
    return {"id": name, "what": kind, "state": state, "damage": damage}


def _unsealed(root: Location, sealed: list[str], artifacts: list[str]) -> list[dict[str, Any]]:
    """Captures that have a folder and no manifest."""
    begun = {n.removesuffix(end) for n in root.ls(CAPTURES) for end in BEGUN if n.endswith(end)}
    missing = sorted(begun - set(sealed))
    users = _users(root, artifacts) if missing else {}
    return [_without_manifest(name, users.get(name)) for name in missing]


def _without_manifest(name: str, user: str | None) -> dict[str, Any]:
    if user is None:
        return _entry("capture", name, OPEN, [])
    what = f"missing, and {user} was made from the sealed capture: restore it, or run the capture again"
    return _entry("capture", name, DAMAGED, [{"path": manifest_path(name), "what": what}])


def _users(root: Location, artifacts: list[str]) -> dict[str, str]:
    """Capture to something that exists only because it was sealed: an artifact, or a name."""
    users = {capture: f"the name {name}" for name, capture in read_names(root).items()}
    for artifact in artifacts:
        for capture in _read_captures(root, artifact):
            users[capture] = f"artifact {artifact}"
    return users


def _read_captures(root: Location, artifact: str) -> list[str]:
    """The captures that an artifact was made from; none where it is damaged, which is an entry of its own."""
    try:
        stage = read_artifact(root, artifact).stage
    except SubspanError:
        return []
    return [capture for capture, _ in stage.places]
