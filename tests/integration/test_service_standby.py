"""A standby that could not stand in is refused before it is needed; one that can waits until it is told to stop."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.errors import ConflictError
from secondsite.service.daemon import Options, Service, init
from secondsite.ship.identity import CertificateAuthority
from support.patience import wait_until
from support.private_postgres import PrivatePostgres

pytestmark = pytest.mark.integration
STANDBY = Options(("127.0.0.1", 0), ("127.0.0.1", 0), standby=True)


@pytest.fixture
def postgres() -> Iterator[PrivatePostgres]:
    server = PrivatePostgres()
    yield server
    server.close()


def test_a_copy_without_the_vaults_authority_is_refused_at_once(
    tmp_path: Path, postgres: PrivatePostgres
) -> None:
    init(tmp_path / "one", "test", postgres.new_database())
    (tmp_path / "two" / "ca").mkdir(parents=True)
    shutil.copy(tmp_path / "one" / "settings.json", tmp_path / "two")
    other = CertificateAuthority.create("other")
    other.save(tmp_path / "two" / "ca" / "ca.pem", tmp_path / "two" / "ca" / "ca.key")
    for options in (STANDBY, Options(("127.0.0.1", 0), ("127.0.0.1", 0))):
        with pytest.raises(ConflictError, match="another authority"):
            Service(tmp_path / "two", options).start()


def test_a_standby_that_is_told_to_stop_has_started_nothing(
    tmp_path: Path, postgres: PrivatePostgres
) -> None:
    init(tmp_path / "one", "test", postgres.new_database())
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    active, standby = Service(tmp_path / "one", STANDBY), Service(tmp_path / "two", STANDBY)
    active.start()
    thread = threading.Thread(target=standby.start)
    thread.start()
    wait_until((tmp_path / "two" / "standby.json").exists)
    standby.stopping.set()
    thread.join(20)
    assert not thread.is_alive()
    assert standby.addresses == {}
    standby.stop()
    assert not (tmp_path / "two" / "standby.json").exists()
    active.stop()
