"""The sections of a page: which kinds they show, and that their numbers are right."""

import html
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image
from scipy import stats
from sklearn import metrics

from lit_foundry.report import classes_section, command, plots, tables, tags_section, value_section
from lit_foundry.report.analysis import calibration
from lit_foundry.report.blocks import NONE
from lit_foundry.report.number_section import plot_numbers
from lit_foundry.report.sections import SECTIONS
from lit_foundry.runs.past import named
from lit_foundry.runs.predictions import NO_TAG, Predictions
from tests.predicted import COUNT, LABELS, columns, predictions

TEXTS = {"text": [f"the <{i}> text" for i in range(COUNT)], "tokens": list(range(COUNT))}
HEADINGS = {
    "class": ["Confusion matrix", "Reliability", "Classes", "Most confident mistakes"],
    "classes": ["Reliability", "Classes", "Most wrong labels"],
    "value": ["Scores", "Predicted and true values", "Largest errors"],
    "values": ["Scores", "Predicted and true values", "Largest errors"],
    "tags": ["Tags", "Most wrong tags"],
    "number": ["error", "count"],
}
FILES = {
    "class": {"confusion", "calibration"},
    "classes": {"calibration"},
    "value": {"values"},
    "values": {"values"},
    "tags": set(),
    "number": {"number_error", "number_count"},
}


def run_of(folder: Path, said: Predictions, number: int = 1) -> Path:
    """Write the folder of a finished run with its test."""
    path = folder / "runs" / "made" / str(number)
    said.write(path / "predictions" / "test.parquet")
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "best.ckpt").touch()
    (path / "config.yaml").write_text(f"model: {{seed: {number}}}\n", encoding="utf-8")
    (path / "metrics.csv").write_text("step,val/loss\n0,0.5\n", encoding="utf-8")
    scores = {"test.json": {"test/loss": 0.5}, "summary.json": {"seconds": 1.0, "parameters": 3}}
    for name, content in scores.items():
        (path / name).write_text(json.dumps(content), encoding="utf-8")
    return path


def page_of(*runs: Path, output: Path) -> str:
    command.write(runs, output)
    return (output / "index.html").read_text(encoding="utf-8")


def headings(page: str) -> list[str]:
    return re.findall(r"<h3>(.*?)</h3>", page)


def tables_of(page: str) -> list[list[list[str]]]:
    """Return the cells of the tables of samples and scores as a reader sees them."""
    found = []
    for table in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        found.append([[html.unescape(re.sub("<.*?>", "", c)) for c in row] for row in cells])
    return found


@pytest.mark.parametrize("kind", HEADINGS)
def test_a_page_shows_what_its_kind_has_and_no_more(kind: str, tmp_path: Path) -> None:
    page = page_of(run_of(tmp_path, predictions(kind)), output=tmp_path / "out")
    assert headings(page) == HEADINGS[kind]
    pictures = {path.stem for path in (tmp_path / "out").glob("test_*.png")}
    assert pictures == {f"test_{name}" for name in FILES[kind]}
    assert not re.search("<th[^>]*>(tokens|text|image)</th>", page)
    assert "It has no predictions of the validation split." in page


@pytest.mark.parametrize("kind", HEADINGS)
def test_runs_stand_side_by_side(kind: str, tmp_path: Path) -> None:
    runs = [run_of(tmp_path, predictions(kind, seed, **TEXTS), seed) for seed in (1, 2)]
    page = page_of(*runs, output=tmp_path / "out")
    more = ["Agreement", "Accuracy against length"] if kind == "class" else []
    assert sorted(headings(page)) == sorted([*more, *HEADINGS[kind]])
    assert page.count("made/1") == page.count("made/2") > 5
    shown = page[page.index('id="test"') :]
    assert re.search(r'<td class="text">the &lt;\d+&gt; text</td>', shown)
    if kind in ("value", "values"):
        [scores, *_] = tables_of(shown)
        assert [row[0] for row in scores[1:]] == [
            f"made/{i}" for i in (1, 2) for _ in LABELS[kind] or [0]
        ]


def test_kinds_of_several_runs_come_one_after_the_other(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, predictions(kind), i) for i, kind in enumerate(("tags", "value"))]
    page = page_of(*runs, output=tmp_path / "out")
    assert headings(page) == [*HEADINGS["value"], *HEADINGS["tags"]]


