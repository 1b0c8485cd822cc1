"""English documentation of installed packages, labelled by package: a dataset without a download.

The docstrings of six packages that lit_foundry's own dependencies bring along are parsed, never
imported, and reduced to sentences of plain English: no code, formulas, types or section headings,
and no sentence that names one of the packages. A sentence is kept once in the whole corpus, and a
file lies in one split, so nothing learned by heart in training helps in testing. Which texts there
are depends only on the versions of the packages. They keep their packages' licences; the texts are
read where they are installed and not distributed.
"""

import ast
import gc
import hashlib
import json
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Literal, NamedTuple

from lit_foundry.atomic import replacing

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
PACKAGES = ("matplotlib", "networkx", "pandas", "python", "torch", "transformers")
FORMAT = 1  # raise it with every change to the texts: caches of another format are not read
PER_FILE = 40  # no file fills a third of a test split of 150
MIN_WORDS, MAX_WORDS = 8, 200

NAMES = re.compile(
    r"matplotlib|pyplot|pylab|networkx|pandas|python|torch|transformers|hugging ?face"
    r"|(?<![a-z0-9])(mpl|plt|nx|pd|hf)(?![a-z0-9])",
    re.IGNORECASE,
)

# Tests, copies of other projects (`version`: of packaging, in pandas), and parts of the standard
# library that later versions lack or that hold no documentation.
_SKIPPED = re.compile(
    r"(^|/)(_?tests?|_?testing|conftest\.py|(site|dist)-packages|_vendor|third_party|_numpy|version"
    r"|serialized_patterns|distutils|encodings|ensurepip|idlelib|lib2to3|pydoc_data|turtledemo)(/|$)"
)
_GENERATED = re.compile(rb"auto-?\s?generated|automatically generated|generated (from|by)", re.I)
_GENERATED_WITHIN = 600  # bytes: the notice follows a licence at most

_DROPPED = r"(?:See [Aa]lso|References?|Examples?|Methods|Usage|Doctests?|Authors?)"
_ITEMS = r"(?:(?:Other |Keyword )?(?:Param|Arg|Attr|Return|Yield|Raise|Warn|Receive)\w*)"
_BELOW = r"(?:[ \t]*\n|\1[ \t]+\S.*\n)*"  # lines deeper than one whose indentation is group 1
_HEADING = re.compile(r"^[ \t]*(\S.*)\n[ \t]*([-=~^])\2{2,}[ \t]*$", re.MULTILINE)
_EDITS = tuple(
    (re.compile(pattern, re.MULTILINE), new)
    for pattern, new in (
        (r"^[ \t]*```(?:.*\n)*?(?:[ \t]*```.*|\Z)", ""),
        (r"^[ \t]*>>>.*\n(?:[ \t]*\S.*\n)*", "\n"),
        (r"^([ \t]*)\.\. (?:note|warning|tip|caution|important)::[ \t]*", r"\1"),
        # A colon marks a sentence that code or a formula was to finish; `_MARKUP` drops it.
        (rf"(?<=[^.!?\s])\s*\n([ \t]*)\.\. math::.*\n{_BELOW}", ":\n\n"),
        (rf"^([ \t]*)\.\.[ \t].*\n{_BELOW}", "\n"),
        (rf"^([ \t]*){_DROPPED}:{{1,2}}[ \t]*\n{_BELOW}", "\n"),
        (rf"^([ \t]*)(.*)::[ \t]*\n{_BELOW}", "\\2:\n\n"),
        (rf"^[ \t]*{_ITEMS}:[ \t]*$", "\n"),
        (r"^[ \t]*[:@](?:param|type|arg|keyword|return|rtype|raise)[^:\n]*:", "\n"),
        (r"^[ \t]+(?:[-*][ \t])?[*`'\"]*\w+[*`'\"]*[ \t]*:(?=\s)", "\n"),
        (r"^[ \t]*(?:[-*][ \t])?[*`'\"]*\w+[*`'\"]* ?\(.*\)[ \t]*:(?=\s)", "\n"),
        (r"^[ \t]*(?:[-*+•]|\(?\d+[.)])[ \t]+", "\n"),
        (r":math:`[^`]*`", "$"),
        (r"(?::[\w+-]+)*:`[!~]*([^`<]*?)\s*(?:<[^`>]*>)?`", r"\1"),
        (r"`([^`<]+?)\s*<[^`>]*>`_*", r"\1"),
        (r"\[[^\]\n]*\](?:_|\([^)]*\))", ""),
        (r"`+(?:_+(?!\w))?[!~]*|\*\*|\(\)", ""),
        (r"(?<!\w)\*(\w[^*\n]*)\*(?!\w)", r"\1"),
        (r"\b(?:\w\w+\.)+(?=[A-Za-z_])|(?<!\S)\.(?=[A-Za-z])", ""),  # numpy.linalg.norm: norm
    )
)
_MARKUP = re.compile(
    r"[\\${}<>=@#|~^\[\]]|//|--|::|%\(|copyright|licen[cs]e|:$|(?<!\S)[.,;](?!\S)", re.I
)
_END = re.compile(r"(?<![.!?])(?<![.!?][)\"'])[,;]?$")
_WORD = re.compile(r"[(\"']*[A-Za-z][a-z]*(?:[-'/][A-Za-z]+)*[\"').,;:!?]*")


class Doc(NamedTuple):
    """Documentation of one module, class or function.

    Attributes:
        text: Its sentences, joined by spaces.
        label: Package.
        id: File and qualified name, such as ``pandas/core/frame.py:DataFrame.merge``.
    """

    text: str
    label: str
    id: str


