"""Who may use a worker: everybody else is refused, with one clear line on both sides."""

import logging
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ggrun import LLM, __version__
from ggrun.bundled import demo_model
from ggrun.engine.hosts import HostLost
from ggrun.errors import GgrunError, UsageError
from ggrun.plan.hardware import DeviceInfo
from ggrun.rpc import PROTOCOL, channel, keys, server, session
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.channel import Certificates
from ggrun.rpc.handoff import Doors
from ggrun.rpc.ledger import Ledger
from ggrun.rpc.link import Link
from ggrun.rpc.placed import RpcOptions
from ggrun.rpc.server import Server
from ggrun.rpc.shop import Shop
from ggrun.rpc.store import Library, Store
from ggrun.rpc.worker import WorkerOptions, open_worker
from ggrun.rpc.workers import Workers, connect
from tests.rpc.conftest import Start
from tests.rpc.processes import plan_of
from tests.waiting import PATIENCE

PEM = serialization.Encoding.PEM


def devices(workers: Workers) -> list[str]:
    found = [device.name for device in workers.devices]
    workers.close()
    return found


def test_joined(start: Start, tmp_path: Path) -> None:
    worker = start()
    assert devices(connect(worker.address)) == [worker.device()]
    secrets = [tmp_path / "client" / "workers.json", *(tmp_path / "worker" / "worker").iterdir()]
    assert len(secrets) == 5
    assert {stat.S_IMODE(file.stat().st_mode) for file in secrets} == {0o600}
    worker.end()
    assert worker.key
    worker.start(str(worker.port))
    assert worker.key not in worker.text, "the token is shown once"
    worker.wait_for(r"listening at 127.0.0.1:\d+ \(for another join line: --new-token\)$")
    assert devices(connect(worker.address)) == [worker.device()]


