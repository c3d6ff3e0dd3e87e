"""`secondsite journal ls, verify, extract` with nothing but a folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from secondsite.cli.journal import app
from secondsite.errors import ConflictError, NotFoundError
from secondsite.journal.extract import extract_disk
from secondsite.model.ids import DiskKey, Sequence
from support.journals import ITEM, VDA, VDB, VM, Model, filled


@pytest.fixture
def store(tmp_path: Path) -> tuple[Model, Path]:
    model, journal = filled(tmp_path / "store" / ITEM, points=4)
    journal.close()
    return model, tmp_path / "store"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_ls_lists_items_and_points(store: tuple[Model, Path]) -> None:
    _, folder = store
    items = json.loads(run("ls", folder, "--json").stdout)["items"]
    assert [(item["item"], item["name"], item["count"]) for item in items] == [(ITEM, "web", 4)]
    listed = json.loads(run("ls", folder / ITEM, "--json").stdout)
    assert [point["sequence"] for point in listed["points"]] == [1, 2, 3, 4]
    assert listed["disks"] == {"vda": 65536, "vdb": 22528}
    assert "web" in run("ls", folder).stdout
    assert "2026-01-01T00:04:00" in run("ls", folder / ITEM).stdout


def test_commands_fail_on_a_folder_without_a_journal(tmp_path: Path) -> None:
    for command in (["ls"], ["verify"], ["extract", "--output", tmp_path / "o"]):
        for folder in (tmp_path, tmp_path / "none"):
            assert run(command[0], folder, *command[1:]).exit_code > 1


def test_verify_tells_sound_from_damaged(store: tuple[Model, Path]) -> None:
    _, folder = store
    assert run("verify", folder).exit_code == 0
    base = folder / ITEM / "base" / "vda.raw"
    base.write_bytes(b"?" + base.read_bytes()[1:])
    done = run("verify", folder / ITEM, "--json")
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    assert result["sound"] is False
    (finding,) = result["journals"][0]["findings"]
    assert (finding["disk"], finding["offset"]) == ("vda", 0)
    assert "vda" in run("verify", folder).stdout


def test_a_journal_that_lost_its_description_is_damaged_not_absent(store: tuple[Model, Path]) -> None:
    _, folder = store
    (folder / ITEM / "journal.json").unlink()
    done = run("verify", folder, "--json")
    assert done.exit_code == 1
    assert "journal.json" in json.loads(done.stdout)["journals"][0]["findings"][0]["what"]
    assert json.loads(run("ls", folder, "--json").stdout)["items"][0]["damage"]["code"] == "not_found"


def test_extract_writes_one_disk_of_a_point(store: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = store
    output = tmp_path / "vda.raw"
    done = run("extract", folder, "--disk", "vda", "--sequence", 2, "--output", output, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["point"]["sequence"] == 2
    assert output.read_bytes() == model.contents[2][VDA]
    assert run("extract", folder, "--disk", "vda", "--output", output).exit_code == 3
    assert output.read_bytes() == model.contents[2][VDA]


def test_extract_chooses_a_point_by_time(store: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = store
    for number, (time, expected) in enumerate(
        {"2026-01-01T00:03:30Z": 3, "2026-01-01T01:02:00+01:00": 2, "2026-01-01T00:04": 4}.items()
    ):
        output = tmp_path / f"{number}.raw"
        done = run("extract", folder, "--disk", "vdb", "--time", time, "--output", output)
        assert done.exit_code == 0, done.output
        assert output.read_bytes() == model.contents[expected][VDB]
    for wrong in (["--time", "2025-01-01T00:00:00Z"], ["--time", "soon"], ["--time", "x", "--sequence", 1]):
        done = run("extract", folder, "--disk", "vdb", *wrong, "--output", tmp_path / "no")
        assert done.exit_code > 1
    assert not (tmp_path / "no").exists()


def test_extract_writes_all_disks_and_the_definition(store: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = store
    assert run("extract", folder, "--output", tmp_path / "all").exit_code == 0
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert names == {"vda.raw", "vdb.raw", "manifest.json", "definition"}
    assert (tmp_path / "all" / "vdb.raw").read_bytes() == model.contents[4][VDB]
    assert (tmp_path / "all" / "definition").read_text() == VM.text
    assert run("extract", folder, "--disk", "sda", "--output", tmp_path / "no").exit_code == 2


def test_extract_of_a_damaged_journal_leaves_nothing(store: tuple[Model, Path], tmp_path: Path) -> None:
    _, folder = store
    base = folder / ITEM / "base" / "vdb.raw"
    data = bytearray(base.read_bytes())
    data[20480] ^= 4
    base.write_bytes(data)
    done = run("extract", folder, "--output", tmp_path / "all", "--sequence", 1, "--json")
    assert done.exit_code == 1
    error = json.loads(done.stderr)["error"]
    assert error["code"] == "corrupt"
    assert (error["attributes"]["point"], error["attributes"]["disk"]) == (1, "vdb")
    assert error["attributes"]["offset"] == 20480
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_extract_converts_to_qcow2(store: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = store
    done = run("extract", folder, "--disk", "vda", "--format", "qcow2", "--output", tmp_path / "vda.qcow2")
    assert done.exit_code == 0, done.output
    raw = tmp_path / "back.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", tmp_path / "vda.qcow2", raw], check=True)
    assert raw.read_bytes() == model.contents[4][VDA]
    assert {path.name for path in tmp_path.iterdir()} == {"store", "vda.qcow2", "back.raw"}


def test_each_command_shows_an_example() -> None:
    for command in ("ls", "verify", "extract"):
        assert "Example: secondsite journal" in run(command, "--help").stdout.replace("\n", " ")


def test_an_extracted_image_is_sparse(tmp_path: Path) -> None:
    model = Model({VDA: 64 << 20})
    journal = model.create(tmp_path / "j")
    model.replicate_initially(journal, {VDA: [(32 << 20, b"x" * 8192)]})
    model.seal(journal, {})
    model.seal(journal, {VDA: [(0, bytes(1 << 20)), (1 << 20, 1 << 20)]})
    done: list[tuple[int, int]] = []
    with journal.view(purpose="extract", verify=True) as view:
        extract_disk(view, VDA, tmp_path / "out", progress=lambda at, size: done.append((at, size)))
        assert (tmp_path / "out").stat().st_blocks * 512 <= 65536
        assert (tmp_path / "out").stat().st_size == 64 << 20
        assert done[-1] == (64 << 20, 64 << 20)
        with pytest.raises(ConflictError):
            extract_disk(view, VDA, tmp_path / "out")
        with pytest.raises(NotFoundError):
            extract_disk(view, DiskKey("vdz"), tmp_path / "other")
        with pytest.raises(NotFoundError):
            extract_disk(view, VDA, tmp_path / "no" / "folder")
    assert model.sequence == Sequence(2)