Corpus = dict[Split, list[Doc]]


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of the packages, on which the texts depend.

    Raises:
        ModuleNotFoundError: If a package is not installed.
    """
    try:
        return {p: platform.python_version() if p == "python" else version(p) for p in packages}
    except PackageNotFoundError as error:
        raise _missing(str(error.name)) from None


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Read a third faster where torch and transformers are loaded: nothing here has cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_garbage_collection()
def collect(packages: Sequence[str] = PACKAGES, limit: int = 1500) -> Corpus:
    """Read the documentation of installed packages.

    The files of a package come in the order of their hashes. The first ones fill test, the next
    ones val, a tenth of ``limit`` each, and the others train.

    Args:
        packages: Names as for ``import``; ``python`` is the standard library.
        limit: Texts of a package at most.

    Raises:
        ModuleNotFoundError: If a package is not installed.
    """
    corpus: Corpus = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for package in packages:
        room: dict[Split, int] = {"test": limit // 10, "val": limit // 10}
        room["train"] = limit - 2 * (limit // 10)
        for name, source in _sources(package):
            split = next((split for split, left in room.items() if left), None)
            if split is None:
                break
            docs = _read(package, name, source, min(room[split], PER_FILE), seen)
            corpus[split] += docs
            room[split] -= len(docs)
    return corpus


def cached(folder: Path, packages: Sequence[str] = PACKAGES, limit: int = 1500) -> Corpus:
    """Return what `collect` returns, from a file in ``folder`` from the second time on.

    Args:
        folder: Made if there is none.
        packages: As for `collect`.
        limit: As for `collect`.
    """
    key = json.dumps([FORMAT, limit, versions(packages)])
    path = folder / f"docstrings-{_digest(key)[:12]}.json"
    if path.exists():
        head, _, body = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        if head == _digest(key + body):  # else damaged: made again
            rows: Mapping[Split, list[list[str]]] = json.loads(body)
            return {split: [Doc(*row) for row in rows[split]] for split in SPLITS}
    corpus = collect(packages, limit)
    body = json.dumps(corpus)
    with replacing(path) as part:  # several processes may write: the last one wins
        part.write_text(f"{_digest(key + body)}\n{body}", encoding="utf-8")
    return corpus


def sentences(doc: str) -> Iterator[str]:
    """Yield the sentences of a docstring that are plain English and name no package.

    Args:
        doc: Docstring as `ast.get_docstring` cleans it, in reStructuredText or Markdown, with
            numpydoc or Google sections.
    """
    for paragraph in re.split(r"\n[ \t]*(?=\n)", _prose(f"{doc}\n")):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
            if _MARKUP.search(sentence) or NAMES.search(sentence):
                continue
            words = sentence.split()
            plain = sum(_WORD.fullmatch(word) is not None for word in words)
            if len(words) >= 3 and plain >= 0.75 * len(words):
                yield sentence[0].upper() + _END.sub(".", sentence[1:])


def _prose(doc: str) -> str:
    lead, *sections = _HEADING.split(doc)
    for heading, body in zip(sections[::3], sections[2::3], strict=True):
        if re.match(_ITEMS, heading):
            body = dedent(re.sub(r"^\S.*$", "", body, flags=re.MULTILINE))  # less `name : type`
        lead += "" if re.match(_DROPPED, heading) else f"\n\n{body}"
    for pattern, new in _EDITS:
        lead = pattern.sub(new, lead)
    return lead


def _read(package: str, name: str, source: bytes, limit: int, seen: set[str]) -> list[Doc]:
    docs: list[Doc] = []
    for id_, doc in sorted(_docstrings(f"{package}/{name}", source), key=lambda d: _digest(d[0])):
        if len(docs) == limit:
            break
        if len(doc.split()) < MIN_WORDS:
            continue
        keys = ((re.sub(r"[\W\d_]+", "", s.lower()), s) for s in sentences(doc))
        text = {key: sentence for key, sentence in keys if key not in seen}
        while sum(len(sentence.split()) for sentence in text.values()) > MAX_WORDS:
            text.popitem()
        doc, key = " ".join(text.values()), "".join(text)
        if len(doc.split()) >= MIN_WORDS and key not in seen:
            docs.append(Doc(doc, package, id_))
            seen.update(text, [key])
    return docs


def _docstrings(id_: str, source: bytes) -> Iterator[tuple[str, str]]:
    """Docstrings of what a file offers in public, with ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # backslashes in other people's strings
        try:
            module = ast.parse(source)
        except SyntaxError:  # written for another Python
            return
    todo: list[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]] = [
        (id_, module)
    ]
    found: dict[str, str] = {}
    for name, node in todo:
        found.setdefault(name, ast.get_docstring(node) or "")
        if isinstance(node, (ast.Module, ast.ClassDef)):
            sign = ":" if isinstance(node, ast.Module) else "."
            for child in node.body:
                public = not getattr(child, "name", "_").startswith("_")
                if public and isinstance(
                    child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
                ):
                    todo.append((f"{name}{sign}{child.name}", child))
    yield from found.items()


def _sources(package: str) -> Iterator[tuple[str, bytes]]:
    """Files worth reading, by their paths in the package, in the order of their hashes."""
    root = _root(package)
    names = (path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    for name in sorted(names, key=lambda name: _digest(f"{package}/{name}")):
        source = b"" if _SKIPPED.search(name) else (root / name).read_bytes()
        if source and not _GENERATED.search(source[:_GENERATED_WITHIN]):
            yield name, source


def _root(package: str) -> Path:
    if package == "python":
        return Path(sysconfig.get_path("stdlib"))
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    return Path(spec.submodule_search_locations[0])


def _missing(package: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{package}: the docstring corpus reads this package, which is not installed; "
        f"pip install {package}.",
        name=package,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