def test_joined_by_ipv6(start: Start) -> None:
    """What the printed line says can be pasted, connected to, and named in plans."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    worker = start("-H", "::1", join=False)
    address = next(line for line in worker.lines if "ggrun join" in line).split()[-2]
    assert address == f"[::1]:{worker.port}"
    keys.join(address, keys.Key.parse(worker.key or ""))
    plan = plan_of(demo_model(), ("cpu", 8), (f"{address}/cpu:0:1GB", 16))
    with LLM(demo_model(), n_ctx=64, threads=1, plan=plan, rpc=RpcOptions(address)) as llm:
        assert "".join(llm.generate("The king", temp=0.0, max_tokens=4))
        assert address in llm.plan.to_json()


def test_not_joined(start: Start) -> None:
    worker = start(join=False)
    with pytest.raises(UsageError, match=f"^{worker.address}: was not joined: paste the join line"):
        connect(worker.address)


def test_a_wrong_token(start: Start) -> None:
    worker = start()
    known = keys.Key.parse(worker.key or "")
    keys.join(worker.address, keys.Key(bytes(32), known.fingerprint))
    with pytest.raises(GgrunError, match=f"^{worker.address}: wrong token: paste the join line"):
        connect(worker.address)
    worker.wait_for(r"127.0.0.1:\d+: refused: wrong token")


def test_a_new_token_locks_out(start: Start) -> None:
    worker = start()
    worker.end()
    worker._flags = ("--new-token",)
    worker.start(str(worker.port))
    with pytest.raises(GgrunError, match="wrong token"):
        connect(worker.address)
    again = next(line for line in worker.lines if "ggrun join" in line).split()[-1]
    keys.join(worker.address, keys.Key.parse(again))
    assert devices(connect(worker.address)) == [worker.device()]


def test_a_foreign_certificate(start: Start) -> None:
    worker = start()
    known = keys.Key.parse(worker.key or "")
    keys.join(worker.address, keys.Key(known.token, bytes(32)))
    with pytest.raises(GgrunError, match="its certificate is not the one"):
        connect(worker.address)


def test_an_expired_certificate(start: Start, tmp_path: Path) -> None:
    """The worker does not start with one; a client accepts none, and both say why."""
    folder = tmp_path / "old" / "worker"
    folder.mkdir(parents=True)
    certificate, private = self_made(days=(-20, -10))
    (folder / "certificate.pem").write_bytes(certificate)
    (folder / "private_key.pem").write_bytes(private)
    with pytest.raises(GgrunError, match=r"certificate.pem: the certificate is valid from .* to .*: make"):
        keys.identity(folder)
    shown = keys.identity(tmp_path / "new")
    with pytest.raises(GgrunError, match=r"^here: the certificate is valid from"):
        keys.check_valid(certificate, "here")
    keys.check_valid(shown.certificate, "here")
    shop = Shop((), 1, Ledger({}), Store(tmp_path / "store", 0), Library(None), Doors())
    token = bytes(range(32))
    server = Server(shop, "127.0.0.1:0", keys.Identity(certificate, private, token), None, 1)
    try:
        address = f"127.0.0.1:{server.port}"
        with pytest.raises(GgrunError, match=rf"^{address}: the certificate is valid from"):
            Link(address, keys.Key(token, keys.fingerprint(certificate)))
    finally:
        server.close()


def test_plain_text_on_the_tls_port(start: Start) -> None:
    worker = start()
    with pytest.raises(
        GgrunError, match=f"^{worker.address}: the worker there speaks TLS: leave --insecure out$"
    ):
        connect(worker.address, insecure=1)
    worker.wait_for("refused: no TLS: plain text came")
    assert worker.text.count("refused") == 1
    assert devices(connect(worker.address)) == [worker.device()]


def test_tls_on_the_plain_port(start: Start, tmp_path: Path) -> None:
    worker = start("--insecure")
    shown = keys.identity(tmp_path / "other")
    keys.join(worker.address, shown.key)
    with pytest.raises(GgrunError, match=f"^{worker.address}: no TLS is spoken there"):
        connect(worker.address)
    worker.wait_for(r"127.0.0.1:\d+: refused: it wants TLS, and this worker was started with --insecure$")
    assert worker.text.count("refused") == 1
    assert devices(connect(worker.address, insecure=1)) == [worker.device()]


def test_who_hangs_up_at_once() -> None:
    """As a worker with too many connections does: that is not plain text."""
    with socket.create_server(("127.0.0.1", 0)) as busy:

        def hang_up() -> None:
            connection, _ = busy.accept()
            with connection:
                connection.recv(1 << 16)

        thread = threading.Thread(target=hang_up)
        thread.start()
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        with pytest.raises(
            HostLost, match=f"^{address}: cannot be reached: the connection is closed at once"
        ):
            channel.open_channel(address, bytes(32))
        thread.join()


def test_insecure_is_for_loopback_unless_repeated(start: Start, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this machine's own workers; twice for any"):
        connect("192.0.2.1:50052", insecure=1)
    refused = ggrun("worker", "--insecure", "-H", "0.0.0.0", "-p", "0", "-d", "cpu:0:1GB")
    assert refused.returncode == 2
    assert "--insecure on 0.0.0.0: without TLS for this machine only; give it twice" in refused.stderr
    ca = tmp_path / "clients.pem"
    ca.write_bytes(self_made()[0])
    refused = ggrun("worker", "--insecure", "--client-ca", str(ca), "-p", "0", "-d", "cpu:0:1GB")
    assert refused.returncode == 2
    assert "--insecure is without TLS, and so without the certificates of --client-ca" in refused.stderr
    worker = start("--insecure", "--insecure", "-H", "0.0.0.0", name="open")
    assert devices(connect(worker.address, insecure=2)) == [worker.device()]


def ggrun(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ggrun", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_mutual_tls(start: Start, tmp_path: Path) -> None:
    """A client's certificate instead of a token: one that an authority has signed, and no other."""
    authority, signer = self_made()
    ca = tmp_path / "clients.pem"
    ca.write_bytes(authority)
    worker = start("--client-ca", str(ca))
    pair = written(tmp_path / "mine", *self_made(by=(authority, signer)))
    assert devices(connect(worker.address, certificate=pair)) == [worker.device()]
    assert "refused" not in worker.text
    foreign = written(tmp_path / "foreign", *self_made())
    with pytest.raises(
        GgrunError, match=f"^{worker.address}: the worker hangs up on {foreign[0]}: one of its"
    ):
        connect(worker.address, certificate=foreign)
    worker.wait_for("refused: the client's certificate is")
    with pytest.raises(GgrunError, match=f"^{worker.address}: the worker hangs up: if it wants a cert"):
        connect(worker.address)
    worker.wait_for("refused: the client has no certificate")
    assert worker.text.count("refused") == 2, "one line each"
    assert devices(connect(worker.address, certificate=pair)) == [worker.device()]


