"""Folders are read once whatever links they hold, and what is left out of them is told."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL.PngImagePlugin import PngImageFile

from lit_foundry.data import DataError, DatasetNotFoundError, ImageFiles, ImageFolder
from lit_foundry.data.files.documents import Documents
from lit_foundry.data.files.image_kinds import suffixes
from lit_foundry.data.image.decoding import BadImageError, Form
from tests.images import encoded, noise, write_class_folders

PNG = encoded(noise(0))
UP = "links that lead back up are not followed"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "pets", 20)


def link(place: Path, target: str | Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def ids(root: Path, **options: Any) -> list[str]:
    return list(ImageFolder(str(root), **options).table("train").ids or ())


def source(root: Path) -> tuple[list[str], list[str]]:
    table = ImageFolder(str(root)).source("train")
    assert table is not None
    return list(table.ids or ()), list(table.labels or ())


@pytest.mark.parametrize("target", ["..", ".", "../..", "/"])
def test_a_link_that_leads_back_up_is_not_followed(pets: Path, target: str) -> None:
    before = source(pets)
    link(pets / "cat/all", target)
    link(pets / "dog/deep/all", target)
    with pytest.warns(UserWarning, match=f"pets: {UP}: .*cat/all, .*dog/deep/all.$"):
        assert source(pets) == before


def test_a_class_that_is_a_link_back_up_is_none(pets: Path) -> None:
    before = source(pets)
    link(pets / "all", ".")
    with pytest.warns(UserWarning, match=f"{UP}: .*pets/all.$"):
        assert source(pets) == before


def test_a_linked_folder_is_followed_and_a_file_has_one_row_whatever_leads_to_it(
    pets: Path, tmp_path: Path
) -> None:
    (tmp_path / "pool/deep").mkdir(parents=True)
    (tmp_path / "pool/deep/1.png").write_bytes(PNG)
    link(tmp_path / "pool/back", "..")  # above what is walked by then
    for name in ("more", "more2"):
        link(pets / "cat" / name, "../../pool")
    link(pets / "cat/same.png", "../../pool/deep/1.png")
    link(pets / "cat/000again.webp", "000.webp")
    with pytest.warns(UserWarning, match=UP):
        found, labels = source(pets)
    assert len(found) == 21
    assert "cat/more/deep/1.png" in found
    assert labels.count("cat") == 11


@pytest.mark.parametrize("target", ["../dog", "../dog/001.png"])
def test_a_file_in_two_classes_is_refused_by_name(pets: Path, target: str) -> None:
    link(pets / "cat/x.png", target)
    with pytest.raises(
        DataError, match=r"pets/dog/001.png: the same file as .*cat/x.png.*, in two"
    ):
        ids(pets)


def test_links_that_multiply_end(pets: Path, tmp_path: Path) -> None:
    for level in range(20):
        for name in ("a", "b"):
            link(tmp_path / f"maze/{level}/{name}", f"../{level + 1}")
    (tmp_path / "maze/20").mkdir()
    (tmp_path / "maze/20/1.png").write_bytes(PNG)
    (tmp_path / "maze/20/1.txt").write_text("deep", encoding="utf-8")
    link(pets / "cat/maze", "../../maze/0")
    with pytest.warns(UserWarning, match="left out 1 file"):
        assert len(source(pets)[0]) == 21
    link(tmp_path / "maze/20/up", "..")
    link(tmp_path / "maze/20/down", "../0")
    for pattern in ("maze/0/**/*.txt", "maze/0/**", "maz*/**/1.*"):
        with pytest.warns(UserWarning, match=UP):
            assert list(Documents(f"{tmp_path}/{pattern}")) == ["deep"]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("target", ["/nonexistent.png", "gone.png"])
def test_a_link_to_nothing_is_a_bad_image(pets: Path, target: str, cache: bool) -> None:
    for name in ("cat", "dog"):
        link(pets / name / "gone.png", target)
    strict = ImageFolder(str(pets), size=8, cache=cache)
    with pytest.raises(DataError, match=r"cat/gone.png: no such file, or a link .*data.bad_images"):
        strict.images("train", range(18))
    data = ImageFolder(str(pets), bad_images=2, cache=cache)
    with pytest.warns(UserWarning, match="2 of 22 train images are skipped"):
        assert len(data.load("train")) + len(data.load("val")) == 20


def test_links_to_nothing_are_bad_in_lists_and_folders_to_predict_on(
    pets: Path, tmp_path: Path
) -> None:
    link(pets / "cat/gone.png", "/nonexistent.png")
    lines = "image,label\npets/cat/gone.png,cat\npets/cat/000.webp,cat\npets/dog/001.png,dog\n"
    (tmp_path / "train.csv").write_text(lines, encoding="utf-8")
    (tmp_path / "list.txt").write_text("pets/cat/gone.png\npets/dog/001.png", encoding="utf-8")
    listed = ImageFiles(str(tmp_path / "train.csv"), bad_images=1)
    with pytest.warns(UserWarning, match="gone.png"):
        assert len(listed._good("train")) == 2
    for name, count in (("pets", 20), ("list.txt", 1)):
        data = ImageFolder("none", size=8, predict=str(tmp_path / name), bad_images=1)
        with pytest.warns(UserWarning, match="gone.png"):
            assert len(data.load("predict")) == count
        strict = ImageFolder("none", size=8, predict=str(tmp_path / name))
        with pytest.raises(DataError, match=r"gone.png: no such file"):
            strict.load("predict")


def test_folders_named_like_images_are_folders_and_thumbnails_are_passed_over(pets: Path) -> None:
    for folder in (pets / "cat/@eaDir/0.png", pets / "@eaDir/cat", pets / "cat/album.png"):
        folder.mkdir(parents=True)
        (folder / "SYNOPHOTO_THUMB_M.jpg").write_bytes(PNG)
    found, labels = source(pets)
    assert len(found) == 21
    assert "cat/album.png/SYNOPHOTO_THUMB_M.jpg" in found
    assert {*labels} == {"cat", "dog"}
    (pets / "eel/0.png").mkdir(parents=True)
    with pytest.raises(DatasetNotFoundError, match="eel: no images"):
        ids(pets)


def test_every_suffix_that_pil_decodes_is_one_of_an_image(pets: Path) -> None:
    endings = (".jfif", ".jpe", ".jp2", ".tga", ".AVIF", ".apng", ".ico", ".pcx", ".PNG", ".pbm")
    for end in endings:
        assert end.lower() in suffixes()
        (pets / f"dog/x{end}").write_bytes(PNG)
    assert len(source(pets)[0]) == 20 + len(endings)
    for end in (".eps", ".ps", ".wmf", ".h5", ".mpg", ".txt", ".pdf", ""):
        assert end not in suffixes()


def test_pil_starts_no_other_program_for_a_file_that_is_named_like_an_image(tmp_path: Path) -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "x.jpg").write_bytes(script)
    for image in (script, tmp_path / "x.jpg"):
        with pytest.raises(BadImageError, match="not an image"):
            Form().pixels(image)


def test_files_that_are_left_out_are_counted(pets: Path, tmp_path: Path) -> None:
    for name in ("cat/a.heic", "cat/deep/b.HEIC", "dog/notes.txt", "dog/README"):
        (pets / name).parent.mkdir(exist_ok=True)
        (pets / name).touch()
    os.mkfifo(pets / "dog/pipe.png")  # which would be waited for
    told = r"left out 5 files \(2 .heic, 1 no suffix, 1 .txt, 1 .png\): not images \(.jpg"
    with pytest.warns(UserWarning, match=told):
        assert len(source(pets)[0]) == 20
    with pytest.warns(UserWarning, match=told):
        ImageFolder("none", size=8, predict=str(pets)).table("predict")
    for path in (pets / "cat/a.heic", pets / "dog/pipe.png"):
        path.unlink()
    (tmp_path / "c").mkdir()
    (tmp_path / "c/a.txt").write_text("here", encoding="utf-8")
    (tmp_path / "c/b.docx").touch()
    for pattern in ("c", "c/*", "c/**"):
        with pytest.warns(UserWarning, match=r"left out 1 file \(1 .docx\): not .txt"):
            assert list(Documents(f"{tmp_path}/{pattern}")) == ["here"]


def test_images_beside_the_folders_of_classes_are_counted(pets: Path) -> None:
    (pets / "stray.png").write_bytes(PNG)
    (pets / "labels.csv").touch()
    with pytest.warns(UserWarning, match=r"left out 1 file \(1 .png\): not in the folder of a cla"):
        assert len(source(pets)[0]) == 20


def test_linked_folders_of_a_corpus_are_read_once(tmp_path: Path) -> None:
    for name in ("c", "ext"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name, encoding="utf-8")
    link(tmp_path / "c/more", "../ext")
    link(tmp_path / "c/z.txt", "a.txt")
    for pattern in ("c", "c/**/*.txt", "c/**"):
        assert list(Documents(f"{tmp_path}/{pattern}")) == ["c", "ext"]
    both = Documents([tmp_path / "ext", tmp_path / "c"])
    assert list(both) == ["ext", "c"]
    link(tmp_path / "c/up", "..")
    with pytest.warns(UserWarning, match=f"{UP}: .*c/up"):
        assert list(Documents(tmp_path / "c")) == ["c", "ext"]


@pytest.mark.parametrize("pattern", ["c", "c/*", "c/**/*.txt"])
def test_a_corpus_with_a_link_to_nothing_is_refused_by_name(tmp_path: Path, pattern: str) -> None:
    link(tmp_path / "c/gone.txt", "/nonexistent.txt")
    with pytest.raises(DataError, match=r"c/gone.txt: a link to a file that is not there. Mend"):
        Documents(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize("read", [ids, lambda root: list(Documents(root))], ids=["images", "texts"])
def test_a_folder_that_may_not_be_read_is_named(
    pets: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any]
) -> None:
    scandir = os.scandir

    def denied(folder: Any) -> Any:
        if Path(folder).name == "secret":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    (pets / "dog/secret").mkdir()
    (pets / "dog/a.txt").write_text("here", encoding="utf-8")
    monkeypatch.setattr(os, "scandir", denied)  # a test that is run by root may read anything
    with pytest.raises(DataError, match=r"dog/secret: no permission to read this folder. Grant"):
        read(pets)


def test_an_image_that_exceeds_the_memory_is_bad(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = PngImageFile.load

    def exhausted(image: Any) -> Any:
        if Path(getattr(image, "filename", "")).name == "001.png":
            raise MemoryError
        return load(image)

    monkeypatch.setattr(PngImageFile, "load", exhausted)
    with pytest.raises(DataError, match=r"dog/001.png: takes more memory than there is. .*bad_ima"):
        ImageFolder(str(pets), cache_dir=pets.parent / "cache").load("train")
