"""Whatever container a program hands to ``predict``, its inputs are labelled one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lit_foundry import ImageFolder, TextFiles
from lit_foundry.data.files.raw_inputs import image_rows, text_rows
from lit_foundry.data.files.rows import DataError
from lit_foundry.data.text.tokenizer_training import TrainTokenizer
from lit_foundry.export.inference import Predictor
from tests.conftest import reviews, write_csv
from tests.images import encoded, noise

TEXTS = ["dull rain", "bright city"]
PAIRS = [("dull rain", "night"), ("bright city", "rain")]
FRAME = pd.DataFrame(PAIRS, columns=["p", "h"], index=[7, 9])

SINGLE: dict[str, Any] = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "generator": (text for text in TEXTS),
    "map": map(str, TEXTS),
    "Series": pd.Series(TEXTS, index=[5, 3]),
    "Series of categories": pd.Series(TEXTS, dtype="category"),
    "Index": pd.Index(TEXTS),
    "array": np.array(TEXTS),
    "array of objects": np.array(TEXTS, dtype=object),
    "array of rows": np.array(TEXTS).reshape(2, 1),
    "values of a dict": dict(enumerate(TEXTS)).values(),
    "DataFrame": pd.DataFrame({"n": [1, 2], "text": TEXTS}),
    "records": [{"text": text, "n": 1} for text in TEXTS],
    "one-tuples": [(text,) for text in TEXTS],
}
PAIRED: dict[str, Any] = {
    "list": PAIRS,
    "lists": [list(pair) for pair in PAIRS],
    "generator": (pair for pair in PAIRS),
    "zip": zip(*zip(*PAIRS, strict=True), strict=True),
    "array": np.array(PAIRS),
    "Series": pd.Series(PAIRS),
    "DataFrame": FRAME[["h", "p"]],
    "records": FRAME.to_dict("records"),
}


@pytest.mark.parametrize("container", SINGLE)
def test_texts_of_any_container_come_one_by_one(container: str) -> None:
    rows = text_rows(SINGLE[container], ("text",))
    assert rows == [(text,) for text in TEXTS]
    assert {type(text) for row in rows for text in row} == {str}


@pytest.mark.parametrize("container", PAIRED)
def test_pairs_of_any_container_come_one_by_one(container: str) -> None:
    assert text_rows(PAIRED[container], ("p", "h")) == PAIRS


@pytest.mark.parametrize(
    "one", ["a b", np.str_("a b"), np.array("a b"), {"text": "a b", "label": 1}], ids=str
)
def test_one_text_is_one_row(one: Any) -> None:
    assert text_rows(one, ("text",)) == [("a b",)]


@pytest.mark.parametrize("nothing", [[], (), np.array([], dtype=str), pd.Series([], dtype=str)])
def test_nothing_is_no_row(nothing: Any) -> None:
    assert text_rows(nothing, ("text",)) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "A NoneType cannot be predicted on"),
        (3.5, "A float cannot"),
        (b"bytes", "A bytes cannot"),
        ({"a", "b"}, "A set cannot"),
        (np.zeros(3), "Input 0 is or holds a float64"),
        (["a", None], "Input 1 is or holds a NoneType"),
        (["a", float("nan")], "Input 1 is or holds a float"),
        (pd.Series(["a", pd.NA]), "Input 1 is or holds a (NAType|float)"),
        ([b"bytes"], "Input 0 is or holds a bytes"),
        ([{"text": 3}], "Input 0 is or holds a int"),
        ({"text": ["a", "b"]}, "Input 0 is or holds a list"),
        ([{"txt": "a"}], "Input 0 has no 'text', as in training, but txt"),
        (pd.DataFrame({"review": ["a"]}), "Input 0 has no 'text', as in training, but review"),
        ([Path("texts.txt")], "Input 0 is or holds a PosixPath"),
        (torch.zeros(2), "Input 0 is or holds a Tensor"),
    ],
)
def test_anything_else_is_refused_by_type_in_one_line(wrong: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        text_rows(wrong, ("text",))
    assert "\n" not in str(error.value)


PIXELS = [noise(0), noise(1)]
MANY: dict[str, Callable[[], Any]] = {
    "list": lambda: PIXELS,
    "array": lambda: np.stack(PIXELS),
    "images of PIL": lambda: [Image.fromarray(pixels) for pixels in PIXELS],
    "bytes": lambda: [encoded(pixels) for pixels in PIXELS],
    "Series of images": lambda: pd.Series([Image.fromarray(pixels) for pixels in PIXELS]),
    "Series of bytes": lambda: pd.Series([encoded(pixels) for pixels in PIXELS]),
    "DataFrame": lambda: pd.DataFrame({"image": [encoded(pixels) for pixels in PIXELS]}),
    "records": lambda: [{"image": Image.fromarray(pixels), "label": 0} for pixels in PIXELS],
    "generator": lambda: (pixels for pixels in PIXELS),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    data = ImageFolder("none", size=8)
    shape = {"size": 8, "fit": "crop", "mode": "RGB", "shape": [8, 8, 3]}
    data.restore({"labels": ["cat", "dog"], **shape})
    return data


def brightness(batch: Any) -> torch.Tensor:
    """Return logits that tell images apart."""
    bright = batch["pixel_values"].float().mean((1, 2, 3)) - 127
    return torch.stack([bright, -bright], 1)


@pytest.mark.parametrize("container", MANY)
def test_images_of_any_container_are_labelled_one_by_one(
    container: str, images: ImageFolder
) -> None:
    predictor = Predictor(images, brightness)
    expected = torch.cat([predictor.predict(pixels).probs for pixels in PIXELS])
    torch.testing.assert_close(predictor.predict(MANY[container]()).probs, expected)
    assert expected[0, 0] != expected[1, 0]


def test_paths_of_images_are_read_from_any_container(images: ImageFolder, tmp_path: Path) -> None:
    predictor = Predictor(images, brightness)
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, pixels in zip(paths, PIXELS, strict=True):
        path.write_bytes(encoded(pixels))
    expected = predictor.predict(PIXELS).probs
    names = [str(path) for path in paths]
    for container in (
        paths,
        names,
        pd.Series(names),
        np.array(names),
        pd.DataFrame({"image": names}),
    ):
        torch.testing.assert_close(predictor.predict(container).probs, expected)
    for one in (paths[0], names[0], {"image": names[0]}, encoded(PIXELS[0])):
        torch.testing.assert_close(predictor.predict(one).probs, expected[:1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "A NoneType cannot be predicted on: give a path, bytes"),
        ([3], "Input 0 is or holds a int"),
        (np.zeros((5, 8, 9), np.uint8), r"A.* array \(5, 8, 9\), and no image has 9 channels"),
        (np.zeros(5, np.uint8), "Input 0 is or holds a uint8"),
        ([{"picture": "a.png"}], "Input 0 has no 'image', as in training, but picture"),
        (torch.zeros(2, 3, 8, 8), "Input 0 is or holds a Tensor"),
        ({"a.png", "b.png"}, "A set cannot"),
    ],
)
def test_what_is_no_image_is_refused_by_type(wrong: Any, said: str) -> None:
    with pytest.raises(DataError, match=said.removeprefix("A.*") or said):
        image_rows(wrong, "image")


def test_a_frame_of_pairs_is_labelled_as_its_rows(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", reviews(40, seed=0))
    data = TextFiles(
        TrainTokenizer("wordpiece", 300), train=str(train), max_length=32, text=["text", "label"]
    )
    data._labels = ["neg", "pos"]
    frame = pd.DataFrame({"label": ["pos", "neg"], "text": TEXTS})

    def logits(batch: Any) -> torch.Tensor:
        ids = batch["input_ids"].float().sum(1)
        return torch.stack([ids, torch.full_like(ids, 150)], 1) / 50

    predictor = Predictor(data, logits)
    rows = [(row.text, row.label) for row in frame.itertuples()]
    torch.testing.assert_close(predictor.predict(frame).probs, predictor.predict(rows).probs)
    assert len(predictor.predict(frame).labels) == 2
    with pytest.raises(DataError, match="Input 0 has 1 texts"):
        predictor.predict(frame.text)