@pytest.mark.parametrize("days", [(-20, -10), (5, 10)])
def test_a_clients_certificate_out_of_its_time(
    days: tuple[int, int], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client does not even show it; a worker does not take it from one whose clock is wrong."""
    authority, signer = self_made()
    ca = tmp_path / "clients.pem"
    ca.write_bytes(authority)
    worker = start("--client-ca", str(ca))
    pair = written(tmp_path / "mine", *self_made(days, by=(authority, signer)))
    with pytest.raises(GgrunError, match=rf"^{pair[0]}: the certificate is valid from .*: make a new one$"):
        connect(worker.address, certificate=pair)
    assert "refused" not in worker.text
    monkeypatch.setattr(channel, "check_valid", lambda *_: None)
    with pytest.raises(GgrunError, match=f"^{worker.address}: the worker hangs up on {pair[0]}"):
        connect(worker.address, certificate=pair)
    worker.wait_for("refused: the client's certificate is expired")


def test_files_that_are_no_certificate_and_its_key(tmp_path: Path) -> None:
    certificate, private = written(tmp_path / "mine", *self_made())
    other, _ = written(tmp_path / "other", *self_made())
    for pair in ((other, private), (private, certificate), (__file__, __file__)):
        with pytest.raises(GgrunError, match=f"^{pair[0]} and {pair[1]}: a certificate and its private key"):
            Certificates.read(*pair)
    # What OpenSSL takes and cryptography does not: with what its owner trusts it for, in its own words.
    trusted = Path(certificate).read_text().replace("BEGIN CERT", "BEGIN TRUSTED CERT")
    pair = str(tmp_path / "trusted.pem"), private
    Path(pair[0]).write_text(trusted.replace("END CERT", "END TRUSTED CERT"))
    with pytest.raises(GgrunError, match=f"^{pair[0]} and {private}: a certificate and its private key"):
        Certificates.read(*pair)
    with pytest.raises(GgrunError, match=r"^nowhere.pem: No such file or directory$"):
        Certificates.read("nowhere.pem", private)


def written(folder: Path, certificate: bytes, private: bytes) -> tuple[str, str]:
    folder.mkdir()
    (folder / "c.pem").write_bytes(certificate)
    (folder / "k.pem").write_bytes(private)
    return str(folder / "c.pem"), str(folder / "k.pem")


def self_made(days: tuple[int, int] = (-1, 10), by: tuple[bytes, bytes] | None = None) -> tuple[bytes, bytes]:
    """A certificate and its private key; by: those of who signs it instead."""
    private, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    serial = x509.random_serial_number()
    name = issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"somebody {serial}")])
    signer: Any = private
    if by:
        issuer = x509.load_pem_x509_certificate(by[0]).subject
        signer = serialization.load_pem_private_key(by[1], None)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(private.public_key())
        .serial_number(serial)
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    pkcs8 = serialization.PrivateFormat.PKCS8
    return made.public_bytes(PEM), private.private_bytes(PEM, pkcs8, serialization.NoEncryption())


# ---------------------------------------------------------------- handshakes


def answers(port: int, *requests: pb.Request) -> list[pb.Reply]:
    """What a plain-text worker says to these; the stream stays open until it ends it."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(
            "/ggrun.Worker/Session", pb.Request.SerializeToString, pb.Reply.FromString
        )
        return list(call(iter(requests), timeout=PATIENCE))


