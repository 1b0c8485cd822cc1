"""Image data: splits, labels and pixels of tiny files, and their life in a checkpoint."""

import csv
import io
import json
import resource
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lit_foundry.checkpoints.files import CheckpointError, load_data
from lit_foundry.cli.main import main
from lit_foundry.data import CIFAR10, CIFAR100, DataError, Digits, ImageFiles, ImageFolder
from lit_foundry.data.image.decoding import THIN, Form
from lit_foundry.data.image.labelled import ImageData
from lit_foundry.data.samplers import EpochRows
from lit_foundry.report.batch_picture import lines_of
from lit_foundry.tasks import Classification
from tests.conftest import REAL, tiny_config, write_config
from tests.images import (
    Patches,
    encoded,
    noise,
    rows,
    write_cifar,
    write_class_folders,
    write_parquet,
)


def everything(data: ImageData, split: Any = "train") -> dict[str, torch.Tensor]:
    """Return a split in its order, through its loader."""
    data.batch_size = min(data.batch_size or 6, 6)
    batches = list(data.loader(split))
    order = torch.cat([batch["index"] for batch in batches]).argsort()
    return {key: torch.cat([batch[key] for batch in batches])[order] for key in batches[0]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "pets", 40)


def test_batches_hold_the_pixels_of_files_channels_last_and_their_labels_and_rows(
    folder: Path,
) -> None:
    data = ImageFolder(str(folder), batch_size=6)
    table = data.table("train")
    seen = []
    for batch in data.train_dataloader():
        pixels = batch["pixel_values"]
        assert pixels.dtype == torch.uint8
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        for image, label, row in zip(pixels, batch["label"], batch["index"], strict=True):
            file = folder / table.id(int(row))
            expected = np.asarray(Image.open(file).convert("RGB"))
            assert np.array_equal(image.permute(1, 2, 0), expected)
            assert data.labels[label] == file.parent.name
            seen.append(int(row))
    assert sorted(seen) == list(range(36))
    assert data.facts == {"num_classes": 2, "in_channels": 3, "image_size": 8}


def test_kept_and_streamed_batches_are_equal_with_any_number_of_workers(folder: Path) -> None:
    found = [
        everything(ImageFolder(str(folder), size=5, batch_size=6, cache=cache, num_workers=workers))
        for cache in (True, False)
        for workers in (0, 2)
    ]
    for other in found[1:]:
        assert all(torch.equal(found[0][key], other[key]) for key in found[0])


def test_images_are_resized_as_torchvision_does_and_cropped_up_and_left_of_the_middle() -> None:
    pixels = noise(0, 37, 52)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    bicubic = v2.InterpolationMode.BICUBIC
    expected = v2.functional.resize(planes, [15], bicubic).permute(1, 2, 0)  # 15 x 21
    assert np.array_equal(Form(15).pixels(encoded(pixels)), expected[:, 3:18])
    tall = v2.functional.resize(planes.mT, [16], bicubic).permute(1, 2, 0)  # 22 x 16
    assert np.array_equal(Form(16).pixels(encoded(pixels.swapaxes(0, 1))), tall[3:19])
    odd = v2.functional.resize(planes, [17], bicubic).permute(1, 2, 0)  # 17 x 23
    assert np.array_equal(Form(17).pixels(encoded(pixels)), odd[:, 3:20])
    squashed = Form(16, "squash").pixels(encoded(pixels))
    assert np.array_equal(
        squashed, v2.functional.resize(planes, [16, 16], bicubic).permute(1, 2, 0)
    )
    assert np.array_equal(Form().pixels(encoded(pixels)), pixels)


def test_large_photos_are_decoded_whole_as_others_decode_them() -> None:
    small = Image.fromarray(noise(0, 9, 12)).resize((1200, 900), Image.Resampling.BICUBIC)
    data = encoded(np.asarray(small), "JPEG")
    with Image.open(io.BytesIO(data)) as whole:
        assert np.array_equal(Form(32).pixels(data), Form(32).pixels(np.asarray(whole)))


