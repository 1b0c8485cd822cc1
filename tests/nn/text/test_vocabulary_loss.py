"""Losses equal their definition."""

import pytest
import torch
import torch.nn.functional as F

from lit_foundry.nn.text import vocabulary_loss as losses
from lit_foundry.nn.text.vocabulary_loss import linear_cross_entropy


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, on itself
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gpu_scores_as_a_cpu(bias: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses.CHUNK_BYTES, "cuda", 4 * 50 * 7)
    torch.manual_seed(0)
    drawn = torch.randn(37, 16), torch.randn(50, 16), torch.randn(50)
    target = torch.randint(50, (37,))
    target[[0, 5, 36]] = -100
    found = []
    for device in ("cpu", "cuda"):
        parts = [x.to(device).detach().requires_grad_() for x in drawn]
        hidden, weight, b = parts
        total, preds = linear_cross_entropy(
            hidden, weight, b if bias else None, target.to(device), compiled
        )
        total.backward()
        grads = [x.grad.cpu() for x in parts if x.grad is not None]
        assert len(grads) == 2 + bias
        found.append([total.detach().cpu(), preds.cpu(), *grads])
    for cpu, gpu in zip(*found, strict=True):
        assert torch.allclose(cpu, gpu, atol=1e-4)


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_chunks_equal_the_whole(
    bias: bool, rows: int, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.MULTIPLE, "cpu", multiple)
    monkeypatch.setitem(losses.CHUNK_BYTES, "cpu", 4 * 50 * rows)
    torch.manual_seed(0)
    hidden, weight, b = torch.randn(37, 16), torch.randn(50, 16), torch.randn(50)
    target = torch.randint(50, (37,))
    target[[0, 5, 36]] = -100
    mine = [x.clone().requires_grad_() for x in (hidden, weight, b)]
    theirs = [x.clone().requires_grad_() for x in (hidden, weight, b)]
    total, preds = linear_cross_entropy(mine[0], mine[1], mine[2] if bias else None, target)
    logits = F.linear(theirs[0], theirs[1], theirs[2] if bias else None)
    want = F.cross_entropy(logits, target, reduction="sum")
    assert torch.allclose(total, want, atol=1e-4)
    assert torch.equal(preds, logits.argmax(-1))
    (total / 3).backward()
    (want / 3).backward()
    for a, c in list(zip(mine, theirs, strict=True))[: 3 if bias else 2]:
        assert a.grad is not None
        assert c.grad is not None
        assert torch.allclose(a.grad, c.grad, atol=1e-5)


def test_all_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses.CHUNK_BYTES, "cpu", 4 * 5000 * 8)
    largest = 0
    linear = F.linear

    def watched(*args: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        out = linear(*args)
        largest = max(largest, out.numel())
        return out

    monkeypatch.setattr(F, "linear", watched)
    hidden = torch.randn(64, 8, requires_grad=True)
    total, _ = linear_cross_entropy(hidden, torch.randn(5000, 8), None, torch.randint(5000, (64,)))
    total.backward()
    assert largest == 5000 * 8
    assert hidden.grad is not None


def test_bfloat16_keeps_the_loss_in_float32() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(20, 16, requires_grad=True)
    weight = torch.randn(300, 16, requires_grad=True)
    target = torch.randint(300, (20,))
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_cross_entropy(hidden, weight, None, target)
    assert total.dtype == torch.float32
    total.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    want = F.cross_entropy(hidden @ weight.T, target, reduction="sum")
    assert total.item() == pytest.approx(want.item(), rel=1e-2)


def test_nothing_to_predict_gives_zero_and_no_gradient() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    total, _ = linear_cross_entropy(hidden, torch.randn(9, 8), None, torch.full((4,), -100))
    total.backward()
    assert total.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_gradients_serve_one_backward_pass_and_evaluation_takes_none() -> None:
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    total, _ = linear_cross_entropy(hidden, weight, None, torch.tensor([1, 2, 3, 4]))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        total.backward()
    with torch.no_grad():
        total, _ = linear_cross_entropy(hidden, weight, None, torch.tensor([1, 2, 3, 4]))
    assert total.grad_fn is None
