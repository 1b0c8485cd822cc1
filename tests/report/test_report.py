"""The report: one page of one run or of several, and what it says when pieces are missing."""

import base64
import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from matplotlib.image import imread
from sklearn.metrics import precision_recall_fscore_support
from torchmetrics.classification import MulticlassCalibrationError

from lit_foundry.cli import main as cli
from lit_foundry.report import analysis, plots
from lit_foundry.report import command as report
from lit_foundry.report import tables as report_facts
from lit_foundry.runs import past as past_run
from lit_foundry.runs.predictions import Predictions
from lit_foundry.usage import UsageError
from tests.conftest import REPO, reviews, tiny_config, write_config, write_csv

SECTIONS = {
    "one": ("Run", "Settings", "Curves", "Test split", "Validation split"),
    "several": ("Runs", "Settings", "Curves", "Test split", "Validation split"),
}
PARTS = (
    "Confusion matrix", "Reliability", "Accuracy against length", "Classes",
    "Most confident mistakes",
)  # fmt: skip
EXTERNAL = re.compile(r"""\b(?:src|href)=(?!"data:|"#)|url\(|@import|<link|<script""")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny config with its test."""
    folder = tmp_path_factory.mktemp("report")
    write_csv(folder / "train.csv", reviews(120, seed=0))
    write_csv(folder / "test.csv", reviews(40, seed=1))
    run = cli.main(
        ["fit", "--config", str(write_config(folder / "tiny.yaml", tiny_config(folder)))]
    )
    cli.main(["test", "--ckpt_path", str(run.run.checkpoints / "best.ckpt")])
    return Path(run.run.path)


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(fitted, tmp_path / "runs" / "tiny" / "1"))


def page_of(*runs: Path, output: Path) -> str:
    report.main([*map(str, runs), "--output", str(output)])
    return (output / "index.html").read_text(encoding="utf-8")


def headings(page: str, level: int) -> list[str]:
    return re.findall(rf"<h{level}[^>]*>(.*?)</h{level}>", page)


def random_predictions(seed: int, count: int = 500, classes: int = 4) -> Predictions:
    """Make predictions of some skill, with sure ones, a class that is never predicted, and ties."""
    rng = np.random.default_rng(seed)
    target = rng.integers(classes, size=count)
    logits = rng.normal(size=(count, classes)) * 3 + 2 * np.eye(classes)[target]
    logits[:, -1] = -99
    logits[:20, 0] = 200  # a probability of exactly 1
    probs = torch.tensor(logits, dtype=torch.float32).softmax(1).numpy()
    samples = {"id": [str(i) for i in range(count)], "tokens": rng.integers(3, 90, count).tolist()}
    columns = {"prob": probs, "target": target}
    return Predictions([f"c{i}" for i in range(classes)], columns, samples)


def test_page_of_one_run_has_every_section(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(run)])
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert str(run / "report" / "index.html") in capsys.readouterr().out
    assert tuple(headings(page, 2)) == SECTIONS["one"]
    assert tuple(headings(page, 3)) == PARTS * 2
    scores = json.loads((run / "test.json").read_text(encoding="utf-8"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    told = (f"{scores['test/acc']:.4f}", f"{summary['best_score']:.4f}", "hidden_size: 32")
    assert [text for text in told if text not in page] == []
    assert 'class="box missing"' not in page


def test_page_stands_alone_and_its_images_lie_beside_it(run: Path, tmp_path: Path) -> None:
    page = page_of(run, output=tmp_path / "out")
    assert EXTERNAL.findall(page) == []
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    files = {path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert {base64.b64decode(image) for image in embedded} == files
    assert len(files) == 7
    for image in files:
        assert imread(BytesIO(image)).std() > 0
    left = [p.name for p in tmp_path.rglob("*partial*")]
    assert left == []


def test_page_of_two_runs_sets_them_side_by_side(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, run.parent / "2"))
    config = yaml.safe_load((other / "config.yaml").read_text(encoding="utf-8"))
    config["model"]["init_args"]["optim"]["lr"] = 0.125
    (other / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    path = other / "predictions" / "test.parquet"
    found = Predictions.read(path)
    turned = {**found.columns, "prob": found.probs[:, ::-1].copy()}
    replace(found, columns=turned).write(path)  # wrong where the other is right
    page = page_of(run, other, output=tmp_path / "out")
    assert tuple(headings(page, 2)) == SECTIONS["several"]
    assert headings(page, 3) == ["Agreement", *PARTS] * 2
    assert "tiny/1" in page
    assert "tiny/2" in page
    settings = page[page.index("in which the runs differ") : page.index('id="curves"')]
    assert re.findall(r"<th scope=\"row\"><code>(.*?)</code>", settings) == [
        "model.init_args.optim.lr"
    ]
    assert "<code>0.125</code>" in settings
    right = int((found.predicted == found.target).sum())
    agreement = analysis.agreement(found, Predictions.read(path))
    assert agreement == analysis.Agreement(0, right, len(found.target) - right, 0)
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names >= {"tiny_1_test_confusion.png", "tiny_2_test_confusion.png"}
    assert names >= {"test_reliability.png", "val_length.png", "curves.png"}


def test_markup_in_data_is_text(run: Path, tmp_path: Path) -> None:
    path = run / "predictions" / "test.parquet"
    found = Predictions.read(path)
    evil = "<script>alert(1)</script> & $x_1$ <img src=http://a.example>"
    samples = dict(found.samples) | {"text": [evil] * len(found.target)}
    labels = ["<b>neg</b>", "$pos"]
    columns = {"prob": found.probs, "target": 1 - found.predicted}
    Predictions(labels, columns, samples).write(path)
    page = page_of(run, output=tmp_path / "out")
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x_1$" in page
    assert "&lt;b&gt;neg&lt;/b&gt;" in page


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_is_that_of_torchmetrics(seed: int) -> None:
    found = random_predictions(seed)
    metric = MulticlassCalibrationError(num_classes=4, n_bins=15, norm="l1")
    theirs = metric(torch.from_numpy(found.probs), torch.from_numpy(found.target))
    ours = analysis.calibration(found)
    assert (found.probs.max(1) == 1).any()
    assert ours.error == pytest.approx(float(theirs), abs=1e-6)
    assert ours.count.sum() == len(found.target)
    assert len(ours.count) == 15


def test_calibration_error_is_that_which_the_test_logged(fitted: Path) -> None:
    found = Predictions.read(fitted / "predictions" / "test.parquet")
    logged = json.loads((fitted / "test.json").read_text(encoding="utf-8"))[
        "test/calibration_error"
    ]
    assert analysis.calibration(found).error == pytest.approx(logged, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_class_scores_are_those_of_sklearn(seed: int) -> None:
    found = random_predictions(seed)
    theirs = precision_recall_fscore_support(
        found.target, found.predicted, labels=range(4), zero_division=0
    )
    ours = analysis.class_scores(analysis.confusion(found))
    pairs = zip((ours.precision, ours.recall, ours.f1, ours.support), theirs, strict=True)
    for mine, other in pairs:
        np.testing.assert_allclose(mine, other)


def test_each_sample_falls_into_one_bin_of_length() -> None:
    found = random_predictions(0)
    edges = analysis.length_edges([found])
    bins = analysis.by_length(found, edges)
    assert bins.count.sum() == 500
    assert bins.count.min() > 40
    right = (found.predicted == found.target).sum()
    assert (bins.accuracy * bins.count).sum() == pytest.approx(right)
    same = replace(found, samples={"tokens": [7] * 500})
    assert analysis.length_edges([same]).tolist() == [7, 8]


def test_wilson_intervals_are_those_of_the_literature() -> None:
    # Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 3.
    low, high = analysis.wilson(np.array([81, 15, 0, 1]), np.array([263, 148, 20, 29]))
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0, 0.0061], atol=2e-4)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=2e-4)


def test_mistakes_are_wrong_and_the_most_confident_come_first() -> None:
    found = random_predictions(0)
    rows = found.worst()
    assert len(rows) == 20
    assert (found.predicted[rows] != found.target[rows]).all()
    sure = found.probs.max(1)
    assert (np.diff(sure[rows]) <= 0).all()
    others = np.setdiff1d(np.flatnonzero(found.predicted != found.target), rows)
    assert sure[others].max() <= sure[rows].min()


def test_runs_on_other_samples_are_not_compared() -> None:
    found = random_predictions(0)
    other = replace(found, samples={"id": [f"x{i}" for i in range(500)]})
    assert analysis.agreement(found, other) is None
    order = np.random.default_rng(0).permutation(500)
    ids = {"id": [str(i) for i in order]}
    columns = {name: column[order] for name, column in found.columns.items()}
    shuffled = replace(found, columns=columns, samples=ids)
    same = analysis.agreement(found, shuffled)
    assert same is not None
    assert (same.only_first, same.only_second, same.both + same.neither) == (0, 0, 500)


def test_interrupted_run_says_what_is_missing_and_what_makes_it(run: Path, tmp_path: Path) -> None:
    for name in ("summary.json", "test.json", "predictions/test.parquet"):
        (run / name).unlink()
    with (run / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("17,0.5")  # half a row, as a killed process leaves it
    (run / "environment-resumed-at-9.json").write_text(
        (run / "environment.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    page = page_of(run, output=tmp_path / "out")
    assert "It has no summary: it was interrupted, or still runs." in page
    assert "--experiment tiny --resume auto" in page
    assert f"It has no test yet. <code>{past_run.COMMAND} test --ckpt_path {run}" in page
    assert "accuracy at step" in page
    assert "so far" in page
    assert "at step 9" in page
    assert tuple(headings(page, 2)) == ("Run", "Settings", "Curves", "Validation split")


def test_run_without_predictions_says_how_to_make_them(run: Path, tmp_path: Path) -> None:
    (run / "predictions" / "test.parquet").unlink()
    page = page_of(run, output=tmp_path / "out")
    assert "It has no predictions of the test split." in page
    (run / "predictions" / "val.parquet").unlink()
    for name in ("test.json", "metrics.csv"):
        (run / name).unlink()
    page = page_of(run, output=tmp_path / "out")
    assert f"It has no validation yet. <code>{past_run.COMMAND} validate --ckpt_path {run}" in page
    assert headings(page, 2)[-1] == "Predictions"


def test_run_of_a_task_that_keeps_nothing_of_samples_lacks_nothing(
    run: Path, tmp_path: Path
) -> None:
    shutil.rmtree(run / "predictions")
    page = page_of(run, output=tmp_path / "out")
    assert headings(page, 2) == ["Run", "Settings", "Curves"]
    assert 'class="box missing"' not in page
    (run / "test.json").unlink()
    page = page_of(run, output=tmp_path / "out")
    assert "It has no test yet." in page
    assert "predictions" not in page


def test_run_that_only_began_has_a_page(run: Path, tmp_path: Path) -> None:
    for path in run.iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of(run, output=tmp_path / "out")
    assert "It has no checkpoint to evaluate." in page
    assert "No run has logged a step." in page


def test_experiment_stands_for_its_last_run_and_a_checkpoint_for_its_own(run: Path) -> None:
    for number in ("2", "10"):
        shutil.copytree(run, run.parent / number)
    (run.parent / "11").mkdir()  # failed before it began
    assert past_run.run_folder(run.parent) == run.parent / "10"
    assert past_run.run_folder(run / "checkpoints" / "best.ckpt") == run
    assert past_run.run_folder(run) == run


def test_folder_that_is_no_run_is_told_with_the_nearest(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"tiyn is no run: .* The nearest is runs/tiny/1\."):
        report.main(["runs/tiyn"])
    with pytest.raises(ValueError, match=r"rnus/tiny/1 is no run: .* nearest is runs/tiny/1\."):
        report.main(["rnus/tiny/1"])
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(ValueError, match=r"no run: .* fit --config FILE\."):
        report.main(["runs/tiny"])
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a --outptu b", "report takes no --outptu. Did you mean --output?"),
        ("--outptu=b", "report takes no --outptu. Did you mean --output?"),
        ("--xyz", "report takes no --xyz. It has --help, --output, --batch, --import."),
        ("--out a", "report takes no --out. Did you mean --output?"),
        ("", "report: the following arguments are required: RUN. See "),
        ("a --output", "report: argument --output: expected one argument. See "),
    ],
)
def test_mistake_on_the_command_line_is_one_line(words: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        report.main(words.split())
    assert str(caught.value).startswith(said)
    assert len(str(caught.value).splitlines()) == 1


def test_failure_leaves_the_old_report(run: Path, tmp_path: Path) -> None:
    page = page_of(run, output=tmp_path / "out")
    (run / "predictions" / "val.parquet").write_bytes(b"half")
    with pytest.raises(Exception, match="Parquet"):
        page_of(run, output=tmp_path / "out")
    assert (tmp_path / "out" / "index.html").read_text(encoding="utf-8") == page
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "out"}
    with pytest.raises(ValueError, match="is a file; name a folder"):
        page_of(run, output=run / "config.yaml")


def test_report_needs_no_torch(run: Path) -> None:
    code = f"""
