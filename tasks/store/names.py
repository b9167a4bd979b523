"""What people call captures: `names/<name>.json`, written by the runs that made them."""

import json

from schemas.errors import NotFoundError, StoreError
from tasks.store.location import Location

NAMES = "names"


def name_path(name: str) -> str:
    """Where the name of a capture lies, below the root."""
    return f"{NAMES}/{name}.json"


def read_names(root: Location) -> dict[str, str]:
    """Name, or `name/partition`, to the id of the capture that it opens; a name that cannot be read is left out."""
    found: dict[str, str] = {}
    for file in (name for name in root.ls(NAMES) if name.endswith(".json")):
        name = file.removesuffix(".json")
        try:
            pointer = json.loads(root.read(f"{NAMES}/{file}"))
            if "capture" in pointer:
                found[name] = str(pointer["capture"])
            else:
                found |= {f"{name}/{part}": str(i) for part, i in pointer["partitions"].items()}
        except (NotFoundError, StoreError, ValueError, KeyError, TypeError, AttributeError):
            continue  # opening it says what is wrong
    return found
