"""Names of captures, whole or in partitions; one that is damaged hides no other."""

from tasks.store.location import Location
from tasks.store.names import read_names


def test_names_and_partitions_are_read_and_damaged_ones_left_out(any_root: Location) -> None:
    assert read_names(any_root) == {}
    any_root.write("names/whole.json", b'{"capture": "a1"}')
    any_root.write("names/parts.json", b'{"partitions": {"mon": "b1", "tue": "b2"}}')
    for name, text in (("torn", b'{"capt'), ("other", b"{}"), ("list", b"[1]")):
        any_root.write(f"names/{name}.json", text)
    any_root.write("names/half.json.1f.partial", b'{"capture": "c1"}')
    assert read_names(any_root) == {"whole": "a1", "parts/mon": "b1", "parts/tue": "b2"}
