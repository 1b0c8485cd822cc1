"""Losses on logits.

Shapes: N predictions, C classes. s and t are the logits of student and teacher.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_foundry import ranges
from lit_foundry.nn.distillation.loss import DistillationLoss
from lit_foundry.nn.distillation.outputs import Outputs

TINY = 1e-8


class KD(DistillationLoss):
    """Divergence of the softened probabilities.

        temperature^2 KL(softmax(t / temperature) || softmax(s / temperature))

    so that its gradients keep their size whatever the temperature is.

    Args:
        weight: Its weight in the sum.
        temperature: What logits are divided by.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
        https://arxiv.org/abs/1503.02531
    """

    of_classes: ClassVar[bool] = True

    def __init__(self, weight: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(weight)
        self.temperature = _heated(temperature)

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the mean over predictions."""
        return divergence(student.logits, teacher.logits, self.temperature)


class LogitMSE(DistillationLoss):
    """Mean squared difference of logits, or of predicted values.

    Source: Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2013.
        https://arxiv.org/abs/1312.6184
    """

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the mean over predictions and classes."""
        return F.mse_loss(student.logits, teacher.logits)


class DKD(DistillationLoss):
    """Divergence that weighs the target class apart from the others.

        temperature^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s))

    b are the two probabilities of the target and of all others, q those of the others alone, which
    add up to 1. Of unlabelled samples the target is what the teacher finds most probable.

    Args:
        weight: Its weight in the sum.
        alpha: Weight of the target class.
        beta: Weight of the other classes; of two classes, these say nothing.
        temperature: What logits are divided by.

    Source: Zhao et al., Decoupled Knowledge Distillation, 2022. https://arxiv.org/abs/2203.08679
    """

    of_classes: ClassVar[bool] = True

    def __init__(
        self,
        weight: float = 1.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(weight)
        own = {"alpha": alpha, "beta": beta}
        rules = {name: (value >= 0, "is at least 0") for name, value in own.items()}
        ranges.check("model.losses", own, rules)
        self.alpha, self.beta, self.temperature = alpha, beta, _heated(temperature)

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the mean over predictions."""
        best = teacher.logits.argmax(-1)
        target = best if student.target is None else student.target
        target = target.where(target >= 0, best).unsqueeze(1)
        is_target = torch.zeros_like(student.logits, dtype=torch.bool).scatter(1, target, True)
        pairs = student.logits / self.temperature, teacher.logits / self.temperature
        binary, others = [], []
        for logits in pairs:
            whole, rest = logits.logsumexp(1), logits.masked_fill(is_target, -torch.inf)
            both = logits.gather(1, target).squeeze(1), rest.logsumexp(1)
            binary.append(torch.stack([part - whole for part in both], 1))
            others.append(rest.log_softmax(1).masked_fill(is_target, 0.0))
        first = (binary[1].exp() * (binary[1] - binary[0])).sum(1)
        second = (others[1].exp() * (others[1] - others[0])).sum(1)  # at the target both are 0
        return self.temperature**2 * (self.alpha * first + self.beta * second).mean()


class DIST(DistillationLoss):
    """Correlation of the probabilities within samples and within classes.

        temperature^2 (beta mean_n(1 - r(p_s[n], p_t[n]))
                       + gamma mean_c(1 - r(p_s[:, c], p_t[:, c])))

    with r Pearson's correlation. Of two classes, the first term says only which is more probable.

    Args:
        weight: Its weight in the sum.
        beta: Weight of correlations between the classes of a sample.
        gamma: Weight of those between the samples of a micro-batch, in a class.
        temperature: What logits are divided by.

    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, 2022.
        https://arxiv.org/abs/2205.10536
    """

    of_classes: ClassVar[bool] = True

    def __init__(
        self,
        weight: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(weight)
        own = {"beta": beta, "gamma": gamma}
        rules = {name: (value >= 0, "is at least 0") for name, value in own.items()}
        ranges.check("model.losses", own, rules)
        self.beta, self.gamma, self.temperature = beta, gamma, _heated(temperature)

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the mean over predictions and over classes."""
        one, other = ((x.logits / self.temperature).softmax(1) for x in (student, teacher))
        between = 1 - _correlation(one, other).mean()
        within = 1 - _correlation(one.T, other.T).mean()
        return self.temperature**2 * (self.beta * between + self.gamma * within)


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) of the last dimension, averaged over all others, and scaled."""
    log_s, log_t = ((x / temperature).log_softmax(-1) for x in (student, teacher))
    terms = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
    return temperature**2 * terms.mean()


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one - one.mean(1, True), other - other.mean(1, True), eps=TINY)


def _heated(temperature: float) -> float:
    rule = temperature > 0, "is above 0"
    ranges.check("model.losses", {"temperature": temperature}, {"temperature": rule})
    return temperature
