"""The audit of dependencies finds what it is for."""

from tests.audit import PINS, holes, installed, pinned, unpinned

REPORT = {
    "dependencies": [
        {"name": "whole", "version": "1", "vulns": []},
        {"name": "unknown", "skip_reason": "not found"},
        {
            "name": "torn",
            "version": "2",
            "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}, {"id": "PYSEC-2", "fix_versions": []}],
        },
    ]
}


def test_holes_are_told_unless_accepted() -> None:
    assert holes(REPORT) == ["torn 2: PYSEC-1, mended in 3", "torn 2: PYSEC-2, mended in no version"]
    assert holes(REPORT, {"PYSEC-1": "not called"}) == ["torn 2: PYSEC-2, mended in no version"]


def test_what_is_installed_otherwise_is_told() -> None:
    pins = pinned("# pins\nA_b==1.0\nc.d==2  # why\n")
    assert pins == {"a-b": "1.0", "c-d": "2"}
    assert unpinned({"a-b": "1.0", "c-d": "2", "pip": "9"}, pins) == []
    assert unpinned({"a-b": "1.1"}, pins) == ["a-b 1.1 is installed, constraints.txt has 1.0"]
    assert unpinned({"nvidia-cublas": "13"}, pins) == []
    assert unpinned({"new": "1"}, pins) == ["new 1 is installed, constraints.txt has no such line"]


def test_the_pins_cover_what_is_installed_here() -> None:
    assert {"torch", "zarr", "prefect", "pytest"} <= installed().keys() & pinned(PINS.read_text()).keys()