def test_numbers_beside_what_is_predicted_have_their_section(tmp_path: Path) -> None:
    loss = np.arange(COUNT) / 7
    loss[5] = np.nan
    said = Predictions(LABELS["class"], {**columns("class"), "my loss": loss}, TEXTS)
    page = page_of(run_of(tmp_path, said), output=tmp_path / "out")
    assert headings(page)[-1] == "my loss"
    rows = tables_of(page)[-1]
    assert rows[0] == ["id", "my loss", "tokens", "text"]
    assert rows[1:3] == [
        ["5", NONE, "5", "the <5> text"],
        ["59", "8.429", "59", "the <59> text"],
    ]
    assert (tmp_path / "out" / "test_number_my_loss.png").exists()


@pytest.mark.parametrize("kind", ["value", "values"])
def test_scores_of_values_are_those_of_sklearn_and_scipy(kind: str, tmp_path: Path) -> None:
    said = predictions(kind)
    [scores, errors] = tables_of(page_of(run_of(tmp_path, said), output=tmp_path / "out"))
    names = ["run", "MAE", "RMSE", "R²", "Pearson", "Spearman", "samples"]
    assert [name for name in scores[0] if name != "value"] == names
    for row, (name, (target, value)) in zip(scores[1:], value_section.pairs(said), strict=True):
        theirs = (
            metrics.mean_absolute_error(target, value),
            metrics.root_mean_squared_error(target, value),
            metrics.r2_score(target, value),
            stats.pearsonr(target, value).statistic,
            stats.spearmanr(target, value).statistic,
        )
        assert row[-6:-1] == [f"{score:.4g}" for score in theirs]
        assert row[1] == name or kind == "value"
    assert len(errors) == 21
    off = [abs(float(row[-1])) for row in errors[1:]]
    if kind == "value":
        assert errors[0] == ["id", "true", "predicted", "error"]
        assert off == sorted(off, reverse=True)
        worst = np.abs(said.predicted - said.target).argmax()
        assert errors[1][0] == f"s{worst}"
    else:
        assert {row[1] for row in errors[1:]} <= {"width", "height"}


def test_ranks_of_ties_and_scores_that_nothing_defines() -> None:
    values = np.array([3.0, 1, 3, 2, 3, 1])
    np.testing.assert_array_equal(value_section.ranks(values), stats.rankdata(values))
    scores = value_section.scores(np.ones(4), np.array([1.0, 2, 3, 4]))
    assert [name for name, score in scores.items() if np.isnan(score)] == [
        *("R²", "Pearson", "Spearman")
    ]


def test_scores_of_several_classes_are_those_of_sklearn(tmp_path: Path) -> None:
    said = predictions("classes", **TEXTS)
    page = page_of(run_of(tmp_path, said), output=tmp_path / "out")
    [scores, worst] = tables_of(page)
    theirs = metrics.precision_recall_fscore_support(
        said.target, said.predicted, average=None, zero_division=0
    )
    for i, name in enumerate(LABELS["classes"]):
        told = [f"{column[i]:.4f}" for column in theirs[:3]]
        assert scores[i + 1] == [name, *told, str(theirs[3][i])]
    micro = metrics.f1_score(said.target, said.predicted, average="micro")
    macro = metrics.f1_score(said.target, said.predicted, average="macro")
    assert f"micro F1 {micro:.4f}, macro F1 {macro:.4f}" in page
    assert f"all labels right of {(said.predicted == said.target).all(1).mean():.1%}" in page
    row = int(said.worst()[0])
    pair = [
        [LABELS["classes"][i] for i in np.flatnonzero(c[row])]
        for c in (said.target, said.predicted)
    ]
    wrong = int((said.predicted != said.target)[row].sum())
    assert worst[1][:4] == [f"s{row}", str(wrong), *(", ".join(names) or NONE for names in pair)]
    assert wrong == (said.predicted != said.target).sum(1).max()


def test_probabilities_of_several_classes_are_calibrated_each_on_its_own() -> None:
    target = np.random.default_rng(0).random((4000, 3)) < [0.1, 0.5, 0.9]
    prob = np.tile(np.array([0.1, 0.5, 0.9], np.float32), (4000, 1))
    found = calibration(Predictions([], {"prob": prob, "target": target}))
    assert found.error < 0.02
    assert found.count.sum() == 12000
    assert classes_section.micro_f1(Predictions([], {"prob": prob, "target": target})) > 0.7


