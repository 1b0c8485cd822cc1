"""Train a tokenizer on a corpus, and say what it makes of the text."""

import os
import shlex
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lit_foundry.atomic import replacing
from lit_foundry.sources import TOKENIZER_FILES, check_output
from lit_foundry.usage import OWN_HELP, Parser, UsageError, printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KINDS = ("wordpiece", "bpe", "unigram", "characters")
HEAD = 1_000_000  # characters on which a tokenizer is measured
SHOWN = 80  # characters that are shown cut into tokens


def main(args: list[str]) -> None:
    """Run the command."""
    parser = Parser("tokenizer", OWN_HELP["tokenizer"])
    parser.add_argument("--input", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
    parser.add_argument("--vocab_size", type=int, default=32768)
    parser.add_argument("--multiple_of", type=int, default=64)
    parser.add_argument("--lowercase", choices=("true", "false"))
    parser.add_argument("--text", default="text")
    parser.add_argument("--delimiter")
    parser.add_argument("--max_documents", type=int)
    given = parser.parse_args(args)
    if given.max_documents is not None and given.max_documents < 1:
        raise UsageError(f"--max_documents must be at least 1, got {given.max_documents}.")
    check_place(given.output, given.input)
    tokenizer, texts = train(given)
    save(tokenizer, given.output)
    print(f"Wrote {given.output}: {given.kind}, {len(tokenizer)} tokens.")
    print(measured(tokenizer, list(head(texts))))
    print(f"To use it: --data.tokenizer {shlex.quote(str(given.output))}")


def check_place(output: Path, inputs: Sequence[str] = ()) -> None:
    """Refuse, before any training, what cannot be written, is read, or holds something else.

    Raises:
        ValueError: If ``output`` is such a folder.
    """
    if output.exists():
        names = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
        others = names - TOKENIZER_FILES or (names and "tokenizer.json" not in names)
        if not output.is_dir() or others:
            raise UsageError(f"--output {output} exists and is no tokenizer: name another folder.")
        check_output(output, inputs)
    above = next(path for path in output.absolute().parents if path.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UsageError(f"--output {output}: {above} cannot be written to. Name another folder.")


@dataclass(frozen=True)
class Texts:
    """Documents that show how far they are read, each time they are.

    Args:
        documents: All there are.
        most: How many to read; None reads all.
    """

    documents: Iterable[str]
    most: int | None

    def __iter__(self) -> Iterator[str]:
        from tqdm.auto import tqdm

        with tqdm(desc="Reading", unit="B", unit_scale=True, disable=None) as bar:
            for text in islice(self.documents, self.most):
                yield text
                bar.update(len(text.encode()))


def train(given: Namespace) -> tuple["PreTrainedTokenizerFast", Texts]:
    """Return the tokenizer and what it was trained on.

    Raises:
        UsageError: If a size lies outside its range.
    """
    # Here because they take seconds, which a mistake above need not wait for.
    from lit_foundry.data.files.documents import Documents
    from lit_foundry.data.text.tokenizer_training import TrainTokenizer, trained

    lowercase = given.kind == "wordpiece" if given.lowercase is None else given.lowercase == "true"
    try:
        config = TrainTokenizer(given.kind, given.vocab_size, lowercase, given.multiple_of)
    except ValueError as error:
        raise UsageError(str(error).replace("data.tokenizer.", "--")) from None
    documents = Documents(given.input, text=given.text, delimiter=given.delimiter)
    texts = Texts(documents, given.max_documents)
    return trained(config, texts), texts


def head(texts: Texts) -> Iterator[str]:
    """Yield the first texts, cut after ``HEAD`` characters in all."""
    room = HEAD
    for text in islice(texts.documents, texts.most):
        yield text[:room]
        room -= len(text)
        if room <= 0:
            return


def save(tokenizer: "PreTrainedTokenizerFast", output: Path) -> None:
    """Write a tokenizer's folder whole, or leave what was there before."""
    from lit_foundry.data.text.tokenizer import save_tokenizer

    with replacing(output) as partial:
        save_tokenizer(tokenizer, partial)


def measured(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> str:
    """Say into how many tokens texts are cut, and show it for the first of them."""
    from lit_foundry.data.text.token_cache import encode

    ids = encode(texts, tokenizer).ids
    num_bytes = sum(len(text.encode()) for text in texts)
    num_words = sum(len(text.split()) for text in texts)
    unknown = (ids == tokenizer.unk_token_id).sum() / max(1, len(ids))
    text = texts[0].strip()
    shown = text if len(text) <= SHOWN else text[:SHOWN].rsplit(maxsplit=1)[0]
    tokens = printable("|".join(tokenizer.tokenize(shown)).replace("\n", r"\n"))
    return (
        f"The first {num_bytes:,} bytes of text: {num_bytes / max(1, len(ids)):.2f} bytes a token, "
        f"{len(ids) / num_words:.2f} tokens a word, {unknown:.2%} of the tokens unknown.\n"
        f"They begin: {tokens}"
    )
