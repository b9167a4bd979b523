import errno
import socket
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import fsspec
import pytest

from schemas.errors import DamageError, NotFoundError, ResourceError, StoreError
from tasks.store import remote, retry
from tasks.store.arrays import create_capture
from tasks.store.location import Location
from tasks.store.paths import all_units
from tasks.store.seal import receipt_of, seal, verify
from tests.store import faulty
from tests.store.conftest import BUCKET
from tests.store.helpers import PROVENANCE, do_unit, make_capture, make_samples, make_spec


@pytest.fixture
def flaky() -> Iterator[Location]:
    fsspec.register_implementation("flaky", faulty.FlakyFileSystem, clobber=True)
    yield Location(f"flaky://{uuid.uuid4().hex}")
    faulty.FAULTS.clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_SECONDS", 0.01)


@pytest.mark.usefixtures("quick")
def test_a_capture_gets_through_passing_errors(flaky: Location) -> None:
    fault = faulty.EveryThird()
    faulty.FAULTS.append(fault)
    spec = make_spec()
    make_capture(flaky, spec)
    assert fault.calls > 100
    assert verify(flaky, spec.id) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "error", [TimeoutError("stalled"), OSError(errno.EBUSY, "SlowDown"), EOFError("short")]
)
def test_what_does_not_pass_is_named(
    flaky: Location, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(retry, "TRANSIENT_SECONDS", 0.05)
    pauses: list[float] = []  # the clock moves in them alone
    clock = SimpleNamespace(monotonic=lambda: sum(pauses), sleep=pauses.append)
    monkeypatch.setattr(retry, "time", clock)
    calls = []

    def fault(operation: str) -> None:
        calls.append(operation)
        raise error

    faulty.FAULTS.append(fault)
    with pytest.raises(StoreError, match=rf"{flaky.url}/x kept failing"):
        flaky.write("x", b"1")
    assert len(calls) == len(pauses) + 1 > 4
    assert sum(pauses) <= 0.05


@pytest.mark.parametrize("error", [PermissionError("no"), OSError(errno.EINVAL, "bad")])
def test_a_refusal_is_not_retried(flaky: Location, error: Exception) -> None:
    calls = []

    def fault(operation: str) -> None:
        calls.append(operation)
        raise error

    faulty.FAULTS.append(fault)
    with pytest.raises(StoreError, match="check the credentials"):
        flaky.read("x")
    assert len(calls) == 1


def test_a_store_without_conditional_writes_is_named(flaky: Location) -> None:
    """Its answer to `If-None-Match` has another cure than that to wrong keys."""
    error = OSError("not implemented")
    error.__cause__ = answered("NotImplemented", 501)
    faulty.FAULTS.append(raising(error))
    with pytest.raises(StoreError, match="If-None-Match"):
        flaky.create("lease/1.json", b"mine")
    with pytest.raises(StoreError, match="check the credentials"):
        flaky.write("lease/1.json", b"mine")


def test_a_condition_that_nobody_set_is_an_error_of_the_store(flaky: Location) -> None:
    error = OSError("precondition failed")
    error.__cause__ = answered("PreconditionFailed", 412)
    faulty.FAULTS.append(raising(error))
    for act in (lambda: flaky.write("a", b"x"), lambda: flaky.read("a"), lambda: flaky.size("a")):
        with pytest.raises(StoreError, match="demands a condition"):
            act()
    assert not flaky.create("a", b"x")


def raising(error: Exception) -> Callable[[str], None]:
    """A fault of every operation."""

    def fault(operation: str) -> None:
        raise error

    return fault


def answered(code: str, status: int) -> Exception:
    """What botocore raises for an answer of S3."""
    from botocore.exceptions import ClientError

    return ClientError(
        {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "PutObject",
    )


def test_full_back_end(flaky: Location) -> None:
    def fault(operation: str) -> None:
        raise OSError(errno.ENOSPC, "no space")

    faulty.FAULTS.append(fault)
    with pytest.raises(ResourceError, match="1,000 bytes are needed"):
        flaky.write("x", bytes(1000))


@pytest.mark.usefixtures("quick")
def test_own_create_that_did_arrive_counts(flaky: Location) -> None:
    """The first try is stored, but its answer is lost; the second finds the name taken, by itself."""
    answers = iter([True])
    put = faulty.FlakyFileSystem.pipe_file

    class Lost(faulty.FlakyFileSystem):
        def pipe_file(self, path, value, mode="overwrite", **kwargs):
            put(self, path, value, mode=mode, **kwargs)
            if next(answers, False):
                raise ConnectionResetError("answer lost")

    fsspec.register_implementation("flaky", Lost, clobber=True)
    root = Location(f"flaky://{uuid.uuid4().hex}")
    assert root.create("lease", b"mine")
    assert not root.create("lease", b"mine")


@pytest.mark.usefixtures("quick")
def test_unreachable_s3(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of our tries is one request: neither s3fs nor botocore multiplies them."""
    kinds: list[str] = []
    classify, sent = retry.classify, count_requests(monkeypatch)

    def note(error: BaseException) -> retry.Kind:
        kinds.append(classify(error))
        if len(kinds) == 5:  # the time is over
            monkeypatch.setattr(retry, "UNREACHABLE_SECONDS", 0.0)
        return classify(error)

    monkeypatch.setattr(retry, "classify", note)
    monkeypatch.setattr(retry, "UNREACHABLE_SECONDS", 3600.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(StoreError, match=r"cannot reach the back end of s3://gone-\w+/x.*AWS_ENDPOINT_URL"):
        Location(f"s3://gone-{uuid.uuid4().hex[:8]}").read("x")
    assert kinds == ["unreachable"] * 5
    assert len(sent) == 5


def count_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the requests that botocore sends, repeated ones included."""
    from aiobotocore.httpsession import AIOHTTPSession

    sent: list[str] = []
    send = AIOHTTPSession.send

    async def count(session, request):
        sent.append(request.url)
        return await send(session, request)

    monkeypatch.setattr(AIOHTTPSession, "send", count)
    return sent


def test_silent_s3(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "TRANSIENT_SECONDS", 1.0)
    monkeypatch.setattr(remote, "STALL_SECONDS", 0.3)
    with faulty.silent_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        options = {"config_kwargs": {"read_timeout": 0.3}}
        place = Location(f"s3://silent-{uuid.uuid4().hex[:8]}", options)
        for action in (lambda: place.write("x", b"1"), lambda: place.read("x"), lambda: place.size("x")):
            with pytest.raises(StoreError, match=r"s3://silent-\w+/x kept failing"):
                action()


def test_missing_bucket(s3_environment: str) -> None:
    nowhere = Location(f"s3://nowhere-{uuid.uuid4().hex[:8]}/root")
    for action in (
        lambda: nowhere.write("x", b"1"),
        lambda: nowhere.read("x"),
        lambda: nowhere.create("x", b"1"),
    ):
        with pytest.raises(StoreError, match=r"bucket of .* does not exist"):
            action()
    assert not isinstance(_refusal_of(nowhere), NotFoundError)


def _refusal_of(place: Location) -> Exception:
    try:
        place.read("x")
    except StoreError as error:
        return error
    raise AssertionError("no refusal")


def test_missing_credentials(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        Location(f"s3://{BUCKET}/{uuid.uuid4().hex}").write("x", b"1")


@pytest.mark.usefixtures("quick")
def test_busy_s3(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that refuses 5 % of the requests."""
    with faulty.proxy(s3_environment, faulty.seeded_fate(0.05, "503")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        root = Location(f"s3://{BUCKET}/{uuid.uuid4().hex}", {"client_kwargs": {"endpoint_url": server.url}})
        spec = make_spec(9)
        make_capture(root, spec)
        assert verify(root, spec.id) == []


@pytest.mark.usefixtures("quick")
def test_stalling_s3(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stops answering now and then."""
    with faulty.proxy(s3_environment, faulty.seeded_fate(0.1, "stall", seed=1)) as server:
        server.stall_seconds = 0.6
        monkeypatch.setattr(remote, "STALL_SECONDS", 0.3)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        options = {"config_kwargs": {"read_timeout": 0.3}, "client_kwargs": {"endpoint_url": server.url}}
        root = Location(f"s3://{BUCKET}/{uuid.uuid4().hex}", options)
        for number in range(25):
            root.write(f"{number}", b"%d" % number)
        assert [root.read(f"{number}") for number in range(25)] == [b"%d" % number for number in range(25)]


@pytest.mark.usefixtures("quick")
def test_a_put_that_dies_half_way_is_never_accepted(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that keeps half an object and drops the connection: no receipt, the unit runs again."""
    monkeypatch.setattr(retry, "TRANSIENT_SECONDS", 0.05)
    spec, victim = make_spec(9), "encoder.layer.0@out@0/activation/c/0"
    dead = {"yes": True}

    def fate(command: str, path: str) -> str:
        return "cut" if dead["yes"] and command == "PUT" and victim.replace("@", "%40") in path else "ok"

    with faulty.proxy(s3_environment, fate) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        root = Location(f"s3://{BUCKET}/{uuid.uuid4().hex}", {"client_kwargs": {"endpoint_url": server.url}})
        create_capture(root, spec, make_samples(spec), PROVENANCE)
        unit, *others = all_units(spec)
        with pytest.raises(StoreError, match="kept failing"):
            do_unit(root, spec, unit)
        assert any(victim in path for path in root.walk())
        assert receipt_of(root, spec.id, unit) is None
        for other in others:
            do_unit(root, spec, other)
        with pytest.raises(StoreError, match="tokens-000000"):
            seal(root, spec)
        dead["yes"] = False
        do_unit(root, spec, unit)
        seal(root, spec)
        assert verify(root, spec.id) == []


def test_equal_bytes_here_and_there(s3_root: Location, root: Location) -> None:
    spec = make_spec()
    assert make_capture(root, spec).files == make_capture(s3_root, spec).files


def test_damage_on_s3(s3_root: Location) -> None:
    from tasks.store.sealed import open_group

    spec = make_spec()
    make_capture(s3_root, spec)
    path = f"captures/{spec.id}.zarr/sites/pooler@out@0/activation/c/0/0"
    data = bytearray(s3_root.read(path))
    data[3] ^= 1
    s3_root.write(path, bytes(data))
    with pytest.raises(DamageError, match="pooler"):
        open_group(s3_root, spec.id)["sites/pooler@out@0/activation"][...]


@pytest.mark.usefixtures("quick")
def test_a_large_object_is_one_put(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the size at which s3fs would upload in parts; a first try that is reset leaves nothing behind."""
    import boto3

    fates, asked = iter(["reset"]), []

    def fate(command: str, path: str) -> str:
        asked.append((command, "upload" in path))
        return next(fates, "ok") if command == "PUT" else "ok"

    whole = bytes(101 << 20)
    with faulty.proxy(s3_environment, fate) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        root = Location(f"s3://{BUCKET}/{uuid.uuid4().hex}")
        root.write("large", whole)
        assert root.size("large") == len(whole)
    assert asked == [("PUT", False), ("PUT", False), ("HEAD", False)]
    client = boto3.client("s3", endpoint_url=s3_environment)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET)