import sys
from lit_foundry.report.command import main
main([{str(run)!r}])
sys.exit(f"imported {{found}}" if (found := {{"torch", "lightning"}} & set(sys.modules)) else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
        encoding="utf-8",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_report_tells_why_a_run_stopped_early(run: Path, tmp_path: Path) -> None:
    stopped = Path(shutil.copytree(run, tmp_path / "stopped" / "1"))
    summary = json.loads((stopped / "summary.json").read_text(encoding="utf-8"))
    summary["stopped_early"] = "val/acc got no better than 0.9 in 3 validations"
    (stopped / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    report.main([str(stopped)])
    assert summary["stopped_early"] in (stopped / "report" / "index.html").read_text(
        encoding="utf-8"
    )


def test_runs_of_one_name_are_told_apart_by_their_paths(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "others" / "tiny" / "1"))
    assert [r.name for r in past_run.named([run, other])] == [str(run), str(other)]


def test_curves_draw_long_noisy_series_and_many_classes(tmp_path: Path) -> None:
    with (tmp_path / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["step", "train/loss"], *([i, 1 / (i + 1)] for i in range(100))])
    assert plots.plot_curves({"a$": tmp_path / "metrics.csv"}, tmp_path / "curves.png")
    assert not plots.plot_curves({"a": tmp_path / "none.csv"}, tmp_path / "none.png")
    plots.plot_confusion(np.eye(80), [f"class {i}" for i in range(80)], tmp_path / "many.png")
    assert max(imread(tmp_path / "many.png").shape) < 2500


