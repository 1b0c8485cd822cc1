"""Documents of any length in rows of one length, so that no computation goes into padding.

A piece is a document or a part of one, with the special tokens of a text around it.

Shapes: N documents, P pieces, R rows.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lit_foundry.randomness import philox

Ints = NDArray[np.int64]
Packing = Literal["isolated", "concatenated"]
FULL = 0.995  # share of tokens at which no more documents are cut to fill rows
SHORTEST = 16, 1  # tokens of a part that fills a row: few teach little, but padding nothing


@dataclass(frozen=True)
class Pieces:
    """What each row holds, row after row.

    Attributes:
        edges: Row ``r`` holds the pieces ``edges[r]`` to ``edges[r + 1]``, shape (R + 1,).
        document: Document of each piece, shape (P,).
        start: Tokens of the document before the piece, shape (P,).
        length: Tokens of the piece, without special tokens, shape (P,).
    """

    edges: Ints
    document: Ints
    start: Ints
    length: Ints

    def __len__(self) -> int:
        return len(self.edges) - 1


def pack(lengths: Ints, size: int, frame: int, rng: np.random.Generator) -> Pieces:
    """Put whole documents together in rows, and cut as few as filling the rows takes.

    A document that exceeds a row gives whole rows and a rest. Best fit, longest first: a piece
    goes where it leaves least room. Only if rows are then less than ``FULL``, the emptiest ones
    are taken apart to fill the others.

    Args:
        lengths: Tokens of each document without special tokens, shape (N,).
        size: Tokens of a row.
        frame: Special tokens of a piece.
        rng: Decides among pieces of equal length.

    Source: Krell et al., Efficient Sequence Packing without Cross-contamination, 2021,
        https://arxiv.org/abs/2107.02027 (on counts of lengths); Ding et al., Fewer Truncations
        Improve Language Modeling, 2024, https://arxiv.org/abs/2404.10830 (best fit)
    """
    room = size - frame
    whole, rest = lengths // room, lengths % room
    parts = whole + (rest > 0)
    document = np.repeat(np.arange(len(lengths)), parts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(parts) - parts, parts)
    start = number * room
    length = np.minimum(lengths[document] - start, room)
    columns = np.stack([_best_fit(length + frame, size, rng), document, start, length])
    for shortest in SHORTEST:
        columns = _filled(columns, size, frame, shortest)
    columns = columns[:, np.argsort(columns[0], kind="stable")]
    counts = np.unique(columns[0], return_counts=True)[1]
    return Pieces(np.concatenate([[0], np.cumsum(counts)]), *columns[1:])


def _best_fit(lengths: Ints, size: int, rng: np.random.Generator) -> Ints:
    """Return the row of each piece, shape (P,); works on how often each length occurs."""
    order = rng.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]  # pieces of one length in a block
    counts = np.bincount(lengths, minlength=size + 1)
    # Equal rows are one group: how many they are, and the lengths that they hold.
    groups: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(size + 1)]
    for length in range(size, 0, -1):
        left, room = int(counts[length]), length
        while left:
            while room < size and not groups[room]:
                room += 1
            count, held = groups[room].pop() if groups[room] else (left, ())
            each = min(room // length, left)
            filled = min(count, left // each)
            if count > filled and held:
                groups[room].append((count - filled, held))
            groups[room - each * length].append((filled, (*held, *[length] * each)))
            left -= filled * each
    row = np.empty(len(lengths), np.int64)
    next_of, done = np.cumsum(counts) - counts, 0
    for count, held in (group for of_room in groups for group in of_room):
        for length in held:
            first = next_of[length]
            row[order[first : first + count]] = np.arange(done, done + count)
            next_of[length] += count
        done += count
    return row


def _filled(columns: Ints, size: int, frame: int, shortest: int) -> Ints:
    """Fill rows with parts of the pieces of the emptiest ones.

    Args:
        columns: Row, document, start and length of each piece, shape (4, P).
        size: Tokens of a row.
        frame: Special tokens of a piece.
        shortest: Least tokens of a part.
    """
    row, document, start, length = columns
    row = np.unique(row, return_inverse=True)[1]
    num_rows = int(row.max(initial=-1)) + 1
    held = np.bincount(row, length + frame, num_rows).astype(np.int64)
    wanted = -(-int(held.sum()) // int(FULL * size))
    if num_rows <= wanted:
        return columns
    by_row = np.argsort(row, kind="stable")
    edges = np.searchsorted(row[by_row], np.arange(num_rows + 1))
    emptiest_first = np.argsort(held, kind="stable")
    gone, parts = np.zeros(len(row), bool), []
    last = num_rows - 1  # place in the order of the row that is filled now
    for place, donor in enumerate(emptiest_first):
        if num_rows - place <= wanted or last <= place:
            break
        for piece in by_row[edges[donor] : edges[donor + 1]]:
            gone[piece] = True
            at, left = int(start[piece]), int(length[piece])
            while left:
                while last > place and size - held[emptiest_first[last]] - frame < shortest:
                    last -= 1
                target = emptiest_first[last]  # the donor itself, if no other has room
                part = left if last <= place else min(left, size - int(held[target]) - frame)
                parts.append((int(target), int(document[piece]), at, part))
                held[target] += part + frame
                at, left = at + part, left - part
    more = np.array(parts, np.int64).reshape(-1, 4).T
    stay = np.stack([row, document, start, length])[:, ~gone]
    return np.concatenate([stay, more], axis=1)


class Stream:
    """All documents one after the other, cut into rows wherever these end.

    Args:
        lengths: Tokens of each document without special tokens, shape (N,).
        size: Tokens of a row.
        frame: Special tokens of a document: before it, and after it.
        seed: Orders the documents anew in each epoch, and moves the cuts; None keeps the order,
            and the last row may be short.
    """

    def __init__(self, lengths: Ints, size: int, frame: tuple[int, int], seed: int | None) -> None:
        self.lengths, self.size, self.frame, self.seed = lengths + sum(frame), size, frame, seed
        total = int(self.lengths.sum())
        self.num_rows = total // size if seed is not None else -(-total // size)
        self._epoch = -1

    def __len__(self) -> int:
        return self.num_rows

    def _turn_to(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._order, self._shift = np.arange(len(self.lengths)), 0
        if self.seed is not None:
            rng = philox(self.seed, epoch)
            self._order = rng.permutation(len(self.lengths))
            self._shift = int(rng.integers(self.size))
        self._ends = np.cumsum(self.lengths[self._order])
        self._epoch = epoch

    def parts(self, epoch: int, row: int) -> list[tuple[int, int, int]]:
        """Return what a row holds: document, first and last token, special ones counted."""
        self._turn_to(epoch)
        total = int(self._ends[-1])
        first, found = row * self.size + self._shift, []
        end = first + self.size if self.seed is not None else min(first + self.size, total)
        while first < end:
            here = first % total  # the cuts are moved, and the stream is a ring
            place = int(np.searchsorted(self._ends, here, "right"))
            begin = int(self._ends[place] - self.lengths[self._order[place]])
            stop = min(int(self._ends[place]), here + end - first)
            found.append((int(self._order[place]), here - begin, stop - begin))
            first += stop - here
        return found
