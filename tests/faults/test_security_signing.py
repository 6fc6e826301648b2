"""Celery's message signing (the `auth` serializer) works with jobs; other messages do not run."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobhandle_celery import JobStatus
from jobhandle_celery.broker.headers import CONTENT_TYPE, SIGNED_CONTENT_TYPE
from tests.apps import lines_of
from tests.faults.fuzz_wire import QUIET, Passes
from tests.support import eventually
from tests.worker.cluster import DEFAULT_QUEUE, Cluster, NewCluster
from tests.workers import ROOT

pytestmark = pytest.mark.faults

if not os.environ.get("CI"):
    pytest.importorskip("cryptography", reason="Celery's message signing needs it")


@dataclass
class Signed:
    """A cluster that signs all messages, its client's output, and a message taken from the queue."""

    cluster: Cluster
    keys: Path
    lines: Path
    details: dict[str, Any]
    parked: dict[str, Any]

    def deliver(self, **changes: Any) -> None:
        message = json.loads(json.dumps({**self.parked, **changes}))
        message["properties"]["delivery_tag"] = str(uuid.uuid4())
        message["properties"]["delivery_info"]["routing_key"] = DEFAULT_QUEUE
        self.cluster.redis.lpush(DEFAULT_QUEUE, json.dumps(message))


def make_keys(folder: Path) -> None:
    """Make a key and its certificate, which is in no store yet."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "jobhandle tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=8))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "key.pem").write_bytes(private)
    (folder / "certificate.pem").write_bytes(public)


def signed_body(content: list[Any], key: Path, certificate: Path) -> str:
    """Return the body as Celery's `auth` serializer encodes it, as the broker holds it."""
    from celery.security.certificate import Certificate
    from celery.security.key import PrivateKey
    from celery.security.serialization import SecureSerializer

    known = Certificate((certificate / "certificate.pem").read_text())
    serializer: Any = SecureSerializer(PrivateKey((key / "key.pem").read_text()), known)
    return base64.b64encode(serializer.serialize(content).encode()).decode()


def run_client(cluster: Cluster, keys: Path, path: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "SIGNED_KEYS": str(keys),
        "JOBHANDLE_TEST_BROKER_URL": cluster.broker_url,
        "JOBHANDLE_TEST_DATABASE_URL": cluster.database_url,
        "JOBHANDLE_TEST_SETTINGS": json.dumps(cluster.settings),
    }
    command = [sys.executable, "-m", "tests.faults.signed_app", str(path)]
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    details: dict[str, Any] = json.loads(ran.stdout)
    return details


@pytest.fixture(scope="module")
def signed(module_cluster: NewCluster, tmp_path_factory: pytest.TempPathFactory) -> Signed:
    keys = tmp_path_factory.mktemp("keys")
    make_keys(keys)
    shutil.copy(keys / "certificate.pem", keys / "own.pem.trusted")
    cluster = module_cluster(database="sqlite", settings=QUIET)
    cluster.start("tests.faults.signed_app:app", concurrency=1, environment={"SIGNED_KEYS": str(keys)})
    lines = cluster.new_file()
    details = run_client(cluster, keys, lines)
    caught = cluster.redis.lpop("parked")
    assert isinstance(caught, bytes)
    return Signed(cluster, keys, lines, details, json.loads(caught))


def test_signed_jobs_run_are_retried_and_finish(signed: Signed) -> None:
    assert signed.details["ends"] == [
        {"status": "Finished", "result": {"greeted": name, "retries": retries}, "message": f"greeting {name}"}
        for name, retries in (("job", 2), ("signature", 0), ("later", 0), ("later", 0))
    ]
    expected = ["job-0", "job-1", "job-2", "later-0", "later-0", "signature-0"]
    assert sorted(lines_of(signed.lines)) == expected
    assert signed.parked["content-type"] == SIGNED_CONTENT_TYPE


def test_message_without_our_signature_runs_no_job(signed: Signed, tmp_path: Path) -> None:
    cluster, ours, stranger = signed.cluster, signed.keys, tmp_path
    make_keys(stranger)
    handle = cluster.jobs.attach(signed.details["parked"])
    before = lines_of(signed.lines)
    content = [[str(signed.lines), "forged", 0], {}, {}]
    plain = base64.b64encode(json.dumps(content).encode()).decode()
    fields = base64.b64decode(base64.b64decode(signed.parked["body"])).split(b"\x00\x01", 4)
    tampered = b"\x00\x01".join([*fields[:4], fields[4].replace(b"parked", b"forged")])
    lies: list[dict[str, Any]] = [
        {"content-type": "application/json", "body": plain},
        {"content-type": "application/data", "body": plain},
        {"content-type": CONTENT_TYPE, "body": plain},
        {"body": plain},
        {"body": base64.b64encode(base64.b64encode(tampered)).decode()},
        {"body": signed.parked["body"][:-40]},
        {"body": ""},
        {"body": signed_body(content, stranger, certificate=stranger)},
        {"body": signed_body(content, stranger, certificate=ours)},
    ]
    worker = cluster.workers[0]
    for lie in lies:
        refusals = _refusals(worker.log)
        signed.deliver(**lie)
        eventually(lambda refusals=refusals: _refusals(worker.log) > refusals, message=str(lie)[:80])  # type: ignore[misc]  # mypy infers no lambda's defaults
    Passes(cluster).wait()

    assert lines_of(signed.lines) == before
    assert handle.job_status() is JobStatus.QUEUED
    # Signed by our key it runs, also in an earlier version's form: only the signature was wrong.
    signed.deliver(
        **{"content-type": "application/data", "body": signed_body(content, ours, certificate=ours)}
    )
    assert handle.wait(20) is JobStatus.FINISHED
    assert lines_of(signed.lines) == [*before, "forged-0"]


def _refusals(log: str) -> int:
    return len(re.findall(r"refused its message", log))