@pytest.mark.parametrize(
    ("seconds", "said"), [(42.1, "0 min 42 s"), (119.6, "2 min 00 s"), (7261, "2 h 01 min")]
)
def test_times_are_written_as_one_reads_them(seconds: float, said: str) -> None:
    assert report_facts.duration(seconds) == said


METRICS = b"step,val/acc,train/loss\n0,0.5,2.0\n1,,1.5\n2,0.75,1.0\n"


@pytest.mark.parametrize(
    "content",
    [
        METRICS + b"3,0.8",  # torn
        METRICS + b"\0" * 900,  # blocks that a crash left unwritten
        METRICS + b"\0\0\0\n",
        METRICS + b"3\n4,\n,0.9,1.0\n",  # too few cells
        METRICS + b'"3,0.9\n4,"0.9,0.9\n',
        METRICS + b"3,0.9x,\xff\n",
        METRICS + b"x,1,2\n",
        METRICS.replace(b"1,,1.5\n", b"1,,1.5,7,8\n"),  # too many
    ],
)
def test_metrics_that_a_crash_tore_are_read_as_far_as_they_go(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    series = past_run.read_metrics(tmp_path / "metrics.csv")
    assert series == {"val/acc": ([0, 2], [0.5, 0.75]), "train/loss": ([0, 1, 2], [2.0, 1.5, 1.0])}


def test_files_that_a_crash_emptied_are_as_good_as_missing(run: Path, tmp_path: Path) -> None:
    for name, content in (
        *(("metrics.csv", b""), ("summary.json", b""), ("test.json", b"\0" * 99)),
        *(("environment.json", b'{"git"'), ("val.json", b"[]")),
    ):
        (run / name).write_bytes(content)
    (run / "samples").mkdir()
    (run / "samples" / "notes.txt").write_text("mine", encoding="utf-8")
    page = page_of(run, output=tmp_path / "out")
    assert "It has no summary: it was interrupted, or still runs." in page
    assert "No run has logged a step." in page
    (run / "config.yaml").write_bytes(b"model: {\0")
    with pytest.raises(ValueError, match=r"config\.yaml is no config \(") as caught:
        page_of(run, output=tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1


def test_scores_of_earlier_versions_are_shown_by_their_names_of_today(run: Path) -> None:
    scores = json.loads((run / "test.json").read_text(encoding="utf-8"))
    assert {"test/f1", "test/f1_macro"} < scores.keys()
    (today,) = past_run.named([run])
    assert {"test/f1", "test/f1_macro"} < dict(report_facts.about(today)).keys()
    part = {**scores, "part": "limit_test_batches=5"}
    (run / "test.json").write_text(json.dumps(part), encoding="utf-8")
    told = dict(report_facts.about(past_run.named([run])[0]))["test/f1"]
    assert told == f"{scores['test/f1']:.4f}, of a part: limit_test_batches=5"
    scores["test/f1"] = scores.pop("test/f1_macro")
    (run / "test.json").write_text(json.dumps(scores), encoding="utf-8")
    (old,) = past_run.named([run])
    assert dict(report_facts.about(old))["test/f1_macro"] == f"{scores['test/f1']:.4f}"
    assert "test/f1" not in dict(report_facts.about(old))


def test_smoothed_curves_do_not_lag() -> None:
    x = np.arange(200)
    np.testing.assert_allclose(plots.smoothed(3.0 - 0.01 * x), 3.0 - 0.01 * x)
    falling = 0.3 + 2 * np.exp(-x / 60)
    noise = np.random.default_rng(0).normal(0, 0.1, 200)
    smooth = plots.smoothed(falling + noise)
    assert abs((smooth - falling)[:100].mean()) < 0.03  # on neither side
    assert (smooth - falling)[10:-10].std() < 0.05
    holes = np.where(x % 7, falling, np.nan)
    assert np.isfinite(plots.smoothed(holes)).all()
    assert abs(plots.smoothed(holes) - falling).max() < 0.1
    assert len(plots.smoothed([np.nan] * 40)) == 40
    ending = np.append(falling, [0.01] * 3)
    assert plots.smoothed(ending).min() >= 0.01  # a line through the fall would go below


def test_every_line_is_in_its_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    rows = [f"{i},{1 / (i + 1)},{0.5 if i % 9 == 0 else ''},{0.1}" for i in range(80)]
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(["step,train/loss,val/loss,lr/head", *rows, ""]), encoding="utf-8")
    found = random_predictions(0)
    lengths = analysis.by_length(found, analysis.length_edges([found]))
    edges = analysis.length_edges([found]).tolist()
    for runs in (["a"], ["a", "b"]):
        plots.plot_curves(dict.fromkeys(runs, path), path)
        plots.plot_reliabilities({r: (0, analysis.calibration(found)) for r in runs}, path)
        plots.plot_lengths(dict.fromkeys(runs, (0, lengths)), edges, path)
    plots.plot_reliability(analysis.calibration(found), path)
    for axes in (axes for figure in figures for axes in figure.axes if axes.get_lines()):
        told = {text.get_text() for text in axes.get_legend().get_texts()}
        containers = {container.get_label() for container in axes.containers}
        drawn = {line.get_label() for line in axes.get_lines()} | containers
        assert told >= {label for label in drawn if not label.startswith("_")}
        assert axes.containers or not [label for label in drawn if label.startswith("_")]