@pytest.mark.parametrize("turn", [0, 1])
def test_thin_images_take_the_memory_of_what_is_kept(turn: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert Form(224).pixels(encoded(np.rot90(noise(0, 20000, 1), turn))).shape == (224, 224, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert peak < 10**5  # kilobytes; the resized whole has 3 GB
    smooth = Image.fromarray(noise(0, 40, 3)).resize((3, THIN * 3 + 5), Image.Resampling.BICUBIC)
    pixels = np.ascontiguousarray(np.rot90(np.asarray(smooth).clip(60, 190), turn))
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    whole = v2.functional.resize(planes, [32], v2.InterpolationMode.BICUBIC)
    top, left = ((edge - 32) // 2 for edge in whole.shape[1:])
    expected = whole[:, top : top + 32, left : left + 32].permute(1, 2, 0).numpy()
    assert np.abs(Form(32).pixels(pixels) - expected.astype(int)).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_all_modes_become_colours_or_shades(mode: str) -> None:
    image = Image.fromarray(noise(0)).convert(mode)
    assert Form(mode="RGB").pixels(image).shape == (8, 8, 3)
    assert np.array_equal(Form(mode="L").pixels(image)[..., 0], np.asarray(image.convert("L")))


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    shades = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    buffer = io.BytesIO()
    Image.fromarray(shades).save(buffer, "PNG")
    found = Form(mode="L").pixels(buffer.getvalue())[..., 0]
    assert np.abs(found - shades / 257).max() <= 0.5


def test_transparent_palettes_and_animations_are_taken_without_a_warning(tmp_path: Path) -> None:
    first = Image.fromarray(noise(0)).convert("P")
    second = Image.fromarray(noise(1)).convert("P")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second], transparency=bytes([0]))
    first.save(tmp_path / "a.png", transparency=bytes(range(256)))
    with Image.open(tmp_path / "a.gif") as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(Form().pixels(tmp_path / "a.gif"), expected)
    assert Form().pixels(tmp_path / "a.png").shape == (8, 8, 3)


def test_photos_are_turned_upright() -> None:
    image, buffer = Image.fromarray(noise(0, 4, 8)), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(buffer, "PNG", exif=exif)
    assert np.array_equal(Form().pixels(buffer.getvalue()), np.rot90(noise(0, 4, 8), -1))


def test_validation_is_carved_from_training_unless_it_has_a_folder(
    tmp_path: Path, folder: Path
) -> None:
    carved = ImageFolder(str(folder), val_fraction=0.2)
    parts = [carved.table(split) for split in ("train", "val")]
    assert [len(part) for part in parts] == [32, 8]
    assert Counter(parts[1].labels) == {"cat": 4, "dog": 4}
    ids = [set(part.ids or ()) for part in parts]
    assert len(ids[0] | ids[1]) == 40
    pixels = [
        {tuple(image.flatten().tolist()) for image in everything(carved, split)["pixel_values"]}
        for split in ("train", "val")
    ]
    assert [len(pixels[0]), len(pixels[1]), len(pixels[0] & pixels[1])] == [32, 8, 0]
    other = ImageFolder(str(folder), val_fraction=0.2, split_seed=1)
    assert set(other.table("val").ids or ()) != ids[1]

    whole = tmp_path / "split"
    write_class_folders(whole / "train", 12)
    write_class_folders(whole / "val", 4, seed=100)
    write_class_folders(whole / "test", 6, seed=200)
    data = ImageFolder(str(whole))
    assert [len(data.load(split)) for split in ("train", "val", "test")] == [12, 4, 6]
    assert np.array_equal(data.images("test", [3])[0], noise(201))  # the first dog


def test_copies_of_a_file_fall_on_one_side(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "a", 40)
    for file in sorted(root.rglob("*.*")):
        shutil.copy(file, file.with_name(f"copy_of_{file.name}"))
    data = ImageFolder(str(root))
    sides = [
        {Path(id).name.removeprefix("copy_of_") for id in data.table(split).ids or ()}
        for split in ("train", "val")
    ]
    assert not sides[0] & sides[1]
    assert len(data.table("val")) == 8


def test_fewer_samples_are_trained_on_and_as_many_validate(folder: Path) -> None:
    whole, limited = ImageFolder(str(folder)), ImageFolder(str(folder), max_train_samples=10)
    assert limited.table("val").ids == whole.table("val").ids
    assert Counter(limited.table("train").labels) == {"cat": 5, "dog": 5}
    assert set(limited.table("train").ids or ()) < set(whole.table("train").ids or ())
    found, table = everything(limited), limited.table("train")
    for image, id in zip(found["pixel_values"], table.ids or (), strict=True):
        assert np.array_equal(image.permute(1, 2, 0), Form().pixels(folder / id))


def test_chosen_classes_are_kept_in_their_order(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", rows(30, names=("a", "b", "c")))
    data = ImageFiles(str(path), classes=["2", "0"], batch_size=4)
    assert data.labels == ["2", "0"]
    assert data.facts["num_classes"] == 2
    assert Counter(data.table("train").labels) == {"2": 9, "0": 9}
    found = everything(data)
    assert np.array_equal(found["pixel_values"][0].permute(1, 2, 0), data.images("train", [0])[0])
    assert set(found["label"].tolist()) == {0, 1}
    with pytest.raises(DataError, match=r"data.classes: .*train.parquet has no class '7'"):
        ImageFiles(str(path), classes=["0", "7"]).table("train")


def test_tables_and_folders_of_the_same_files_are_the_same_data(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pets", 20)
    files = sorted(root.rglob("*.*"))
    names = [file.relative_to(tmp_path).as_posix() for file in files]
    labels = [file.parent.name for file in files]
    with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label"), *zip(names, labels, strict=True)])
    lines = [f'{{"label": "{b}", "image": "{a}"}}' for a, b in zip(names, labels, strict=True)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pairs = list(zip(files, names, labels, strict=True))
    for kind, image in {
        "struct": lambda file, name: {"bytes": file.read_bytes(), "path": name},
        "binary": lambda file, name: file.read_bytes(),
        "path": lambda file, name: name,
        "paths": lambda file, name: {"bytes": None, "path": name},
    }.items():
        records = [{"image": image(file, name), "label": label} for file, name, label in pairs]
        write_parquet(tmp_path / f"{kind}.parquet", records)
    sources = [
        "train.csv",
        "train.jsonl",
        *(f"{k}.parquet" for k in ("struct", "binary", "path", "paths")),
    ]
    expected = ImageFolder(str(root))
    pixels = everything(expected)["pixel_values"]
    for source in sources:
        data = ImageFiles(str(tmp_path / source))
        assert torch.equal(everything(data)["pixel_values"], pixels), source
        assert data.fingerprint() == expected.fingerprint(), source
    assert data.describe("train", [1])["id"] == [data.table("train").id(1)]
    assert data.table("train").id(1).endswith((".png", ".webp"))


def test_shards_of_parquet_are_one_split(tmp_path: Path) -> None:
    records = rows(30)
    whole = write_parquet(tmp_path / "whole.parquet", records)
    write_parquet(tmp_path / "train-0-of-2.parquet", records[:12])
    write_parquet(tmp_path / "train-1-of-2.parquet", records[12:])
    data = ImageFiles(str(tmp_path / "train-*.parquet"))
    assert torch.equal(
        everything(data)["pixel_values"], everything(ImageFiles(str(whole)))["pixel_values"]
    )


def test_hub_datasets_are_read_like_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "repo").mkdir()
    path = write_parquet(tmp_path / "repo/train.parquet", rows(20))
    hub = ImageFiles("train", hub=str(tmp_path / "repo"))
    assert torch.equal(
        everything(hub)["pixel_values"], everything(ImageFiles(str(path)))["pixel_values"]
    )


def test_pixels_are_decoded_once(tmp_path: Path, folder: Path) -> None:
    def caches() -> dict[str, int]:
        found = (tmp_path / "cache/images").glob("*/pixels.bin")
        return {str(path): path.stat().st_mtime_ns for path in found}

    ImageFolder(str(folder), cache_dir=tmp_path / "cache").load("train")
    first = caches()
    assert len(first) == 1
    shutil.move(folder, tmp_path / "elsewhere")
    again = ImageFolder(str(tmp_path / "elsewhere"), cache_dir=tmp_path / "cache", val_fraction=0.3)
    again.load("val")
    assert caches() == first
    for options in ({"size": 4}, {"size": 4, "fit": "squash"}, {"mode": "L"}):
        other = ImageFolder(
            str(tmp_path / "elsewhere"),
            cache_dir=tmp_path / "cache",
            **options,  # type: ignore[arg-type]
        )
        other.load("train")
    assert len(caches()) == 4


def test_no_half_written_cache_is_left_or_used(tmp_path: Path, folder: Path) -> None:
    cache = tmp_path / "cache"
    victim = folder / "dog/039.png"
    data = victim.read_bytes() if victim.exists() else None
    victim = victim if data else sorted((folder / "dog").iterdir())[-1]
    good = victim.read_bytes()
    victim.write_bytes(good[:60])
    with pytest.raises(DataError, match=r"truncated or damaged"):
        ImageFolder(str(folder), cache_dir=cache).load("train")
    assert not [path for path in (cache / "images").iterdir() if path.is_dir()]
    victim.write_bytes(good)
    whole = everything(ImageFolder(str(folder), cache_dir=cache))
    [pixels] = cache.glob("images/*/pixels.bin")
    pixels.write_bytes(pixels.read_bytes()[:-10])  # as of a disk that was full
    assert torch.equal(
        everything(ImageFolder(str(folder), cache_dir=cache))["pixel_values"], whole["pixel_values"]
    )


def test_small_enough_splits_are_kept_and_large_ones_streamed(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_foundry.data.image.decoded.CACHE_BYTES", 40 * 8 * 8 * 3 - 1)
    ImageFolder(str(folder), cache_dir=tmp_path / "cache").load("train")
    assert not (tmp_path / "cache/images").exists()
    ImageFolder(str(folder), cache_dir=tmp_path / "cache", mode="L").load("train")
    assert (tmp_path / "cache/images").exists()


def test_fingerprint_follows_the_content_alone(tmp_path: Path) -> None:
    def fingerprint(root: Path) -> dict[str, str]:
        data = ImageFolder(str(root))
        data.load("train")
        return data.fingerprint()

    first = fingerprint(write_class_folders(tmp_path / "a", 20))
    assert set(first) == {"train", "val"}
    assert fingerprint(write_class_folders(tmp_path / "b", 20)) == first
    other = write_class_folders(tmp_path / "c", 20)
    (other / "dog/new.png").write_bytes(encoded(noise(999)))
    assert fingerprint(other) != first
    moved = write_class_folders(tmp_path / "d", 20)
    file = sorted((moved / "dog").iterdir())[0]
    shutil.move(file, moved / "cat" / file.name)
    assert fingerprint(moved) != first


def test_a_checkpoints_state_predicts_without_the_training_files(
    tmp_path: Path, folder: Path
) -> None:
    data = ImageFolder(str(folder), mode="L", fit="squash", classes=["dog", "cat"])
    state = data.state()
    form = {"size": 8, "fit": "squash", "mode": "L", "shape": [8, 8, 1]}
    assert state == {"labels": ["dog", "cat"], **form}
    new = tmp_path / "new"
    (new / "deep").mkdir(parents=True)
    (new / "deep/a.jpg").write_bytes(encoded(noise(1, 30, 20), "JPEG"))
    (new / "b.png").write_bytes(encoded(noise(2)))
    shutil.rmtree(folder)
    twin = ImageFolder(str(folder), predict=str(new))
    twin.restore(state)
    assert twin.facts == {"num_classes": 2, "in_channels": 1, "image_size": 8}
    found = everything(twin, "predict")
    assert "label" not in found
    assert found["pixel_values"].shape == (2, 1, 8, 8)
    assert twin.table("predict").ids == ["b.png", "deep/a.jpg"]
    [batch] = twin.batches([str(new / "b.png"), Image.open(new / "deep/a.jpg"), noise(2)])
    assert torch.equal(batch["pixel_values"][:2], found["pixel_values"])
    assert torch.equal(batch["pixel_values"][2], found["pixel_values"][0])
    assert twin.state() == state


def test_a_checkpoints_state_knows_the_shape_of_images_that_are_not_square(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "wide", 20, height=6, width=10)
    state = json.loads(json.dumps(ImageFolder(str(root)).state()))
    twin = ImageFolder("gone", predict=str(root / "cat"))
    twin.restore(state)
    assert twin.shape == (6, 10, 3)
    assert twin.facts == {"num_classes": 2, "in_channels": 3}
    assert everything(twin, "predict")["pixel_values"].shape == (10, 3, 6, 10)
    [batch] = twin.batches([noise(0, 6, 10)])
    assert batch["pixel_values"].shape == (1, 3, 6, 10)
    assert twin.state() == state


@pytest.mark.parametrize(
    "names",
    [("Train", "Valid", "Test"), ("training", "validation", "testing"), ("TRAIN", "val", "TEST")],
)
def test_folders_of_splits_go_by_several_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, count in zip(names, (20, 8, 6), strict=True):
        write_class_folders(tmp_path / name, count)
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    data = ImageFolder(str(tmp_path))
    assert [len(data.load(split)) for split in ("train", "val", "test")] == [20, 8, 6]
    assert data.labels == ["cat", "dog"]


def test_images_of_a_class_may_lie_deeper(tmp_path: Path) -> None:
    for root in (tmp_path / "pets", tmp_path / "split/train"):
        write_class_folders(root, 20)
        (root / "cat").rename(root / "c")
        (root / "cat").mkdir()
        (root / "c").rename(root / "cat/deep")
    assert ImageFolder(str(tmp_path / "pets")).labels == ["cat", "dog"]
    (tmp_path / "split/train/dog").rename(tmp_path / "dog")
    (tmp_path / "split/train/dog").mkdir()
    (tmp_path / "dog").rename(tmp_path / "split/train/dog/deep")
    assert ImageFolder(str(tmp_path / "split")).labels == ["cat", "dog"]


@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
def test_pixels_at_hand_are_fitted_where_one_edge_differs(shape: tuple[int, int]) -> None:
    assert Form(32).holds((5, 32, 32, 3))
    assert Form().holds((5, *shape, 3))
    assert not Form(32).holds((5, *shape, 3))


def test_predict_takes_a_folder_an_image_a_list_or_a_table(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pets", 6)
    names = sorted(file.relative_to(tmp_path).as_posix() for file in root.rglob("*.*"))
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n\n", encoding="utf-8")
    (tmp_path / "list.csv").write_text(
        "image,what\n" + "".join(f"{n},x\n" for n in names), encoding="utf-8"
    )
    records = [{"image": (tmp_path / name).read_bytes(), "label": None} for name in names]
    write_parquet(tmp_path / "list.parquet", records)
    found = {
        source: everything(ImageFolder("none", size=8, predict=str(tmp_path / source)), "predict")
        for source in ("pets", "list.txt", "list.csv", "list.parquet")
    }
    for other in found.values():
        assert torch.equal(other["pixel_values"], found["pets"]["pixel_values"])
    one = ImageFolder("none", size=8, predict=str(tmp_path / names[4]))
    assert torch.equal(
        everything(one, "predict")["pixel_values"][0], found["pets"]["pixel_values"][4]
    )
    with pytest.raises(ValueError, match=r"predict needs images: set --input"):
        ImageFolder("none", size=8).load("predict")


RANDOM = {"class_path": "torchvision.transforms.v2.RandomHorizontalFlip"}


def test_a_random_transform_is_a_function_of_seed_epoch_and_sample(folder: Path) -> None:
    def epochs(workers: int, seed: int = 0, start: int = 0) -> list[dict[int, Any]]:
        data = ImageFolder(str(folder), batch_size=6, transform=RANDOM, num_workers=workers)
        dataset, found = data.load("train"), []
        sampler = data.sampler(dataset, True, rank=0, world_size=1, seed=seed, epoch=start, start=0)
        loader = torch.utils.data.DataLoader(
            dataset,
            None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator(),
        )
        for epoch in range(start, 2):
            sampler.set_epoch(epoch)
            found.append(
                {
                    int(i): image
                    for batch in loader
                    for i, image in zip(batch["index"], batch["pixel_values"].tolist(), strict=True)
                }
            )
        return found

    state = torch.get_rng_state()
    first = epochs(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert epochs(2) == first
    assert epochs(0, start=1) == first[1:]
    assert first[0] != first[1]
    assert epochs(0, seed=1) != first
    plain = ImageFolder(str(folder))
    unchanged = plain.images("train", range(36)).transpose(0, 3, 1, 2).tolist()
    kept = sum(first[0][row] == unchanged[row] for row in range(36))
    assert 8 < kept < 28
    assert plain.load("val").transform is None


def test_a_picture_of_the_batch_shows_files_and_what_the_transform_makes_of_them_each_epoch(
    folder: Path,
) -> None:
    data = ImageFolder(str(folder), transform=RANDOM)
    rows, dataset = range(0, 36, 3), data.load("train")
    first, *epochs = lines_of(Classification(Patches(3), 2), data, rows, seed=5)
    assert np.array_equal(first, data.images("train", rows))
    assert any(not np.array_equal(epochs[0], line) for line in epochs[1:])
    for epoch, line in enumerate(epochs):
        seen = dataset[EpochRows(rows, 5, epoch)]["pixel_values"].permute(0, 2, 3, 1)
        assert np.array_equal(line, seen)


def test_each_draw_of_an_image_is_transformed_anew(folder: Path) -> None:
    dataset = ImageFolder(str(folder), transform=RANDOM).load("train")
    batch = dataset[EpochRows([3] * 8, 0, 1, draws=list(range(8)))]
    assert batch["draw"].tolist() == list(range(8))
    images = batch["pixel_values"].flatten(1)
    assert len(images.unique(dim=0)) > 1
    assert torch.equal(
        dataset[EpochRows([3], 0, 1, draws=[5])]["pixel_values"][0].flatten(), images[5]
    )
    plain = dataset[EpochRows([3] * 8, 0, 1)]
    assert "draw" not in plain
    assert len(plain["pixel_values"].flatten(1).unique(dim=0)) == 1


def test_workers_hand_on_the_draws_of_a_balanced_epoch(folder: Path) -> None:
    found = []
    for workers in (0, 1):
        data = ImageFolder(str(folder), batch_size=6, balanced=True, num_workers=workers)
        batches = list(data.train_dataloader())
        found.append([torch.cat([batch[key] for batch in batches]) for key in ("index", "draw")])
        assert "draw" not in next(iter(data.val_dataloader()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][1].max() > 0


def test_a_transform_must_keep_shape_and_type(folder: Path) -> None:
    for wrong in (v2.ToDtype(torch.float32), v2.CenterCrop(4)):
        data = ImageFolder(str(folder), transform=wrong)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"data.transform turns \(3, 8, 8\) uint8 into"):
            data.load("train")[EpochRows([0], 0, 0)]
    with pytest.raises(ValueError, match=r"data.transform.class_path=v2.Nothing"):
        ImageFolder(str(folder), transform={"class_path": "v2.Nothing"})
    with pytest.raises(ValueError, match=r"data.transform.init_args of .*CenterCrop"):
        ImageFolder(str(folder), transform={"class_path": "torchvision.transforms.v2.CenterCrop"})


def test_the_recipe_holds_a_transform_as_plain_data(folder: Path) -> None:
    assert ImageFolder(str(folder), transform=RANDOM).recipe()["init_args"]["transform"] == RANDOM
    given = ImageFolder(str(folder), transform=v2.Identity())  # type: ignore[arg-type]
    assert given.recipe()["init_args"]["transform"] is None


def test_cifar_is_the_same_from_pickles_and_parquet(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    data = CIFAR10(str(folder), val_fraction=0.2)
    assert everything(CIFAR10(str(tmp_path), val_fraction=0.2)).keys() == everything(data).keys()
    assert data.facts == {"num_classes": 10, "in_channels": 3, "image_size": 32}
    assert data.labels[:3] == ["airplane", "automobile", "bird"]
    test = everything(data, "test")
    expected = np.random.default_rng(5).integers(0, 256, (20, 3072), np.uint8)
    assert np.array_equal(test["pixel_values"].reshape(20, -1), expected)
    assert test["label"].tolist() == [(5 + i) % 10 for i in range(20)]
    assert data.describe("test", [3])["id"] == ["test_batch_3.png"]
    records = [
        {"image": {"bytes": encoded(image.permute(1, 2, 0).numpy()), "path": None}, "label": int(y)}
        for image, y in zip(test["pixel_values"], test["label"], strict=True)
    ]
    hub = tmp_path / "hub/plain_text"
    hub.mkdir(parents=True)
    write_parquet(hub / "test-00000-of-00001.parquet", records, "img")
    again = everything(CIFAR10(str(tmp_path / "hub"), size=32), "test")
    assert torch.equal(again["pixel_values"], test["pixel_values"])
    assert torch.equal(again["label"], test["label"])


def test_digests_of_cifar_go_into_the_cache_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(0, 32, 32)))
    (tmp_path / "b.png").write_bytes(encoded(noise(1, 32, 32)))
    records = [{"image": name, "label": i} for i, name in enumerate(("a.png", "b.png"))]
    write_parquet(tmp_path / "test.parquet", records, "img")
    CIFAR10(str(tmp_path), cache_dir=tmp_path / "cache").table("test").contents()
    assert len([*(tmp_path / "cache/digests").iterdir()]) == 1


def test_cifar_100_has_fine_labels_in_alphabetical_order(tmp_path: Path) -> None:
    data = CIFAR100(str(write_cifar(tmp_path, fine=True, each=200)))
    assert data.facts["num_classes"] == 100
    assert data.labels == sorted(data.labels)
    assert everything(data, "test")["label"].tolist() == [(1 + i) % 100 for i in range(200)]


def test_digits_are_built_in() -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    data = Digits(batch_size=64)
    sizes = [len(data.load(split)) for split in ("train", "val", "test")]
    assert sum(sizes) == 1797
    assert sizes[2] == pytest.approx(360, abs=3)
    assert data.labels == list("0123456789")
    assert data.facts == {"num_classes": 10, "in_channels": 1, "image_size": 8}
    row = int(data.describe("test", [5])["id"][0])
    [image] = data.images("test", [5])
    assert np.abs(image[..., 0] / 255 * 16 - load_digits().images[row]).max() < 0.04
    assert Digits(mode="RGB", size=16).load("train")[[0]]["pixel_values"].shape == (1, 3, 16, 16)


def test_thumbnails_are_small(tmp_path: Path) -> None:
    data = ImageFolder(str(write_class_folders(tmp_path / "a", 20, height=200, width=120)))
    assert data.thumbnail("train", 0).size == (58, 96)
    assert "image_size" not in data.facts


def test_the_command_line_fits_tests_and_predicts_on_images(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for split, count in (("train", 40), ("test", 10)):
        write_class_folders(root / split, count)
    config = {
        "model": {
            "class_path": "Classification",
            "init_args": {"backbone": {"class_path": "tests.images.Patches"}},
        },
        "data": {
            "class_path": "ImageFolder",
            "init_args": {"root": str(root), "size": 8, "batch_size": 6, "transform": RANDOM},
        },
        "trainer": tiny_config(tmp_path)["trainer"],
    }
    path = write_config(tmp_path / "pets.yaml", config)
    cli = main(["fit", "--config", str(path)])
    assert cli.model.backbone.in_channels == 3
    assert cli.model.backbone.image_size == 8
    best = str(cli.run.checkpoints / "best.ckpt")
    main(["test", "--ckpt_path", best])
    records = pq.read_table(cli.run.path / "predictions/test.parquet")
    assert records.column("id").to_pylist()[0] == "cat/000.webp"
    output = tmp_path / "out.jsonl"
    images = str(root / "test/dog")
    main(["predict", "--ckpt_path", best, "--input", images, "--output", str(output)])
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == sorted(p.name for p in (root / "test/dog").iterdir())
    assert set(lines[0]["prob"]) == {"cat", "dog"}
    data = load_data(best)
    [batch] = data.batches([images + "/" + lines[0]["id"]], 8192)
    assert batch["pixel_values"].shape == (1, 3, 8, 8)
    with pytest.raises(CheckpointError, match=r"form of images, and you set data.size: 8 -> 16"):
        main(["test", "--ckpt_path", best, "--data.size", "16"])


@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="needs the real CIFAR-10")
def test_real_cifar_10_has_its_published_means() -> None:
    data = CIFAR10(str(REAL / "cifar10"), batch_size=1000)
    found = everything(data, "test")
    means = found["pixel_values"].double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4942, 0.4851, 0.4504], abs=5e-4)  # of the test half
    assert found["label"].bincount().tolist() == [1000] * 10
