import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from schemas.errors import UnitError
from tasks.store.location import Location, digest_of
from tasks.store.states import DIGEST, load_state, save_state

STATE = {"g": np.arange(12.0).reshape(3, 4), "n": np.int64(7), "w": np.array([], dtype=np.float32)}


def test_states_come_back(any_root: Location) -> None:
    assert load_state(any_root, "states/a/unit-0.npz") is None
    digest = save_state(any_root, "states/a/unit-0.npz", STATE)
    assert digest == digest_of(any_root.read("states/a/unit-0.npz"))
    found = load_state(any_root, "states/a/unit-0.npz")
    assert found is not None
    assert set(found) == set(STATE)
    for name, array in STATE.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_equal_states_give_equal_bytes(root: Location) -> None:
    first = save_state(root, "a.npz", STATE)
    assert save_state(root, "b.npz", dict(reversed(STATE.items()))) == first


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=hn.arrays(
        st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_, np.complex128]),
        hn.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    order=st.sampled_from("CF"),
)
def test_any_array(root: Location, array: np.ndarray, order: str) -> None:
    save_state(root, "any.npz", {"x": np.asarray(array, order=order)})
    found = load_state(root, "any.npz")
    assert found is not None
    assert found["x"].dtype == array.dtype
    np.testing.assert_array_equal(found["x"], array)


def test_damage_never_changes_a_value(root: Location) -> None:
    """Every bit position, flipped: the state is either refused or exactly right."""
    save_state(root, "x.npz", {"s": np.array([1.5, -2.25]), "n": np.int64(3)})
    good = root.read("x.npz")
    refused = 0
    for position in range(8 * len(good)):
        bad = bytearray(good)
        bad[position // 8] ^= 1 << (position % 8)
        with open(f"{root.url}/x.npz", "wb") as file:
            file.write(bad)
        found = load_state(root, "x.npz")
        refused += found is None
        if found is not None:
            assert set(found) == {"s", "n"}
            assert found["s"].tolist() == [1.5, -2.25]
            assert found["n"] == 3
    assert refused > 4 * len(good)
    for length in range(0, len(good), 9):
        root.write("x.npz", good[:length], durable=False)
        assert load_state(root, "x.npz") is None


def test_swapped_archives_are_refused(root: Location) -> None:
    """A valid archive without our digest, or with another state's."""
    import io

    for extra in ({}, {DIGEST: np.zeros(32, dtype=np.uint8)}):
        buffer = io.BytesIO()
        np.savez(buffer, s=np.ones(3), **extra)
        root.write("x.npz", buffer.getvalue())
        assert load_state(root, "x.npz") is None


def test_no_pickles(root: Location) -> None:
    with pytest.raises(UnitError, match=r"numeric arrays only; x cannot be saved in x\.npz"):
        save_state(root, "x.npz", {"x": np.array([object()])})
    import io

    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([{}], dtype=object))
    root.write("x.npz", buffer.getvalue())
    assert load_state(root, "x.npz") is None
