"""Score TF-IDF with logistic regression on the splits of a config: what a network must beat.

usage: python scripts/baseline.py configs/demo.yaml [KEY=VALUE ...]

KEY=VALUE sets an argument of the data section, such as root=path/to/imdb. Needs scikit-learn.
"""

import io
import pickle
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress

import numpy as np
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from lit_foundry.checkpoints.files import build
from lit_foundry.cli.main import main as foundry
from lit_foundry.data import TextData

COUNT = 500  # texts whose latency is measured, one by one


def main(config: str, *changes: str) -> None:
    """Fit on the training split, word 1-2-grams; print test accuracy, time, size and latency."""
    changed = [f"--data.{change}" for change in changes]
    with redirect_stdout(io.StringIO()) as shown, suppress(SystemExit):
        foundry(["fit", "--config", config, *changed, "--print_config"])
    data: TextData = build(yaml.safe_load(shown.getvalue())["data"], TextData)
    train, test = data.table("train"), data.table("test")
    start = time.perf_counter()
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(words.fit_transform(train.texts), train.labels)
    accuracy = model.score(words.transform(test.texts), test.labels)
    seconds = time.perf_counter() - start
    sizes = f"{len(test)} texts, {len(train)} to train on"
    print(f"test accuracy {accuracy:.4f} on {sizes}, {seconds:.0f} s")
    times = [
        timed(lambda text=text: model.predict(words.transform([text])))
        for text in test.texts[:COUNT]
    ]
    median, p95 = np.percentile(times, [50, 95]) * 1000
    size = len(pickle.dumps((words.vocabulary_, words.idf_, model))) / 1e6
    print(f"{size:.1f} MB as a pickle; a text takes {median:.2f} ms, 95th percentile {p95:.2f} ms")


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
