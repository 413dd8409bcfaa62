"""A file on a server is read to its end whatever happens to connections, and never silently less or another one."""

from __future__ import annotations

import datetime
import io
import os
import random
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from isr_dpo.data.fetch import http
from isr_dpo.data.fetch.http import HttpFile
from isr_dpo.errors import DataError, OutsideError, StoreError
from tests.servers.file_server import Asked, Manner, Served, file_server

CONTENT = bytes(range(256)) * 4000


def read(url: str, *, token: str | None = None, size: int | None = None, attempts: int = 4) -> bytes:
    with HttpFile(url, token=token, size=size, attempts=attempts) as raw:
        return io.BufferedReader(raw, 100_000).read()


def read_from(manner: Callable[[Asked, int], Manner], **options: int) -> tuple[bytes, Served]:
    with file_server({"/a.tar": CONTENT}, manner) as server:
        return read(f"{server.url}/a.tar", **options), server


def test_a_cut_stream_goes_on_by_range_where_it_was() -> None:
    content, server = read_from(lambda asked, n: Manner(cut=300_000 if n < 3 else None))
    assert content == CONTENT
    starts = [int(asked.headers["range"].removeprefix("bytes=").rstrip("-")) for asked in server.asked[1:]]
    assert starts == sorted(set(starts))
    assert 0 < starts[0] <= 300_000
    assert len(starts) == 3
    assert all(asked.headers["if-range"].startswith('"') for asked in server.asked[1:])


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_cut_and_answered_the_bytes_are_the_files(seed: int) -> None:
    draws = random.Random(seed)
    unwell = [Manner(status=429, headers={"Retry-After": "0"}), Manner(status=500), Manner(cut=0)]

    def manner(asked: Asked, n: int) -> Manner:
        if n % 3 == 2:
            return draws.choice(unwell)
        return Manner(cut=draws.randint(1, 400_000), ranges=draws.random() < 0.8)

    content, server = read_from(manner, attempts=12)
    assert content == CONTENT
    assert len(server.asked) > 3


def test_without_range_what_was_read_is_skipped() -> None:
    content, server = read_from(lambda asked, n: Manner(cut=300_000 * (n + 1) if n < 3 else None, ranges=False))
    assert content == CONTENT
    assert len(server.asked) == 4


def test_a_server_that_cuts_at_the_same_byte_is_given_up() -> None:
    with pytest.raises(OutsideError, match=r"a.tar: .*, 4 times at byte 300000; run again when the server is well"):
        read_from(lambda asked, n: Manner(cut=300_000, ranges=False))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again(status: int) -> None:
    content, server = read_from(lambda asked, n: Manner(status=status) if n in (0, 1) else Manner())
    assert content == CONTENT
    assert len(server.asked) == 3
    with pytest.raises(OutsideError, match=f"the server answers {status}, 4 times at byte 0"):
        read_from(lambda asked, n: Manner(status=status))


def test_the_servers_own_hint_is_waited_for() -> None:
    started = time.monotonic()
    read_from(lambda asked, n: Manner(status=429, headers={"Retry-After": "1"}) if n == 0 else Manner())
    assert time.monotonic() - started >= 1


def test_fewer_bytes_than_announced_are_a_cut() -> None:
    with pytest.raises(OutsideError, match="at byte 1024000"):
        read_from(lambda asked, n: Manner(length=len(CONTENT) + 10, tag=None, ranges=False))


def test_a_file_of_another_size_than_listed_is_refused() -> None:
    with pytest.raises(DataError, match=r"a.tar: has 1024000 bytes instead of 7"):
        read_from(lambda asked, n: Manner(), size=7)


def test_a_file_that_changes_meanwhile_is_not_joined_to_what_was_read() -> None:
    def manner(asked: Asked, n: int) -> Manner:
        return Manner(cut=300_000, tag='"one"') if n == 0 else Manner(tag='"two"')

    with pytest.raises(OutsideError, match="changed while it was read; run again"):
        read_from(manner)


@pytest.mark.parametrize(
    ("status", "error"), [(401, StoreError), (403, StoreError), (404, DataError), (400, DataError)]
)
def test_a_refusal_is_not_asked_again(status: int, error: type[Exception]) -> None:
    with file_server({"/a.tar": CONTENT}, lambda asked, n: Manner(status=status)) as server:
        with pytest.raises(error, match=f"{server.url}/a.tar"):
            read(f"{server.url}/a.tar?signature=secret")
        assert len(server.asked) == 1


def test_a_server_that_hangs_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_TIMEOUT", 1.0)

    def manner(asked: Asked, n: int) -> Manner:
        time.sleep(4.0 if n == 0 else 0.0)
        return Manner()

    content, server = read_from(manner)
    assert content == CONTENT
    assert len(server.asked) >= 2  # more where the machine itself is as slow


def test_nobody_listens() -> None:
    with file_server({}) as server:
        gone = server.url
    with pytest.raises(OutsideError, match=r"refused.*4 times"):
        read(f"{gone}/a.tar")


def test_a_token_goes_to_its_own_host_alone() -> None:
    def to(target: str) -> Callable[[Asked, int], Manner]:
        return lambda asked, n: Manner(status=302, headers={"Location": target}, body=b"")

    with file_server({"/stored": CONTENT}) as storage, file_server({}, to(f"{storage.url}/stored?sig=x")) as hub:
        assert read(f"{hub.url}/a.tar", token="secret") == CONTENT
        assert hub.asked[0].headers["authorization"] == "Bearer secret"
        assert "authorization" not in storage.asked[0].headers
    with file_server({"/b": CONTENT}, lambda a, n: to("/b")(a, n) if a.path == "/a.tar" else Manner()) as same:
        assert read(f"{same.url}/a.tar", token="secret") == CONTENT
        assert same.asked[1].headers["authorization"] == "Bearer secret"


def test_redirects_without_end_are_refused() -> None:
    with pytest.raises(DataError, match="more than 5 redirects"):
        read_from(lambda asked, n: Manner(status=302, headers={"Location": "/a.tar"}, body=b""))


def test_no_proxy_is_asked_for_loopback_and_one_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    with file_server({}, lambda asked, n: Manner(body=b"by proxy")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert read("http://data.example/a.tar") == b"by proxy"
        assert proxy.asked[0].path == "http://data.example/a.tar"
        with file_server({"/a.tar": b"direct"}) as server:
            assert read(f"{server.url}/a.tar") == b"direct"


def test_a_forked_process_has_connections_of_its_own() -> None:
    assert http._pool(os.getpid(), None) is http._pool(os.getpid(), None)
    assert http._pool(os.getpid(), None) is not http._pool(-1, None)


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An https server, and the certificate that it made for itself; it redirects to plain http."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    kind, form, none = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(kind))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(kind, form, none))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    to_http = Manner(status=302, headers={"Location": "http://127.0.0.1:9/a.tar"}, body=b"")
    files = {"/a.tar": CONTENT}
    with file_server(files, lambda a, n: to_http if "plain" in a.path else Manner(), tls=context) as server:
        yield server.url.replace("http://127.0.0.1", "https://localhost"), tmp_path / "cert.pem"


def test_a_certificate_must_be_trusted(secure: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    url, certificate = secure
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"its certificate is not trusted .*SSL_CERT_FILE"):
        read(f"{url}/a.tar", token="secret")
    assert time.monotonic() - started < 60
    http._pool.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert read(f"{url}/a.tar", token="secret") == CONTENT
    with pytest.raises(StoreError, match=r"redirects from https to http://127.0.0.1:9/a.tar; refused"):
        read(f"{url}/plain")
    http._pool.cache_clear()
