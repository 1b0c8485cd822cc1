"""Losses of distillation against their papers' formulas, written out in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import huber, log_softmax, softmax
from scipy.stats import entropy, pearsonr
from torch import Tensor

from lit_foundry.nn.distillation import (
    DIST,
    DKD,
    KD,
    RKD,
    Attention,
    AttentionRelations,
    Attentions,
    AttentionTransfer,
    DistillationLoss,
    FitNets,
    HiddenStates,
    LogitMSE,
    Outputs,
)

N, C, T = 6, 5, 7
LENGTHS = (7, 4, 1, 6, 2, 5)
MASK = torch.arange(T) < torch.tensor(LENGTHS)[:, None]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(dim: int, layers: int, heads: int, seed: int) -> Outputs:
    """Make what a text network with some layers yields."""
    attention = [
        Attention(*(drawn(N, heads, T, dim // heads, seed=seed + 10 * i + j) for j in range(3)))
        for i in range(layers)
    ]
    hidden = [drawn(N, T, dim, seed=seed + 100 + i) for i in range(layers + 1)]
    return Outputs(drawn(N, C, seed=seed), None, drawn(N, dim, seed=seed), hidden, attention, MASK)


def value(loss: DistillationLoss, student: Outputs, teacher: Outputs) -> float:
    loss.prepare(student, teacher)
    return loss(student, teacher).item()


def arrays(*tensors: Any) -> list[NDArray[np.float64]]:
    return [tensor.detach().numpy().astype(np.float64) for tensor in tensors]


PAIR = Outputs(drawn(N, C, seed=1)), Outputs(2 * drawn(N, C, seed=2))


def test_kd_is_the_divergence_of_softened_probabilities_times_temperature_squared() -> None:
    s, t = arrays(PAIR[0].logits, PAIR[1].logits)
    each = [entropy(softmax(t[i] / 3), softmax(s[i] / 3)) for i in range(N)]
    assert value(KD(temperature=3.0), *PAIR) == pytest.approx(9 * np.mean(each), rel=1e-5)


def test_gradients_of_kd_keep_their_size_whatever_the_temperature() -> None:
    """Hinton et al. 2015, section 2.1: at high temperatures they are those of matching logits."""
    logits = PAIR[0].logits.clone().requires_grad_()
    KD(temperature=200.0)(Outputs(logits), PAIR[1]).backward()
    [s], [t] = ([x.logits - x.logits.mean(1, True)] for x in PAIR)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, (s - t) / C / N, rtol=0.05, atol=2e-4)


def test_logit_mse_is_the_mean_squared_difference() -> None:
    s, t = arrays(PAIR[0].logits, PAIR[1].logits)
    assert value(LogitMSE(), *PAIR) == pytest.approx(np.mean((s - t) ** 2), rel=1e-5)


def test_dkd_weighs_the_target_apart_from_the_other_classes() -> None:
    target = [3, 0, 1, -100, 4, 2]
    student = Outputs(PAIR[0].logits, torch.tensor(target))
    s, t = arrays(PAIR[0].logits, PAIR[1].logits)
    total = 0.0
    for i in range(N):
        known = target[i] if target[i] >= 0 else int(t[i].argmax())  # without label: the teacher's
        others = [c for c in range(C) if c != known]
        p, q = softmax(s[i] / 4), softmax(t[i] / 4)
        binary = entropy([q[known], q[others].sum()], [p[known], p[others].sum()])
        rest = entropy(softmax(t[i][others] / 4), softmax(s[i][others] / 4))
        total += 16 * (1.5 * binary + 6.0 * rest) / N
    loss = DKD(alpha=1.5, beta=6.0, temperature=4.0)
    assert value(loss, student, PAIR[1]) == pytest.approx(total, rel=1e-5)


def test_dkd_is_kd_where_the_others_weigh_as_much_as_the_teacher_gives_them() -> None:
    """Zhao et al. 2022, equation 7."""
    logits = PAIR[1].logits[:1]
    target = torch.tensor([2])
    rest = 1 - float((logits / 4).softmax(1)[0, 2])
    one = Outputs(PAIR[0].logits[:1], target), Outputs(logits)
    decoupled = value(DKD(alpha=1.0, beta=rest, temperature=4.0), *one)
    assert decoupled == pytest.approx(value(KD(temperature=4.0), *one), rel=1e-4)


def test_gradients_of_dkd_are_finite_for_two_classes_and_sure_teachers() -> None:
    logits = (50 * drawn(N, 2)).requires_grad_()
    DKD()(Outputs(logits, torch.zeros(N, dtype=torch.long)), Outputs(-logits.detach())).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_dist_is_one_minus_pearsons_correlation_within_samples_and_classes() -> None:
    s, t = (softmax(x / 2, 1) for x in arrays(PAIR[0].logits, PAIR[1].logits))
    between = np.mean([1 - pearsonr(s[i], t[i])[0] for i in range(N)])
    within = np.mean([1 - pearsonr(s[:, c], t[:, c])[0] for c in range(C)])
    expected = 4 * (0.5 * between + 3 * within)
    assert value(DIST(beta=0.5, gamma=3.0, temperature=2.0), *PAIR) == pytest.approx(expected, 1e-4)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_hidden_states_are_compared_at_real_tokens_through_a_map(distance: Any) -> None:
    student, teacher = tokens(4, 2, 2, 0), tokens(6, 4, 2, 50)
    loss = HiddenStates(layers={0: 0, 2: 3}, distance=distance)
    found = value(loss, student, teacher)
    total = 0.0
    for number, (mine, theirs) in enumerate([(0, 0), (2, 3)]):
        [weight] = arrays(loss.maps[number].weight)
        h, g = arrays(student.hidden[mine], teacher.hidden[theirs])
        for row, length in enumerate(LENGTHS):
            far = []
            for place in range(length):
                one, other = weight @ h[row, place], g[row, place]
                cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
                far.append(np.mean((one - other) ** 2) if distance == "mse" else 1 - cosine)
            total += np.mean(far) / N / 2
    assert found == pytest.approx(total, rel=1e-4)


def test_layers_are_paired_evenly_and_equal_widths_need_no_map() -> None:
    loss = HiddenStates()
    loss.prepare(tokens(4, 2, 2, 0), tokens(4, 6, 2, 0))
    assert loss.pairs == [(0, 0), (1, 3), (2, 6)]
    assert not [*loss.parameters()]


def test_attention_scores_are_compared_head_by_head_at_real_tokens() -> None:
    student, teacher = tokens(4, 1, 2, 0), tokens(8, 2, 2, 70)
    total = 0.0
    q, k, _ = arrays(*student.attention[0])
    p, m, _ = arrays(*teacher.attention[1])
    for row, length in enumerate(LENGTHS):
        for head in range(2):
            one = q[row, head] @ k[row, head].T / np.sqrt(2)
            other = p[row, head] @ m[row, head].T / np.sqrt(4)
            total += np.mean((one - other)[:length, :length] ** 2) / 2 / N
    assert value(Attentions(), student, teacher) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("relations", [("qk", "vv"), ("qq", "kk", "vv")])
def test_attention_relations_are_divergences_over_real_tokens(relations: Any) -> None:
    student, teacher = tokens(8, 2, 4, 0), tokens(12, 3, 2, 40)
    places = {"q": 0, "k": 1, "v": 2}

    def related(layer: Attention, row: int, length: int, relation: str, head: int) -> Any:
        one, other = (
            np.concatenate([*arrays(layer[places[letter]])[0][row]], 1)[:length]
            for letter in relation
        )
        width = one.shape[1] // 2
        cut = slice(head * width, (head + 1) * width)
        return one[:, cut] @ other[:, cut].T / np.sqrt(width)

    total = 0.0
    for relation in relations:
        for row, length in enumerate(LENGTHS):
            for head in range(2):
                s = related(student.attention[1], row, length, relation, head)
                t = related(teacher.attention[2], row, length, relation, head)
                far = (softmax(t, 1) * (log_softmax(t, 1) - log_softmax(s, 1))).sum(1)
                total += far.mean() / 2 / N / len(relations)
    loss = AttentionRelations(relations=relations, heads=2)
    assert value(loss, student, teacher) == pytest.approx(total, rel=1e-4)


def test_rkd_compares_distances_and_angles() -> None:
    student, teacher = tokens(4, 1, 2, 0), tokens(6, 1, 2, 9)
    assert student.pooled is not None
    assert teacher.pooled is not None

    def distances(rows: Any) -> Any:
        found = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
        return found / found[~np.eye(N, dtype=bool)].mean()

    def angle(rows: Any, i: int, j: int, k: int) -> float:
        one, other = rows[i] - rows[j], rows[k] - rows[j]
        norms = np.linalg.norm(one) * np.linalg.norm(other)
        return float(one @ other / norms) if norms else 0.0

    s, t = arrays(student.pooled, teacher.pooled)
    far = huber(1.0, distances(s) - distances(t)).mean()
    every = [(i, j, k) for i in range(N) for j in range(N) for k in range(N)]
    turned = np.mean([huber(1.0, angle(s, *ijk) - angle(t, *ijk)) for ijk in every])
    found = value(RKD(distance=2.0, angle=3.0), student, teacher)
    assert found == pytest.approx(2 * far + 3 * turned, rel=1e-4)


def test_rkd_takes_no_direction_from_samples_that_are_equal() -> None:
    pooled = drawn(1, 4).repeat(3, 1).requires_grad_()
    teacher = Outputs(PAIR[0].logits, pooled=drawn(1, 4).repeat(3, 1) + 1e-7 * drawn(3, 4, seed=3))
    RKD(distance=0.0)(Outputs(PAIR[0].logits, pooled=pooled), teacher).backward()
    assert pooled.grad is not None
    assert pooled.grad.abs().max() == 0


def test_rkd_has_gradients_for_equal_samples_and_is_0_for_one() -> None:
    pooled = torch.ones(3, 4, requires_grad=True)
    teacher = Outputs(PAIR[0].logits, pooled=drawn(3, 4))
    RKD()(Outputs(PAIR[0].logits, pooled=pooled), teacher).backward()
    assert pooled.grad is not None
    assert pooled.grad.isfinite().all()
    one = Outputs(PAIR[0].logits, pooled=pooled[:1])
    assert RKD()(one, Outputs(PAIR[0].logits, pooled=drawn(1, 4))).item() == 0


def maps(channels: int, edges: tuple[int, ...], seed: int) -> Outputs:
    """Make what a convolutional network yields, its last block being flat."""
    hidden = [drawn(N, channels, e, e, seed=seed + e) for e in edges] + [drawn(N, channels)]
    return Outputs(drawn(N, C, seed=seed), hidden=hidden)


def test_fitnets_regress_maps_of_the_smaller_size() -> None:
    student, teacher = maps(3, (8, 4), 0), maps(5, (4, 4), 30)
    loss = FitNets(layers={0: 0, 1: 1})
    found = value(loss, student, teacher)
    total = 0.0
    for number in (0, 1):
        weight, bias = arrays(loss.maps[number].weight, loss.maps[number].bias)
        one, other = arrays(student.hidden[number], teacher.hidden[number])
        if one.shape[-1] == 8:
            one = one.reshape(N, 3, 4, 2, 4, 2).mean((3, 5))
        mine = np.einsum("dc,nchw->ndhw", weight[:, :, 0, 0], one) + bias[None, :, None, None]
        total += np.mean((mine - other) ** 2) / 2
    assert found == pytest.approx(total, rel=1e-4)


def test_attention_transfer_compares_where_maps_are_strong() -> None:
    student, teacher = maps(3, (4, 4), 0), maps(5, (4, 4), 30)
    total = 0.0
    for number in (0, 1):  # the flat one is left out
        q, p = (
            (x**2).sum(1).reshape(N, -1)
            for x in arrays(student.hidden[number], teacher.hidden[number])
        )
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, p)]
        total += ((unit[0] - unit[1]) ** 2).sum(1).mean() / 2
    assert value(AttentionTransfer(), student, teacher) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [KD(), LogitMSE(), DKD(), DIST(), RKD(), HiddenStates(), Attentions(), AttentionRelations()],
    ids=lambda loss: type(loss).__name__,
)
def test_who_says_what_the_teacher_says_loses_nothing(loss: DistillationLoss) -> None:
    same = tokens(8, 2, 2, 0)
    assert value(loss, same, same) == pytest.approx(0, abs=1e-5)
    assert value(loss, tokens(8, 2, 2, 5), same) > 0.01


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "told"),
    [
        (HiddenStates(layers={3: 1}), tokens(4, 2, 2, 0), tokens(4, 2, 2, 0), "end with 2"),
        (HiddenStates(layers={}), tokens(4, 2, 2, 0), tokens(4, 2, 2, 0), "layers is empty"),
        (Attentions(layers={0: 0}), tokens(4, 2, 2, 0), tokens(4, 2, 2, 0), "layers begin with 1"),
        (Attentions(), tokens(4, 2, 2, 0), tokens(4, 2, 4, 0), "student has 2, the teacher 4"),
        (AttentionRelations(heads=3), tokens(4, 2, 2, 0), tokens(4, 2, 2, 0), "does not divide"),
        (Attentions(), Outputs(drawn(N, C)), tokens(4, 2, 2, 0), "finds no attention"),
        (HiddenStates(), maps(3, (4, 4), 0), maps(3, (4, 4), 0), "take FitNets"),
        (FitNets(), tokens(4, 2, 2, 0), tokens(4, 2, 2, 0), "take HiddenStates"),
    ],
)
def test_what_does_not_go_together_is_told(
    loss: DistillationLoss, student: Outputs, teacher: Outputs, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        loss.prepare(student, teacher)


@pytest.mark.parametrize("make", [KD, LogitMSE, DKD, DIST, RKD, HiddenStates, FitNets])
def test_weights_and_temperatures_are_positive(make: Any) -> None:
    with pytest.raises(ValueError, match="is above 0"):
        make(weight=0.0)
    if make in (KD, DKD, DIST):
        with pytest.raises(ValueError, match="temperature is above 0"):
            make(temperature=0.0)
