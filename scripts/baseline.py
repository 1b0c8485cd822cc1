"""Score TF-IDF with logistic regression on the splits of a config: what a network must beat.

usage: python scripts/baseline.py configs/demo.yaml [KEY=VALUE ...]

KEY=VALUE sets an argument of the data section, such as root=path/to/imdb. Needs scikit-learn.
"""

import io
import sys
import time
from contextlib import redirect_stdout, suppress

import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from lit_foundry.checkpoints.files import build
from lit_foundry.cli.main import main as foundry
from lit_foundry.data import TextData


def main(config: str, *changes: str) -> None:
    """Fit on the training split, word 1-2-grams, and print test accuracy and time."""
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


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
