"""Variational autoencoders: images as samples of a distribution whose latents are normal.

Shapes: B batch, C channels, S edge of an image, L latent width, K samples of a latent.
"""

from collections.abc import Mapping
from math import log, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.nn import ImageBackbone
from lit_foundry.nn.decoders import Decoder
from lit_foundry.nn.image.augment import Augment
from lit_foundry.nn.likelihoods import (
    DiscretizedLogistic,
    Likelihood,
    gaussian_log_prob,
    importance_bound,
    kl_to_standard_normal,
)
from lit_foundry.randomness import Moment, normals
from lit_foundry.tasks.autoencoders.reconstruction import SHOWN, Reconstruction, scaled, unscaled
from lit_foundry.tasks.pictures import Bars, Images, Shown, shown
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.image_metrics import Means
from lit_foundry.training.optim import OptimConfig

IMPORTANCE = (1, 10, 100)  # samples of the bounds at test
NAMES = ("distortion", "kl", *(f"iw_{samples}" for samples in IMPORTANCE))
TRAVERSED, REACH = 6, 2.5  # latents that are varied, and how far, in deviations
_NOISE, _PRIOR = 36, 37  # streams of random numbers


class VariationalAutoencoder(Reconstruction):
    """Learns the distribution of images by a bound on their log-likelihood.

    The loss is ``distortion + beta * kl``, in nats of an image: minus the log-likelihood of the
    image given a sample of its latent, and the divergence of the latent's distribution from the
    standard normal one. Evaluations have ``beta`` 1 and no free bits: ``val/loss`` is minus the
    evidence lower bound. ``bits_per_dim`` is that in bits of each channel of a pixel. At test, the
    importance-weighted bounds of 1, 10 and 100 samples are logged (``iw_100``).

    Args:
        backbone: Image encoder, which a classification can begin with (``init_from``).
        latent: Width L of the latents.
        decoder: What turns them into what is said of pixels; None takes ConvDecoder.
        likelihood: What that is; None takes DiscretizedLogistic.
        beta: Weight of the divergence (Higgins et al., 2017).
        free_bits: Nats of each latent, and of each image, that the divergence costs at least, so
            that no latent is given up (Kingma et al., 2016).
        warmup: Fraction of the run over which ``beta`` grows from 0 (Bowman et al., 2015).
        image_size: Edge S of the images; None takes it from the data.
        augment: What is done to training images; None nothing.
        compile: Compile the backbone in training.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2013.
        https://arxiv.org/abs/1312.6114
    """

    def __init__(
        self,
        backbone: ImageBackbone,
        latent: int = 128,
        decoder: Decoder | None = None,
        likelihood: Likelihood | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        warmup: float = 0.0,
        image_size: int | None = None,
        augment: Augment | None = None,
        compile: bool = False,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        own = {"latent": latent, "beta": beta, "free_bits": free_bits, "warmup": warmup}
        rules = {
            "latent": (latent >= 1, "is a width, 1 at least"),
            "beta": (beta >= 0, "is 0 at least"),
            "free_bits": (free_bits >= 0, "is a number of nats, 0 at least"),
            "warmup": (0 <= warmup <= 1, "is a fraction of the run in [0, 1]"),
        }
        ranges.check("model", own, rules)
        metrics = {"parts": Means(NAMES)}
        super().__init__(
            backbone, image_size, metrics, augment, compile, finetune, optim, init_from
        )
        self.latent, self.beta, self.free_bits, self.warmup = latent, beta, free_bits, warmup
        self.likelihood = likelihood or DiscretizedLogistic()
        self.bottleneck = nn.Sequential(nn.Flatten(), nn.Linear(prod(self.grid), 2 * latent))
        self.decoder = self.built_decoder(decoder, latent, None, self.likelihood.outputs)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of the latents of pixels, (B, L) each."""
        mean, log_std = self.bottleneck(self.encode(images)).float().chunk(2, 1)
        return mean, log_std.clamp(-10, 10)  # of images unlike any before, exp would overflow

    def forward_once(self, pixel_values: Tensor) -> None:
        """Run backbone and decoder."""
        self.decoder(self.posterior(pixel_values)[0].to(self.dtype))

    def said(self, latents: Tensor) -> Tensor:
        """Return what the decoder says of (B, L) latents, in float32."""
        outputs: Tensor = self.decoder(latents.to(self.dtype))
        return outputs.float()

    def distortion(self, latents: Tensor, images: Tensor) -> Tensor:
        """Return minus the log-likelihood of pixels given latents, in nats of an image, (B,)."""
        return -self.likelihood.log_prob(self.said(latents), scaled(images)).flatten(1).sum(1)

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Score a batch by the bound of one sample of each image's latents."""
        images = self.images(batch, stage)
        mean, log_std = self.posterior(images)
        noise = normals(self.keys(batch, stage), self.latent, _NOISE)
        distortion = self.distortion(mean + log_std.exp() * noise, images)
        kl = kl_to_standard_normal(mean, log_std)
        if stage == "train":
            grown = min(1.0, self.moment.progress / self.warmup) if self.warmup else 1.0
            loss = (distortion + grown * self.beta * kl.clamp(min=self.free_bits).sum(1)).mean()
            return Step(loss, len(images))
        parts = [distortion, kl.sum(1)]
        loss = (parts[0] + parts[1]).mean()
        if stage == "test":
            parts += self.importance(batch, images, mean, log_std)
        kept = {"index": batch["index"], **dict(zip(NAMES, parts, strict=False))}
        told = torch.stack(parts, 1)
        return Step(loss, len(images), told, told, kept)

    @torch.no_grad()
    def importance(
        self, batch: Mapping[str, Any], images: Tensor, mean: Tensor, log_std: Tensor
    ) -> list[Tensor]:
        """Return the importance-weighted bounds on log p of each image, (B,)."""
        most, rows = max(IMPORTANCE), []
        noise = normals(self.keys(batch, "test"), most * self.latent, _NOISE)
        for each in noise.view(-1, most, self.latent).unbind(1):
            latents = mean + log_std.exp() * each
            prior = gaussian_log_prob(latents, torch.zeros(()), torch.zeros(())).sum(1)
            posterior = gaussian_log_prob(latents, mean, log_std).sum(1)
            rows.append(prior - posterior - self.distortion(latents, images))
        weights = torch.stack(rows, 1)
        return [importance_bound(weights, samples) for samples in IMPORTANCE]

    def from_loss(self, stage: Stage, loss: Tensor) -> dict[str, Tensor]:
        """Return the bound in bits of each channel of a pixel; of a density there are none."""
        if self.likelihood.is_density:
            return {}
        return {"bits_per_dim": loss / (log(2) * self.channels * self.image_size**2)}

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return each image's ``index``, and the parts of its bound: how unlikely it is."""
        found = self.step(batch, "val").samples
        return {name: column.clone() for name, column in found.items()}

    def generated(self, latents: Tensor) -> Tensor:
        """Return the expected images of (B, L) latents, pixels from 0 to 255."""
        return unscaled(self.likelihood.mean(self.said(latents)))

    def rebuilt(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Return images, and what is rebuilt of the means of their latents."""
        images = self.images(batch, "val")
        return {"image": images, "rebuilt": self.generated(self.posterior(images)[0])}

    @torch.no_grad()
    def pictures(self, batch: Mapping[str, Any]) -> dict[str, Shown]:
        """Return also samples, interpolations, traversals, and how much each latent tells."""
        mean, log_std = self.posterior(self.images(batch, "val"))
        keys = Moment().keys(torch.arange(4 * SHOWN, device=mean.device))
        samples = shown(self.generated(normals(keys, self.latent, _PRIOR)))
        told = kl_to_standard_normal(mean, log_std).mean(0)
        steps = torch.linspace(0, 1, SHOWN, device=mean.device)[:, None]
        pairs = zip(mean[0:8:2], mean[1:8:2], strict=False)
        between = {
            f"{2 * i} to {2 * i + 1}": shown(self.generated(torch.lerp(a, b, steps)))
            for i, (a, b) in enumerate(pairs)
        }
        varied = {}
        for which in told.argsort(descending=True)[:TRAVERSED].tolist():
            latents = mean[:1].repeat(SHOWN, 1)
            latents[:, which] = torch.linspace(-REACH, REACH, SHOWN)
            varied[f"latent {which}"] = shown(self.generated(latents))
        return super().pictures(batch) | {
            "samples": Images({str(i): samples[i::4] for i in range(4)}),
            **({"interpolations": Images(between)} if between else {}),
            "traversals": Images(varied),
            "latents": Bars.of(told, "nats", "latents, sorted"),
        }
