"""Files and folders appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from edgeseq_runtime.atomic import publish_directory, recover, write_file


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["weights.bin"]


def test_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_file(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_full_disk_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.bin"
    write_file(path, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"weights\.bin: the disk or quota is full; free 3 bytes in"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["weights.bin"]


def test_other_failures_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "absent" / "file", b"")


def test_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "en-de.bundle"
    with publish_directory(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_bytes(b"content")
        assert folder.parent == tmp_path
        assert not target.exists()
    assert (target / "inner" / "file").read_bytes() == b"content"
    assert names_in(tmp_path) == ["en-de.bundle"]


@pytest.mark.parametrize("failure", [ValueError("bad"), KeyboardInterrupt()])
def test_failed_block_leaves_everything_as_it_was(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "en-de.bundle"
    target.mkdir()
    (target / "old").touch()

    def fill() -> None:
        with publish_directory(target) as folder:
            (folder / "half").touch()
            raise failure

    with pytest.raises(type(failure)):
        fill()
    assert names_in(tmp_path) == ["en-de.bundle"]
    assert names_in(target) == ["old"]


def test_existing_folder_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "en-de.bundle"
    target.mkdir()
    (target / "old").touch()
    with publish_directory(target) as folder:
        (folder / "new").touch()
    assert names_in(target) == ["new"]
    assert names_in(tmp_path) == ["en-de.bundle"]


def test_old_folder_returns_when_the_new_one_cannot_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "en-de.bundle"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename

    def refuse_new(self: Path, to: Path) -> Path:
        if self.suffix == ".tmp":
            raise PermissionError(errno.EACCES, "refused")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(PermissionError, match="refused"), publish_directory(target):
        pass
    assert names_in(tmp_path) == ["en-de.bundle"]
    assert names_in(target) == ["old"]


def test_what_killed_processes_left_is_put_in_order(tmp_path: Path) -> None:
    """One died between the two renames of a folder, one after them, others while they wrote."""
    for name in (".lost.00112233aabb.old", ".replaced.00112233aabb.old", "replaced", ".half.00112233aabb.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}").touch()
    (tmp_path / ".file.00112233aabb.tmp").write_bytes(b"half")
    recover(tmp_path)
    assert sorted(names_in(tmp_path)) == ["lost", "replaced"]
    assert names_in(tmp_path / "lost") == ["of .lost.00112233aabb.old"]
    assert names_in(tmp_path / "replaced") == ["of replaced"]


def test_hidden_files_of_others_stay(tmp_path: Path) -> None:
    names = [".notes.tmp", ".env.old", ".venv.old", ".a.0a1b.tmp", "b.00112233aabb.tmp", ".c.00112233aabb.bak"]
    for name in names[:2]:
        (tmp_path / name).write_text("mine", encoding="utf-8")
    for name in names[2:]:
        (tmp_path / name).mkdir()
    recover(tmp_path)
    assert sorted(names_in(tmp_path)) == sorted(names)


def test_names_are_those_that_are_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed cleans nothing up."""
    for method in ("unlink", "replace"):
        monkeypatch.setattr(Path, method, lambda *_, **__: None)
    write_file(tmp_path / "weights.bin", b"whole")
    monkeypatch.undo()
    assert [name for name in names_in(tmp_path) if name.startswith(".weights.bin.")] == names_in(tmp_path) != []
    recover(tmp_path)
    assert names_in(tmp_path) == []


def test_folder_of_others_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with (
        pytest.raises(FileExistsError, match="holds something else, so it is not replaced: choose another name"),
        publish_directory(tmp_path, is_ours=lambda _: False),
    ):
        pytest.fail("the block must not run")
    assert names_in(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("content", ["manifest.json", None])
def test_own_and_empty_folders_are_replaced(tmp_path: Path, content: str | None) -> None:
    """Control of the test above: our own folders are let through, and empty ones are not asked about."""
    target = tmp_path / "en-de.bundle"
    target.mkdir()
    if content:
        (target / content).touch()
    with publish_directory(target, is_ours=lambda folder: (folder / "manifest.json").exists()) as folder:
        (folder / "new").touch()
    assert names_in(target) == ["new"]


def test_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(FileExistsError, match="file is a file, expected a folder or nothing"),
        publish_directory(tmp_path / "file"),
    ):
        pytest.fail("the block must not run")


def test_file_does_not_take_the_place_of_a_pipe_or_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match=f"{name} is a folder, device or pipe, expected a file"):
            write_file(tmp_path / name, b"content")
    assert sorted(names_in(tmp_path)) == ["folder", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_the_disk_that_is_full_is_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be filled by way of files elsewhere, on another disk."""
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "disk" / "en-de.bundle"
    elsewhere.mkdir()
    target.parent.mkdir()

    def fill(file: Path | None) -> None:
        with publish_directory(target) as folder:
            write_file(file or folder / "block_1.onnx", b"content")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=rf"cannot write {elsewhere}/block_1\.onnx: .* free 7 bytes in {elsewhere} and"):
        fill(elsewhere / "block_1.onnx")
    # Its temporary name would tell nobody where.
    with pytest.raises(OSError, match=rf"cannot write {target}: .* free more space in {target.parent} and"):
        fill(None)
    assert names_in(target.parent) == []


def test_full_disk_while_filling_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with (
        pytest.raises(OSError, match="the disk or quota is full; free more space in"),
        publish_directory(tmp_path / "b") as folder,
    ):
        (folder / "file").touch()
    assert names_in(tmp_path) == []
