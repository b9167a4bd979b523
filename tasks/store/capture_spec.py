"""The spec of a capture, which lies in the attributes of its arrays."""

import json

from pydantic import ValidationError

from schemas.capture import CaptureSpec
from schemas.errors import DamageError, SpecError
from tasks.store.location import Location
from tasks.store.paths import capture_path


def read_spec(root: Location, capture: str) -> CaptureSpec:
    """The spec of a capture that `create_capture` made.

    Raises:
        NotFoundError: if there is none.
        DamageError: if it cannot be read.
    """
    path = f"{capture_path(capture)}/zarr.json"
    try:
        return CaptureSpec.model_validate(json.loads(root.read(path))["attributes"]["spec"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise DamageError(
            f"{root.url}/{path} holds no spec of a capture; restore it from a copy, or capture again"
        ) from error


def refuse_code(spec: CaptureSpec, cure: str) -> None:
    """Refuse a capture whose spec names code that would run here: whoever can write to a store chooses what it names.

    Raises:
        SpecError: with what it names, and the cure.
    """
    if spec.request.code:
        raise SpecError(
            f"capture {spec.id} names code that would run here: {', '.join(spec.request.code)}, with arguments from the store; "
            f"if you trust whoever wrote the store, {cure}"
        )
