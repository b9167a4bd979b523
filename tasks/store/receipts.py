"""Receipts: the proof that a unit is done, read and written without opening a single array."""

import re
from collections.abc import Iterator

from schemas.base import Digested, canonical_json
from schemas.errors import NotFoundError
from schemas.layout import UnitRef
from schemas.receipts import FileDigest, Receipt
from tasks.store.location import Location
from tasks.store.paths import STATES, capture_path, receipt_path, receipts_path

UNIT_FILE = re.compile(r".+-\d{6,}\.json")


class CreatedRecord(Digested):
    """What `create_capture` wrote, so that sealing can tell whether it is still the same."""

    capture: str
    files: dict[str, FileDigest]


def write_receipt(root: Location, receipt: Receipt) -> None:
    """Make the names of a unit's files durable, then prove that the unit is done.

    A valid receipt that is there already stays: a unit that ran twice may end after the capture was sealed, and the
    seal holds the digest of the first receipt.
    """
    folder = capture_path(receipt.capture)
    root.sync(path if path.startswith(STATES) else f"{folder}/{path}" for path in receipt.files)
    path, data = receipt_path(receipt.capture, receipt.unit), canonical_json(receipt.with_digest())
    if not root.create(path, data) and receipt_of(root, receipt.capture, receipt.unit) is None:
        root.write(path, data)


def receipt_of(root: Location, capture_id: str, unit: UnitRef) -> Receipt | None:
    """The receipt of a unit; None if it is absent, damaged, or of something else: the unit runs again."""
    try:
        data = root.read(receipt_path(capture_id, unit))
    except NotFoundError:
        return None
    receipt = Receipt.read(data)
    return receipt if receipt and (receipt.capture, receipt.unit) == (capture_id, unit) else None


def read_receipts(root: Location, capture_id: str) -> dict[str, Receipt]:
    """Every valid receipt of a capture, by the name of its unit. One read per receipt."""
    return dict(receipts_in(root, capture_id))


def receipts_in(root: Location, capture_id: str) -> Iterator[tuple[str, Receipt]]:
    """The same, one after the other."""
    folder = receipts_path(capture_id)
    names = [name for name in root.ls(folder) if name.endswith(".json")]
    for name, data in zip(names, root.each(lambda name: root.read(f"{folder}/{name}"), names), strict=True):
        receipt = Receipt.read(data)
        if receipt and receipt.capture == capture_id and f"{receipt.unit.name}.json" == name:
            yield receipt.unit.name, receipt


def count_receipts(root: Location, capture_id: str) -> int:
    """How many units claim to be done; one listing, nothing is read or checked."""
    return sum(bool(UNIT_FILE.fullmatch(name)) for name in root.ls(receipts_path(capture_id)))


def drop_receipt(root: Location, capture_id: str, unit: UnitRef) -> None:
    """Take a proof back, so that the unit runs again."""
    root.delete(receipt_path(capture_id, unit))
