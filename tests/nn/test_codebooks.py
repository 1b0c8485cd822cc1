"""Codebooks against their definitions, over micro-batches and ranks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_foundry.nn.codebooks import Codebook, FiniteScalar, VectorQuantizer


class Alone:
    """A single process."""

    def reduce(self, tensor: Tensor, *, reduce_op: str) -> Tensor:
        """Return the sum."""
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return those of all."""
        return tensor


class Two:
    """Two ranks as one of them sees them, of which the other holds these tensors, in turn."""

    def __init__(self, *others: Tensor) -> None:
        self.others = list(others)

    def reduce(self, tensor: Tensor, *, reduce_op: str) -> Tensor:
        """Return the sum."""
        return tensor + self.others.pop(0)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return those of all."""
        return torch.stack([tensor, self.others.pop(0)])


def seen(count: int = 40, dim: int = 3) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(count)
    return torch.randn(count, dim, generator=random), torch.randperm(count, generator=random)


def quantizer(**options: Any) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(**{"size": 5, "dim": 3, "decay": 0.8, "restart": 0.0} | options)


def test_nearest_code_is_taken_and_gradients_pass() -> None:
    book, (vectors, _) = quantizer(), seen()
    vectors.requires_grad_()
    found = book(vectors)
    distances = (vectors.detach()[:, None] - book.embedding).square().sum(-1)
    assert torch.equal(found.codes, distances.argmin(1))
    torch.testing.assert_close(found.vectors, book.embedding[found.codes])
    torch.testing.assert_close(found.loss, 0.25 * distances.min(1).values)
    weight = torch.randn_like(vectors)
    (grad,) = torch.autograd.grad((found.vectors * weight).sum(), vectors, retain_graph=True)
    torch.testing.assert_close(grad, weight)  # as if nothing had been rounded
    (grad,) = torch.autograd.grad(found.loss.sum(), vectors)
    torch.testing.assert_close(grad, 0.5 * (vectors.detach() - book.embedding[found.codes]))


def test_codes_follow_the_moving_means_of_the_paper() -> None:
    book = quantizer()
    counts, sums = torch.zeros(5), torch.zeros(5, 3)
    for number in range(3):
        vectors, keys = seen(30 + number)
        codes = book(vectors).codes
        for code in range(5):
            mine = vectors[codes == code]
            counts[code] = 0.8 * counts[code] + 0.2 * len(mine)
            sums[code] = 0.8 * sums[code] + 0.2 * mine.sum(0)
        before = book.embedding.clone()
        book.remember(vectors, codes, keys)
        book.follow(Alone())
        for code in range(5):
            want = sums[code] / counts[code] if counts[code] else before[code]
            torch.testing.assert_close(book.embedding[code], want)


@pytest.mark.parametrize("restart", [0.0, 0.3])
def test_micro_batches_make_the_update_of_the_batch(restart: float) -> None:
    whole, parts = quantizer(restart=restart), quantizer(restart=restart)
    vectors, keys = seen()
    whole.remember(vectors, whole(vectors).codes, keys)
    for rows in torch.arange(40).flip(0).chunk(3):
        parts.remember(vectors[rows], parts(vectors[rows]).codes, keys[rows])
    for book in (whole, parts):
        book.follow(Alone())
    for name, want in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], want)


def test_ranks_make_the_update_of_one() -> None:
    alone, here, there = (quantizer(restart=0.3) for _ in range(3))
    vectors, keys = seen()
    alone.remember(vectors, alone(vectors).codes, keys)
    halves = [torch.arange(0, 40, 2), torch.arange(1, 40, 2)]
    for book, rows in zip((here, there), halves, strict=True):
        book.remember(vectors[rows], book(vectors[rows]).codes, keys[rows])
    assert there._counts is not None
    assert there._sums is not None
    assert there._seen is not None
    here.follow(Two(there._counts, there._sums, *there._seen))
    alone.follow(Alone())
    for name, want in alone.state_dict().items():
        torch.testing.assert_close(here.state_dict()[name], want)


def test_codes_of_no_use_begin_anew_at_vectors_that_were_seen() -> None:
    book = quantizer(restart=0.3)
    book.embedding[1:] = 100.0
    vectors, keys = seen()
    codes = book(vectors).codes
    assert not codes.any()
    book.remember(vectors, codes, keys)
    book.follow(Alone())
    assert all((vectors == code).all(1).any() for code in book.embedding[1:])
    lowest = vectors[keys.argsort()[:4]]
    torch.testing.assert_close(book.embedding[1:], lowest)
    torch.testing.assert_close(book.counts[1:], torch.full((4,), 0.2 * 40 / 5))  # time to be found
    assert book(vectors).codes.unique().numel() > 1


def test_codes_in_use_do_not_begin_anew_in_the_first_steps() -> None:
    book = quantizer(restart=0.3)
    book.embedding.copy_(10 * torch.arange(5.0)[:, None].expand(5, 3))
    near = book.embedding.repeat_interleave(8, 0) + 0.01 * torch.randn(40, 3)
    codes = book(near).codes
    assert codes.bincount().tolist() == [8] * 5
    book.remember(near, codes, torch.arange(40))
    book.follow(Alone())
    torch.testing.assert_close(book.embedding, near.view(5, 8, 3).mean(1))


def test_fewer_vectors_than_codes_begin_fewer_anew() -> None:
    book = quantizer(size=8, restart=0.3)
    vectors, keys = seen(3)
    before = book.embedding.clone()
    book.remember(vectors, book(vectors).codes, keys)
    book.follow(Alone())
    assert book.embedding.isfinite().all()
    kept = (book.embedding == before).all(1).sum()
    assert kept >= 8 - 3 - 3  # those of use, and those begun anew, are three each at most


def test_a_skipped_step_leaves_nothing() -> None:
    book = quantizer(restart=0.3)
    before = {name: value.clone() for name, value in book.state_dict().items()}
    vectors, keys = seen()
    book.remember(vectors, book(vectors).codes, keys)
    book.forget()
    book.follow(Alone())
    assert all(torch.equal(book.state_dict()[name], value) for name, value in before.items())


def test_what_is_learnt_stays_in_single_precision() -> None:
    book, (vectors, keys) = quantizer().to(torch.bfloat16), seen()
    found = book(vectors.bfloat16())
    assert found.vectors.dtype == torch.bfloat16
    book.remember(vectors.bfloat16(), found.codes, keys)
    book.follow(Alone())
    assert {value.dtype for value in book.state_dict().values()} == {torch.float32}
    learnt = quantizer().embedding
    torch.testing.assert_close(quantizer().to(torch.bfloat16).embedding, learnt, rtol=0, atol=0)


@pytest.mark.parametrize("levels", [(8, 5, 5), (3,), (2, 4)])
def test_finite_scalars_are_the_points_of_a_grid(levels: tuple[int, ...]) -> None:
    book = FiniteScalar(levels)
    vectors = torch.randn(40_000, len(levels)) * 3
    found = book(vectors)
    assert found.codes.unique().numel() == book.size
    assert found.codes.max() == book.size - 1
    torch.testing.assert_close(found.vectors, book.vectors(found.codes))
    for column, count in zip(found.vectors.unbind(1), levels, strict=True):
        half = count // 2
        assert column.mul(half).round().unique().tolist() == [*range(-half, count - half)]
    near = book(torch.zeros(1, len(levels))).vectors
    assert near.abs().max() == 0  # what is 0 stays so, whether the number of levels is even or not


def test_gradients_pass_the_rounding_of_finite_scalars() -> None:
    book = FiniteScalar((5, 5))
    vectors = torch.zeros(1, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(book(vectors).vectors.sum(), vectors)
    torch.testing.assert_close(grad, torch.full((1, 2), 2 * (1 + 1e-3) / 2))


@pytest.mark.parametrize("book", [VectorQuantizer(6, 3), FiniteScalar((3, 4, 5))])
def test_codes_of_any_shape_have_vectors(book: Codebook) -> None:
    codes = torch.arange(6).view(1, 2, 3)
    assert book.vectors(codes).shape == (1, 2, 3, 3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: VectorQuantizer(size=1), "size is a number of codes"),
        (lambda: VectorQuantizer(restart=1.0), "restart is a share"),
        (lambda: FiniteScalar((8, 1)), "levels are numbers of levels"),
        (lambda: FiniteScalar((1500,)), "levels are numbers of levels, from 2 to 1000"),
        (lambda: FiniteScalar(()), "levels are numbers of levels"),
    ],
)
def test_what_is_no_codebook_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"model.codebook.{said}"):
        make()
