"""Features in a file are those of the network, in order, whatever the batches and kills."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import lit_foundry
from lit_foundry.__main__ import foreseen
from lit_foundry.checkpoints.files import load_task
from lit_foundry.cli.embed_command import main
from lit_foundry.data.sets.digits import read_digits
from lit_foundry.export import embeddings
from lit_foundry.export.command import export
from lit_foundry.recipe import CheckpointError
from tests.conftest import reviews
from tests.probed import of_images, of_texts, saved


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    with (folder / "inputs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text, _ in reviews(50, seed=7))])
    return of_texts(folder)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "features.parquet"


def words(texts: Path, output: Path, *more: str) -> list[str]:
    source = str(texts.parent / "inputs.csv")
    return ["--ckpt_path", str(texts), "--input", source, "--output", str(output), *more]


def read(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    table = pq.read_table(path)
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<element: float")
    return table["id"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32)


def test_rows_are_the_features_of_the_inputs_in_their_order(texts: Path, output: Path) -> None:
    main(words(texts, output))
    ids, vectors = read(output)
    assert ids == [str(i) for i in range(50)]
    found = lit_foundry.load(texts).embed([text for text, _ in reviews(50, seed=7)])
    assert found.dtype == np.float32
    assert vectors == pytest.approx(found, abs=1e-5)
    assert vectors.std(0).max() > 1e-2
    task: Any = load_task(texts)
    batch = next(iter(lit_foundry.load(texts).data.batches([reviews(50, seed=7)[4][0]])))
    with torch.no_grad():
        assert vectors[4] == pytest.approx(task.backbone.encode(batch).pooled[0].numpy(), abs=1e-5)


def test_batches_and_parts_change_nothing_but_rounding(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(words(texts, tmp_path / "a.parquet"))
    monkeypatch.setattr(embeddings, "PART", 7)
    main(words(texts, tmp_path / "b.parquet", "--batch_size", "3"))
    one, two = read(tmp_path / "a.parquet"), read(tmp_path / "b.parquet")
    assert one[0] == two[0]
    assert one[1] == pytest.approx(two[1], abs=1e-5)
    assert pq.read_metadata(tmp_path / "b.parquet").num_row_groups == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_pooling_and_normalize(texts: Path, tmp_path: Path) -> None:
    main(words(texts, tmp_path / "a.parquet", "--pooling", "first", "--normalize"))
    main(words(texts, tmp_path / "b.parquet", "--pooling", "first"))
    main(words(texts, tmp_path / "c.parquet", "--pooling", "mean"))
    unit, first, mean = (read(tmp_path / f"{name}.parquet")[1] for name in "abc")
    assert np.linalg.norm(unit, axis=1) == pytest.approx(1, abs=1e-5)
    length = np.linalg.norm(first, axis=1, keepdims=True)
    assert unit == pytest.approx(first / length, abs=1e-5)
    assert abs(first - mean).max() > 1e-2
    predictor = lit_foundry.load(texts)
    some = [text for text, _ in reviews(50, seed=7)]
    assert predictor.embed(some, "first", normalize=True) == pytest.approx(unit, abs=1e-5)


class Killed(BaseException):
    """As a kill, it is caught by nothing."""


def test_a_killed_one_goes_on_from_what_is_whole(
    texts: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(words(texts, output))
    expected = read(output)
    output.unlink()
    monkeypatch.setattr(embeddings, "PART", 8)
    seen: list[int] = []
    encode = embeddings.Encoder.__call__

    def counted(self: Any, batch: Any) -> Any:
        seen.extend(batch["index"].tolist())
        if len(seen) == 20:
            raise Killed
        return encode(self, batch)

    monkeypatch.setattr(embeddings.Encoder, "__call__", counted)
    with pytest.raises(Killed):
        main(words(texts, output, "--batch_size", "4"))
    assert not output.exists()
    torn = output.parent / ".features.parquet.parts" / f"{8:012}.parquet"
    torn.write_bytes(torn.read_bytes()[:100])  # which no kill leaves, but a disk may
    seen.clear()
    main(words(texts, output, "--batch_size", "5"))
    assert sorted(seen) == [*range(8, 50)]
    found = read(output)
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], abs=1e-5)
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    seen.clear()
    main(words(texts, output))  # is there already
    assert seen == []


def test_what_is_of_others_is_not_overwritten(
    texts: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.write_bytes(b"of others")
    with pytest.raises(ValueError, match="is there, and not of embed: name another file"):
        main(words(texts, output))
    assert output.read_bytes() == b"of others"
    output.unlink()
    main(words(texts, output))
    with pytest.raises(ValueError, match=r"is of another embed \(pooling: 'default' -> 'mean'\)"):
        main(words(texts, output, "--pooling", "mean"))
    output.unlink()
    monkeypatch.setattr(embeddings, "_join", lambda *_: exit(1))
    with pytest.raises(SystemExit):
        main(words(texts, output))
    with pytest.raises(ValueError, match=r"parts is of another embed \(normalize: False -> True\)"):
        main(words(texts, output, "--normalize"))


def test_another_process_at_work_is_told(texts: Path, output: Path) -> None:
    folder = output.parent / ".features.parquet.parts"
    folder.mkdir()
    with (
        embeddings.FileLock(folder / "lock"),
        pytest.raises(ValueError, match="is being written by another process"),
    ):
        main(words(texts, output))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("images")
    (folder / "inputs").mkdir()
    pixels: Any = [*read_digits().images]
    for number in range(12):
        Image.fromarray(pixels[number]).save(folder / "inputs" / f"{number:02}.png")
    return of_images(folder)


def test_images_keep_their_names_and_statistics(images: Path, output: Path) -> None:
    source = images.parent / "inputs"
    main(["--ckpt_path", str(images), "--input", str(source), "--output", str(output)])
    ids, vectors = read(output)
    assert ids == [f"{number:02}.png" for number in range(12)]
    pixels: Any = [*read_digits().images]
    predictor = lit_foundry.load(images)
    assert predictor.embed(pixels[:12]) == pytest.approx(vectors, abs=1e-5)
    assert predictor.embed(pixels[3]) == pytest.approx(vectors[3:4], abs=1e-5)
    assert predictor.predict(pixels[:2]).probs.shape == (2, 10)


def test_export_with_a_backbone_embeds_and_another_says_so(images: Path) -> None:
    pixels: Any = [*read_digits().images]
    folder = export(images, "safetensors", images.parent / "safetensors")
    found = lit_foundry.load(folder).embed(pixels[:5])
    assert found == pytest.approx(lit_foundry.load(images).embed(pixels[:5]), abs=1e-5)
    program = export(images, "torch", images.parent / "torch")
    with pytest.raises(CheckpointError, match="computes outputs and no features") as caught:
        lit_foundry.load(program).embed(pixels[:5])
    assert len(str(caught.value).splitlines()) == 1


def test_features_that_are_not_finite_are_not_written(texts: Path, output: Path) -> None:
    task: Any = load_task(texts)
    task.backbone.blocks()[-1].output.LayerNorm.weight.data[0] = torch.nan
    broken = saved(texts.parent / "broken.ckpt", task, lit_foundry.load_data(texts))
    with pytest.raises(ValueError, match="50 of 50 samples of the inputs from 0 on are not finite"):
        main(words(broken, output))
    assert not output.exists()
    with pytest.raises(ValueError, match="1 of 1 samples of the inputs are not finite"):
        lit_foundry.load(broken).embed("a plot")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--pooling last", "invalid choice: 'last'"),
        ("--output {folder}/x.csv", "name a file that ends in .parquet"),
        ("--output {folder}", "name a file that ends in .parquet"),
        ("--batch_size 0", "--batch_size must be at least 1"),
        ("--device gpu7", "--device gpu7: "),
        ("--input {folder}/gone.csv", "gone.csv"),
        ("--data.max_lenght 9", "--data.max_lenght: a Corpus takes no max_lenght."),
        ("--ckpt_path {folder}", "is a folder: features are those of a checkpoint"),
        ("--ckpt_path {folder}/gone.ckpt", "is no checkpoint file"),
        ("--poling mean", "embed takes no --poling. Did you mean --pooling?"),
    ],
)
def test_mistakes_are_one_line(texts: Path, output: Path, more: str, said: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        main(words(texts, output, *more.format(folder=texts.parent).split()))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert foreseen(caught.value)


def test_an_input_is_not_written_over(texts: Path, tmp_path: Path) -> None:
    source = tmp_path / "inputs.parquet"
    pq.write_table(pa.table({"text": ["a plot", "a scene"]}), source)
    with pytest.raises(ValueError, match="which is an input"):
        main(["--ckpt_path", str(texts), "--input", str(source), "--output", str(source)])
    assert pq.read_table(source).num_rows == 2


def test_parts_say_what_they_are_made_of(texts: Path, output: Path) -> None:
    main(words(texts, output, "--data.max_length", "16", "--data.batch_size", "4"))
    about = json.loads(pq.read_schema(output).metadata[b"lit_foundry"])["embed"]
    assert about["data"] == {"max_length": 16}
    assert about["inputs"] == 50