@pytest.mark.parametrize(("version", "update"), [(PROTOCOL - 1, "the client"), (PROTOCOL + 1, "the worker")])
def test_another_version_says_which_side_to_update(start: Start, version: int, update: str) -> None:
    worker = start("--insecure")
    (reply,) = answers(worker.port, pb.Request(hello=pb.Hello(protocol=version, version="0.0.7")))
    assert reply.failed.kind == pb.Failed.VERSION
    assert reply.failed.text == (
        f"the worker is ggrun {__version__} (protocol {PROTOCOL}), the client ggrun 0.0.7 "
        f"(protocol {version}): update {update}"
    )
    worker.wait_for(re.escape(f"refused: {reply.failed.text}"))


def test_malformed_handshakes(start: Start) -> None:
    worker = start("--insecure")
    hello = pb.Request(hello=pb.Hello(protocol=PROTOCOL))
    wrong = [
        [pb.Request()],
        [pb.Request(ping=pb.Ping())],
        [hello, hello],
        [hello, pb.Request()],
        [hello, pb.Request(open=pb.Open())],
        [hello, pb.Request(forward=pb.Forward())],
        [hello, pb.Request(chunk=pb.Chunk())],
        [hello, pb.Request(reset=pb.Reset())],
        [hello, pb.Request(invite=pb.Invite())],
        [hello, pb.Request(handoff=pb.Handoff())],
        [hello, pb.Request(ping=pb.Ping(ballast=bytes(2 << 20)))],
    ]
    for requests in wrong:
        *_, last = answers(worker.port, *requests)
        assert last.HasField("failed"), requests
        assert last.failed.run == 0
        assert len(last.failed.text.splitlines()) == 1
    for raw in (b"\xff" * 50, b"\x0a\xff", b""):
        with socket.create_connection(("127.0.0.1", worker.port)) as sock:
            sock.sendall(raw)
    with grpc.insecure_channel(worker.address) as channel:
        call = channel.stream_stream("/ggrun.Worker/Session")
        (reply,) = call(iter([b"\xff\xff\xff"]), timeout=PATIENCE)
    assert pb.Reply.FromString(reply).failed.text == "what came is no message of ggrun"
    assert devices(connect(worker.address, insecure=1)) == [worker.device()]
    assert "Traceback" not in worker.text


def test_a_client_that_says_nothing_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "FIRST_WORD", 0.5)
    monkeypatch.setattr(server, "_LOOK", 0.05)
    device = DeviceInfo("cpu:0:1GB", 1 << 30, 1 << 30, 1e9, 1e9, 1e9)
    options = WorkerOptions(port=0, cache_dir=tmp_path, cache_size=0, insecure=1)
    there = open_worker(options, [device], None)
    with closing(there), grpc.insecure_channel(f"127.0.0.1:{there.port}") as to:
        method = "/ggrun.Worker/Session"
        call = to.stream_stream(method, pb.Request.SerializeToString, pb.Reply.FromString)
        over = threading.Event()

        def nothing() -> Iterator[pb.Request]:
            over.wait(PATIENCE)
            yield pb.Request()

        begun = time.monotonic()
        with caplog.at_level(logging.WARNING):
            assert list(call(nothing(), timeout=PATIENCE)) == []
        assert time.monotonic() - begun > 0.5
        over.set()
    assert re.search(r"silent for \d+ seconds", caplog.text)
