"""Score TF-IDF with logistic regression on the splits of a config: what a network must beat.

usage: python scripts/baseline.py configs/demo.yaml [KEY=VALUE ...]

KEY=VALUE sets an argument of the data section, such as root=path/to/imdb. Needs scikit-learn.
"""

import sys
import time

import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from lit_foundry.checkpoints.files import build
from lit_foundry.data import TextData


def main(config: str, *changes: str) -> None:
    """Fit on the training split, word 1-2-grams, and print test accuracy and time."""
    with open(config, encoding="utf-8") as file:
        recipe = yaml.safe_load(file)["data"]
    recipe["init_args"] |= dict(change.split("=", 1) for change in changes)
    data: TextData = build(recipe, TextData)
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
