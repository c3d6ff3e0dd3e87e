"""Kerberos without a KDC: names, bindings, and what is said where gssapi is missing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from secondsite.errors import InvalidInputError, UnsupportedError
from secondsite.model.ids import NodeId
from secondsite.ship.identity import CertificateAuthority
from secondsite.ship.kerberos import KerberosAcceptor, channel_binding, load_gssapi, parse_principal


@pytest.mark.parametrize("text", ["HTTP/host.example@EXAMPLE", "host-1$@AD.EXAMPLE.ORG", "a@B"])
def test_a_principal_has_a_name_and_a_realm(text: str) -> None:
    assert parse_principal(text) == text


@pytest.mark.parametrize(
    "text", ["", "HTTP/host", "@EXAMPLE", "a b@C", "a@", "a\n@B", None, 5, "a@" + "B" * 600]
)
def test_what_has_no_realm_is_no_principal(text: object) -> None:
    with pytest.raises(InvalidInputError):
        parse_principal(text)


def test_a_missing_gssapi_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gssapi", None)
    acceptor = KerberosAcceptor("HTTP/a@B", tmp_path / "keytab", lambda _: NodeId("n"), tmp_path / "replay")
    for call in (load_gssapi, acceptor.check):
        with pytest.raises(UnsupportedError) as caught:
            call()
        assert "python3-gssapi" in caught.value.hint


def test_a_node_without_kerberos_does_not_load_gssapi() -> None:
    code = "import sys; sys.modules['gssapi'] = None; import secondsite.node.daemon, secondsite.ship.kerberos"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_binding_is_that_of_rfc_5929(tmp_path: Path) -> None:
    credentials = CertificateAuthority.create("vault").issue_credentials(NodeId("node"), tmp_path)
    der = credentials.der
    assert channel_binding(der) == b"tls-server-end-point:" + hashlib.sha256(der).digest()
