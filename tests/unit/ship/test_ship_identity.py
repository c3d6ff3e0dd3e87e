"""The authority issues what it should and nothing else."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from secondsite.errors import CorruptError, InvalidInputError, UnauthenticatedError
from secondsite.model.ids import NodeId
from secondsite.ship.identity import (
    CaOnly,
    CertificateAuthority,
    Credentials,
    ca_fingerprint,
    make_key_and_csr,
    node_id_of,
    parse_node_id,
    peer_certificate,
)

NODE = NodeId("6f1c9f0e-1111-4222-8333-123456789abc")


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("test vault")


def der_of(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def test_issued_certificate_names_its_node_and_addresses(authority: CertificateAuthority) -> None:
    _, csr = make_key_and_csr("whatever")
    pem = authority.issue(csr, NODE, names=["host.example.org", "192.0.2.7", "::1", "localhost"])
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NODE, "host.example.org", "localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "::1"]
    assert node_id_of(pem) == NODE
    assert peer_certificate(der_of(pem)).serial == certificate.serial_number


@pytest.mark.parametrize("name", ["other-node", "service", "*.example.org", "a b.example", "", "x..y"])
def test_name_that_could_be_another_node_is_refused(authority: CertificateAuthority, name: str) -> None:
    _, csr = make_key_and_csr("n")
    with pytest.raises(InvalidInputError):
        authority.issue(csr, NODE, names=[name])


def test_names_in_the_request_are_ignored(authority: CertificateAuthority) -> None:
    _, csr = make_key_and_csr("service")
    assert node_id_of(authority.issue(csr, NODE)) == NODE


def test_request_with_a_broken_signature_is_refused(authority: CertificateAuthority) -> None:
    _, csr = make_key_and_csr("n")
    der = bytearray(x509.load_pem_x509_csr(csr).public_bytes(Encoding.DER))
    der[-1] ^= 1
    forged = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    with pytest.raises(InvalidInputError):
        authority.issue(forged.encode(), NODE)


@given(st.binary(max_size=200))
def test_garbage_is_no_request(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        CertificateAuthority.create("x").issue(data, NODE)


@pytest.mark.parametrize("text", ["", "UPPER", "a.b", "-a", "a-", "a_b", "localhost", "x" * 64, None, 7])
def test_bad_node_ids_are_refused(text: object) -> None:
    with pytest.raises(InvalidInputError):
        parse_node_id(text)


def test_authority_is_read_back_and_its_key_is_private(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    cert, key = tmp_path / "ca.pem", tmp_path / "ca.key"
    authority.save(cert, key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    again = CertificateAuthority.load(cert, key)
    assert again.fingerprint == authority.fingerprint == ca_fingerprint(cert.read_bytes())
    assert len(again.fingerprint) == 64
    _, csr = make_key_and_csr("n")
    assert node_id_of(again.issue(csr, NODE)) == NODE


def test_key_of_another_authority_is_refused(authority: CertificateAuthority, tmp_path: Path) -> None:
    authority.save(tmp_path / "a.pem", tmp_path / "a.key")
    CertificateAuthority.create("b").save(tmp_path / "b.pem", tmp_path / "b.key")
    with pytest.raises(CorruptError):
        CertificateAuthority.load(tmp_path / "a.pem", tmp_path / "b.key")


def test_credentials_say_when_they_expire(authority: CertificateAuthority, tmp_path: Path) -> None:
    credentials = authority.issue_credentials(NODE, tmp_path, validity=timedelta(days=90))
    now = datetime.now(UTC)
    assert credentials.node == NODE
    assert abs(credentials.not_after - now - timedelta(days=90)) < timedelta(minutes=1)
    assert not credentials.renewal_due(now + timedelta(days=59))
    assert credentials.renewal_due(now + timedelta(days=61))
    assert stat.S_IMODE(credentials.key_file.stat().st_mode) == 0o600


def test_own_expired_certificate_gives_a_clear_error(tmp_path: Path) -> None:
    past = CertificateAuthority.create("v", clock=lambda: datetime(2020, 1, 1, tzinfo=UTC))
    credentials = past.issue_credentials(NODE, tmp_path)
    with pytest.raises(UnauthenticatedError, match=r"expired at 2021-02-01") as caught:
        credentials.client_context()
    assert "enrol" in caught.value.hint


def test_key_that_does_not_fit_the_certificate_is_refused(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    one = authority.issue_credentials(NODE, tmp_path / "1")
    two = authority.issue_credentials(NODE, tmp_path / "2")
    with pytest.raises(CorruptError):
        Credentials(one.cert_file, two.key_file, one.ca_file).client_context()


def test_missing_files_are_a_typed_error(authority: CertificateAuthority, tmp_path: Path) -> None:
    credentials = authority.issue_credentials(NODE, tmp_path)
    credentials.key_file.unlink()
    with pytest.raises(CorruptError):
        credentials.server_context()
    credentials.cert_file.unlink()
    with pytest.raises(CorruptError):
        credentials.client_context()


def test_certificate_without_a_node_is_refused(authority: CertificateAuthority) -> None:
    with pytest.raises(UnauthenticatedError):
        peer_certificate(der_of(authority.pem))


def test_trust_in_garbage_is_refused() -> None:
    with pytest.raises(CorruptError):
        CaOnly(b"no certificate").client_context()


def test_contexts_speak_tls_1_3_only(authority: CertificateAuthority, tmp_path: Path) -> None:
    credentials = authority.issue_credentials(NODE, tmp_path)
    for context in (credentials.server_context(), credentials.client_context()):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