def test_scores_of_tags_are_those_of_sklearn(tmp_path: Path) -> None:
    said = predictions("tags")
    texts = [" ".join(f"w{i}" for i in range(int((row != NO_TAG).sum()))) for row in said.target]
    texts[int(said.worst()[1])] += " and more"
    said = predictions("tags", text=texts)
    page = page_of(run_of(tmp_path, said), output=tmp_path / "out")
    [scores, worst] = tables_of(page)
    known = said.target != NO_TAG
    theirs = metrics.precision_recall_fscore_support(said.target[known], said.predicted[known])
    for i, name in enumerate(LABELS["tags"]):
        told = [f"{column[i]:.4f}" for column in theirs[:3]]
        assert scores[i + 1] == [name, *told, str(theirs[3][i])]
    right = (said.target == said.predicted)[known].mean()
    assert f"accuracy {right:.4f} on {known.sum()} tags of {COUNT} samples" in page
    for place, word in ((0, "w{}"), (1, "{}.")):
        row = int(said.worst()[place])
        pairs = zip(said.predicted[row], said.target[row], strict=True)
        told = [
            f"{word.format(i + place)}: {LABELS['tags'][a]} for {LABELS['tags'][b]}"
            for i, (a, b) in enumerate(pairs)
            if a != b
        ]
        size = int((said.target[row] != NO_TAG).sum())
        assert worst[place + 1] == [
            f"s{row}",
            str(len(told)),
            str(size),
            ", ".join(told),
            texts[row],
        ]


def test_a_tag_that_is_not_predicted_is_missed() -> None:
    given = {"tag": np.array([[0, NO_TAG]]), "target": np.array([[0, 1]])}
    said = Predictions(["O", "PER"], given)
    assert tags_section.accuracy(said) == 0.5
    (run,) = named([Path("a")])
    rows = tags_section.tag_table(run, said).rows
    assert rows[1] == ["PER", "0.0000", "0.0000", "0.0000", "1"]
    assert tags_section.mistakes(run, said).rows == [[0, "1", "2", f"2.: {NONE} for PER"]]


@pytest.mark.parametrize("kind", ["class", "classes", "value", "values", "number"])
def test_samples_that_are_images_are_shown(kind: str, tmp_path: Path) -> None:
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    said = predictions(kind, image=[file.getvalue()] * COUNT)
    page = page_of(run_of(tmp_path, said), output=tmp_path / "out")
    assert ("Samples" in headings(page)) == (kind != "number")
    assert page.count('<td><img src="data:image/png;base64,') >= 20
    if kind == "value":
        first = f"{said.predicted[0]:.4g}<br>is {said.target[0]:.4g}"
        assert f"<figcaption>{first}</figcaption>" in page


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        *(("class", "accuracy"), ("classes", "micro F1"), ("value", "mean absolute error")),
        *(("tags", "accuracy of tags"), ("number", NONE)),
    ],
)
def test_an_unfinished_run_tells_how_good_it_is_so_far(
    kind: str, said: str, tmp_path: Path
) -> None:
    path = run_of(tmp_path, predictions(kind))
    (path / "summary.json").unlink()
    (path / "predictions" / "test.parquet").rename(path / "predictions" / "val.parquet")
    (run,) = named([path])
    assert re.fullmatch(rf"[\d.]+ {said} at step 7, so far|{said}", tables.best(run))


def test_every_section_has_a_kind_of_its_own() -> None:
    kinds = [section.kind for section in SECTIONS]
    assert len(set(kinds)) == len(kinds) == 5


def test_what_is_infinite_or_all_the_same_is_drawn(tmp_path: Path) -> None:
    odd = np.array([np.nan, np.inf, 2.0, 2.0])
    value_section.plot_values(
        {"a$": (odd, np.ones(4)), "b": (odd[:2], odd[:2])}, "red", tmp_path / "v.png"
    )
    plot_numbers({"a": (0, odd), "b$": (1, odd[:2])}, "loss_$", tmp_path / "n.png")
    for name in ("v.png", "n.png"):
        assert imread(tmp_path / name).std() > 0
    said = Predictions([], {"value": np.array([np.inf, 1.0]), "target": np.array([1.0, 1.0])})
    page_of(run_of(tmp_path, said), output=tmp_path / "out")


def test_every_line_of_new_plots_is_in_its_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    value_section.plot_values(dict(value_section.pairs(predictions("values"))), "red", Path())
    plot_numbers({"a": (0, np.arange(9)), "b": (1, np.arange(9))}, "loss", Path())
    [values, numbers] = figures
    for axes in values.axes[::2]:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["predicted = true"]
    told = [text.get_text() for text in numbers.axes[0].get_legend().get_texts()]
    assert told == ["a, mean 4", "b, mean 4"]
