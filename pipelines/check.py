"""`subspan verify`: every byte of captures and artifacts against what was sealed."""

from typing import Any

from pipelines.status import find
from schemas.errors import SpecError
from tasks.store.artifacts import list_artifacts, verify_artifact
from tasks.store.location import Location
from tasks.store.manifest import list_captures
from tasks.store.verify import verify


def damages(root: Location, name: str) -> list[dict[str, Any]]:
    """What is damaged of one capture or artifact, or of `all`.

    Returns:
        One entry per thing checked: `id`, `what`, and `damage`, a list of `path` and `what`.

    Raises:
        SpecError: if the id names a run, which holds nothing to check.
    """
    if name == "all":
        wanted = [("capture", i) for i in list_captures(root)] + [
            ("artifact", i) for i in list_artifacts(root)
        ]
    else:
        wanted = [find(root, name)]
    return [_checked(root, kind, found) for kind, found in wanted]


def _checked(root: Location, kind: str, name: str) -> dict[str, Any]:
    if kind == "run":
        raise SpecError(f"{name!r} is a run; verify its captures and artifacts, or `all`")
    found = verify(root, name) if kind == "capture" else verify_artifact(root, name)
    return {"id": name, "what": kind, "damage": [damage._asdict() for damage in found]}
