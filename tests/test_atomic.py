"""Files and folders come into being whole, whatever happens to those who write them."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_foundry import atomic
from lit_foundry.atomic import naming, replacing
from tests.conftest import full_disk


def write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_folder(path: Path, **files: str) -> None:
    with replacing(path) as partial:
        partial.mkdir()
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")


def read(folder: Path) -> dict[str, str]:
    """Return the content of all files below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in files}


def test_a_file_and_a_folder_take_the_place_of_older_ones(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write(tmp_path / "new" / "file", text)
        write_folder(tmp_path / "new" / "folder", **{text: text})
    assert read(tmp_path) == {"new/file": "two", "new/folder/two": "two"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"file", "folder"}


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    write(tmp_path / "file", "old")
    write_folder(tmp_path / "folder", a="old")
    for name in ("file", "folder", "new/file"):
        with pytest.raises(TypeError):
            write_folder(tmp_path / name, b="new", c=None)  # type: ignore[arg-type]
    assert read(tmp_path) == {"file": "old", "folder/a": "old"}
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_file_is_no_place_for_a_folder_and_the_other_way_round(tmp_path: Path, name: str) -> None:
    write(tmp_path / "file", "old")
    write_folder(tmp_path / "folder", a="old")
    wrong: Any = {"file": write_folder, "folder": lambda path: write(path, "new")}[name]
    with pytest.raises(OSError, match="irectory") as caught:
        wrong(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)
    assert read(tmp_path) == {"file": "old", "folder/a": "old"}


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    for name, kind in (("file", write), ("folder", write_folder)):
        (tmp_path / f"link to {name}").symlink_to(tmp_path / "elsewhere" / name)
        for _ in range(2):
            kind(tmp_path / f"link to {name}", **{"text": "new"})
    assert read(tmp_path / "elsewhere") == {"file": "new", "folder/text": "new"}
    assert (tmp_path / "link to folder").is_symlink()


# Writes a part and says so, for the test to end it there.
PART = """
import sys
from pathlib import Path
from lit_foundry.atomic import replacing
with replacing(Path(sys.argv[1])) as partial:
    partial.write_text("half", encoding="utf-8")
    print("written", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PART, str(tmp_path / "theirs")]
    living, killed = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in "ab"
    )
    try:
        for process in (living, killed):
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(list(tmp_path.glob(".partial-*"))) == 2
        write(tmp_path / "ours", "whole")
        assert len(list(tmp_path.glob(".partial-*"))) == 1
        living.communicate()
    finally:
        for process in (living, killed):
            process.kill()
            process.communicate()
    assert living.returncode == 0
    assert read(tmp_path) == {"ours": "whole", "theirs": "half"}


def test_a_folder_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    """A process killed between the two renames that replace a folder leaves it aside."""
    aside = tmp_path / ".partial-killed" / atomic.OLD
    write_folder(aside / "export", a="old")
    write(tmp_path / "other", "text")
    assert read(tmp_path) == {"export/a": "old", "other": "text"}


@pytest.mark.parametrize(
    "fail",
    [
        lambda path: path.write_text("too much", encoding="utf-8"),
        lambda path: os.mkdir(path / "nowhere"),
        lambda path: os.open("/proc/nothing", os.O_CREAT | os.O_WRONLY),
    ],
    ids=["full", "below a file", "elsewhere"],
)
def test_an_error_names_the_file_unless_it_names_another(
    tmp_path: Path, fail: Callable[[Path], Any]
) -> None:
    with pytest.raises(OSError, match="/") as caught, full_disk(), replacing(tmp_path / "a") as new:
        fail(new)
    assert caught.value.filename in (str(tmp_path / "a"), "/proc/nothing")
    assert not list(tmp_path.iterdir())


def as_torch_does() -> None:
    try:
        raise OSError(errno.ENOSPC, "full")
    except OSError:
        raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904


def as_rust_does() -> None:
    raise Exception("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fail", [as_torch_does, as_rust_does])
def test_errors_of_the_disk_are_found_behind_those_of_libraries(fail: Callable[[], None]) -> None:
    with pytest.raises(OSError, match="a file") as caught, naming(Path("a file")):
        fail()
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    "error", [ValueError("x.json: not found (os error 2). Name another."), RuntimeError("another")]
)
def test_other_errors_are_left_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=r"another|Name another"), naming(Path("a file")):
        raise error


def test_a_read_only_disk_is_named(read_only: Path) -> None:
    for path in (read_only / "file", read_only / "new" / "file"):
        with pytest.raises(OSError, match="Read-only") as caught:
            write(path, "text")
        assert caught.value.filename == str(path)
