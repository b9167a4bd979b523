"""No credential is stored: URLs and options that carry one are refused, and what a run writes and says has none."""

import io
import logging
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipelines.cli import main
from pipelines.forms import RunForm, WatchForm
from pipelines.serial import run_serial
from schemas.errors import CredentialsError
from schemas.run import RunSpec
from schemas.urls import has_secret
from tasks.store.location import Location
from tests.faulty_s3 import KEY, SECRET, moto_process, s3_environment
from tests.pipelines.runs import vectors_run

pytestmark = pytest.mark.alone
WITH_SECRET = [
    f"s3://{KEY}:{SECRET}@bucket/prefix",
    f"s3://bucket/prefix?X-Amz-Signature={SECRET}",
    f"s3://bucket/prefix?region=x&key={SECRET}",
    f"https://account.example/container?sig={SECRET}",
    f"simplecache::s3://user:{SECRET}@bucket/x",
    f"s3://{KEY}:{SECRET[:5]}/{SECRET}@bucket/x",
    f"https://host.example/x?access_token={SECRET}",
    f"https://host.example/x?api_key={SECRET}",
    f"https://host.example/x?X-Goog-Signature={SECRET}",
    f"https://account.example/x?%73ig={SECRET}",
    f"https://host.example/x?auth={SECRET}",
    f"https://host.example/x?passphrase={SECRET}",
    f"https://{SECRET}@host.example/x",
    f"simplecache::HTTPS://{SECRET}@host.example/x",
]


@pytest.mark.parametrize("url", WITH_SECRET)
def test_a_url_with_a_secret_is_refused_without_saying_it(url: str) -> None:
    run = vectors_run("s3://bucket/a").model_dump(mode="json")
    texts = {"source": {"kind": "text", "paths": [url]}}
    capture = {**run["captures"]["vectors"], "data": texts}
    factory = {"kind": "factory", "factory": "a:b", "arguments": {"c": [{url: 1}]}}
    keys = {**run["captures"]["vectors"], "data": {"source": factory}}
    for given in ({**run, "root": url}, *({**run, "captures": {"vectors": c}} for c in (capture, keys))):
        with pytest.raises(CredentialsError, match="AWS_PROFILE") as refused:
            RunSpec.model_validate(given)
        assert SECRET not in str(refused.value)
    with pytest.raises(CredentialsError, match="root"):
        Location(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a@b",
        "s3://b/part-?.jsonl",
        "/data/key=1/x",
        "s3://b/year=2026/key=3/x.npy",
        "sftp://me@host/x",
        "hdfs://host:9000/a@b",
        "http://[::1]:9000/a@b",
        "s3://bucket/a?versionId=3",
    ],
)
def test_other_urls_are_not(url: str) -> None:
    assert not has_secret(url)


@pytest.mark.parametrize(
    "options", [{"key": KEY}, {"client_kwargs": {"aws_secret_access_key": SECRET}}, {"token": SECRET}]
)
def test_options_with_secrets_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(CredentialsError, match="expected no credentials") as refused:
        Location("s3://bucket/a", options)
    assert SECRET not in str(refused.value)


def test_the_command_line_refuses_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--root", WITH_SECRET[0]]) != 0
    assert "AWS_PROFILE" in (said := capsys.readouterr().err)
    assert SECRET not in said


def test_nothing_that_a_run_writes_or_says_has_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys from a profile alone, then every object, log line and message is searched for them."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    profile = tmp_path / "credentials"
    profile.write_text(f"[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    stages = {"summary": {"method": "spectrum.summary"}}
    try:
        with moto_process() as server, s3_environment(server, "captures"):
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                del os.environ[name]
            os.environ |= {"AWS_PROFILE": "lab", "AWS_SHARED_CREDENTIALS_FILE": str(profile)}
            run = vectors_run("s3://captures/keys", n=40, stages=stages)
            run = RunSpec.model_validate({**run.model_dump(mode="json"), "report": {}})
            outcome = run_serial(run)
            assert outcome.captures[0].computed
            for command in (["status"], ["ls"], ["verify", outcome.captures[0].id]):
                assert main([*command, "--root", run.root]) == 0
            root = Location(run.root)
            objects = {path: root.read(path) for path in root.walk()}
    finally:
        logging.getLogger().removeHandler(handler)
    said = capsys.readouterr()
    assert len(objects) > 50
    assert any(path.endswith(".html") for path in objects)
    for secret in (KEY, SECRET):
        assert [path for path, data in objects.items() if secret.encode() in data] == []
        assert secret not in log.getvalue() + said.out + said.err
        assert secret not in outcome.model_dump_json()


def test_a_form_refuses_it_without_saying_it() -> None:
    for form, field in ((RunForm, "root"), (RunForm, "data_path"), (WatchForm, "run_file")):
        with pytest.raises(ValidationError, match=field) as refused:
            form.model_validate({field: WITH_SECRET[0]})
        assert SECRET not in str(refused.value)
