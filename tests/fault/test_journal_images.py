"""A journal whose base is a qcow2 image behind a real qemu-nbd, also when that is killed during a fold."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secondsite.cli.journal import app
from secondsite.errors import SecondSiteError
from secondsite.journal import Base, BaseSpec, Journal
from secondsite.model.ids import Epoch, Sequence
from secondsite.model.policy import Policy
from secondsite.nbd.image import base_opener, stop_shared
from support.journals import KEY, START, VDA, Model

pytestmark = [pytest.mark.integration, pytest.mark.fault]

SIZE = 8 << 20
KEEP_2 = Policy(retention_points=2)
NOW = START + timedelta(hours=1)


class Reversed:
    """A journal adopted on a qcow2 image, with some points."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.image = folder / "vda.qcow2"
        self.model = Model({VDA: SIZE})
        old = self.model.create(folder / "old")
        self.model.replicate_initially(old, {VDA: [(0, os.urandom(65536)), (4 << 20, os.urandom(200_704))]})
        self.model.seal(old, {})
        raw = folder / "vda.raw"
        raw.write_bytes(self.model.contents[1][VDA])
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, self.image],
            check=True,
            capture_output=True,
        )
        with old.view(purpose="test") as view:
            old.digests_at(view, VDA, folder / "vda.tbl")
        self.path = folder / "new"
        self.model.epoch = Epoch(2)
        self.journal = Journal.adopt(
            self.path,
            manifest=old.manifest().to_bytes(),
            epoch=Epoch(2),
            key=KEY,
            images={VDA: self.image},
            tables={VDA: folder / "vda.tbl"},
            open_base=base_opener(self.run_dir),
        )
        old.close()
        for number in range(1, 5):
            self.model.seal(
                self.journal,
                {VDA: [(number * 8192, os.urandom(4096)), (number << 20, os.urandom(512)), (5 << 20, 65536)]},
            )

    def server(self) -> int:
        (pid,) = self.run_dir.glob("*.pid")
        return int(json.loads(pid.read_text())["pid"])


@pytest.fixture
def turned(short_path: Path) -> Iterator[Reversed]:
    if shutil.which("qemu-nbd") is None:
        pytest.fail("qemu-nbd is needed")
    side = Reversed(short_path)
    try:
        yield side
    finally:
        side.journal.close()
        stop_shared(side.image, side.run_dir)


def test_points_on_an_image_are_folded_read_and_extracted(turned: Reversed, short_path: Path) -> None:
    turned.model.check(turned.journal, verify=True)
    assert list(turned.journal.verify()) == []
    assert turned.journal.maintain(KEEP_2, NOW).folded_to == 4
    turned.model.check(turned.journal, verify=True)
    assert list(turned.journal.verify()) == []
    turned.journal.close()
    stop_shared(turned.image, turned.run_dir)
    output = short_path / "out.raw"
    done = CliRunner().invoke(app, ["extract", str(turned.path), "--disk", "vda", "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert output.read_bytes() == turned.model.contents[5][VDA]


def test_a_fold_whose_image_server_is_killed_is_repeated(turned: Reversed) -> None:
    opened = base_opener(turned.run_dir)
    killed = []

    class Fragile:
        """Kills the server after some writes, as a node that runs out of memory might."""

        def __init__(self, base: Base) -> None:
            self._base = base

        def __getattr__(self, name: str) -> object:
            return getattr(self._base, name)

        def write(self, offset: int, data: bytes) -> None:
            self._base.write(offset, data)
            if not killed:
                killed.append(turned.server())
                os.kill(killed[0], signal.SIGKILL)

    def fragile(spec: BaseSpec, writable: bool) -> Base:
        base = opened(spec, writable)
        return Fragile(base) if writable else base  # type: ignore[return-value]

    turned.journal.close()
    turned.journal = Journal.open(turned.path, writable=True, open_base=fragile)
    try:
        turned.journal.maintain(KEEP_2, NOW)
    except SecondSiteError as error:
        assert error.retry.value == "later", error  # noqa: PT017 - it may also succeed at once
    assert killed
    with Journal.open(turned.path, writable=False, open_base=opened) as reader:
        for sequence in (4, 5):
            with reader.view(Sequence(sequence), purpose="test") as view:
                assert view.disks[VDA].read(0, SIZE) == turned.model.contents[sequence][VDA]
    turned.journal.maintain(KEEP_2, NOW)
    assert turned.journal.status().base == 4
    turned.model.check(turned.journal, verify=True)
    assert list(turned.journal.verify()) == []
