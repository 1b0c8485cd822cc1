"""How well the features of a fit tell classes, by nearest neighbours at each validation."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lit_foundry import ranges
from lit_foundry.callbacks.run_record import RunRecord
from lit_foundry.callbacks.samples import show
from lit_foundry.datamodule import Data, data_of
from lit_foundry.runs.folder import RunFolder
from lit_foundry.tasks.pictures import Points
from lit_foundry.training.probing.encoder import Encoder, Pooling, batches_of, loader_of
from lit_foundry.training.probing.knn import TEMPERATURE, WeightedKNN, check_votes
from lit_foundry.training.probing.labels import check_classes
from lit_foundry.training.probing.projection import Projection, check_projection, projected

NAME = "val/knn"
DRAWN = 2000  # samples


class KNN(Callback):
    """Logs ``val/knn``: the share of validation samples whose class their neighbours tell.

    Neighbours are training samples, as an evaluation sees them: not augmented, in eval mode, by the
    averaged weights where these are validated. It costs a forward pass of both splits, and changes
    no bit of the training. At the end of the fit the last score and the best are told; the run's
    folder has them in ``knn.json``, and pictures of the validation samples' features.

    Args:
        k: Number of neighbours; None takes 200, or all if there are fewer.
        temperature: Of the votes, above 0.
        pooling: As the backbone pools (``default``), ``mean``, or ``first`` token of a text.
        most: Training samples that vote, evenly taken from the split; None takes all.
        projection: How features are drawn, those of 2,000 samples at most (with
            several ranks the first one's share of them), by their principal
            components (``pca``) or by ``tsne``, which takes seconds; None draws none.

    Raises:
        ValueError: If a value lies outside its range, or the data have no classes.
        ModuleNotFoundError: If ``tsne`` lacks scikit-learn.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
        2018. https://arxiv.org/abs/1805.01978 (section 3.4)
    """

    def __init__(
        self,
        k: int | None = None,
        temperature: float = TEMPERATURE,
        pooling: Pooling = "default",
        most: int | None = None,
        projection: Projection | None = "pca",
    ) -> None:
        check_votes(k, temperature)
        rule = (most is None or most >= (k or 1), "is a number of samples, k at least, or null")
        ranges.check("", {"most": most}, {"most": rule})
        self.k, self.temperature, self.pooling, self.most = k, temperature, pooling, most
        check_projection(projection)
        self.projection, self._features = projection, list[tuple[Tensor, Tensor]]()
        self.scores: list[dict[str, float]] = []
        self._score: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the scores until now."""
        return {"scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from these."""
        self.scores = list(state_dict["scores"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse data without classes before anything is trained."""
        if stage not in ("fit", "validate"):
            return
        check_classes(data_of(trainer), "KNN")
        Encoder(getattr(pl_module, "served", pl_module), self.pooling)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score, before the first batch: averages of weights are in their place by then."""
        data = data_of(trainer)
        if trainer.sanity_checking or batch_idx or dataloader_idx or data is None:
            return
        metric = WeightedKNN(self.k, self.temperature).to(pl_module.device)
        encode = Encoder(getattr(pl_module, "served", pl_module), self.pooling)
        self._add(trainer, encode, data, metric, bank=True)
        self._features = self._add(trainer, encode, data, metric, bank=False)
        self._score = metric.compute()

    def _add(
        self, trainer: Trainer, encode: Encoder, data: Data, metric: WeightedKNN, bank: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Add this rank's share of a split; return features and labels of validation samples."""
        kept: list[tuple[Tensor, Tensor]] = []
        dataset = data.load("train" if bank else "val")
        count = len(dataset.lengths)
        taken = min(count, self.most or count) if bank else count
        rows = [i * count // taken for i in range(taken)]
        drawn = torch.tensor([i * count // DRAWN for i in range(DRAWN)])  # of all of the split
        # Cut before they are shared: floating point depends on the company in a batch.
        batches = batches_of(dataset.lengths, rows)
        mine = batches[trainer.global_rank :: trainer.world_size]
        workers = getattr(data, "num_workers", 0)
        for batch in loader_of(dataset, mine or batches[:1], workers):
            batch = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.val_step_context():
                features = encode(batch)
            some = slice(None if mine else 0)
            metric.update(features[some], batch["label"][some], batch["index"][some], bank)
            if self.projection and not bank:
                mine_drawn = torch.isin(batch["index"], drawn.to(batch["index"]))
                kept.append((features[mine_drawn].cpu(), batch["label"][mine_drawn].cpu()))
        return kept

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the features."""
        found, self._features = self._features, []
        data = data_of(trainer)
        if not found or self.projection is None or data is None:
            return
        features, labels = map(torch.cat, zip(*found, strict=True))
        places = projected(features, self.projection).numpy()
        picture = Points(places, labels.numpy(), data.labels)
        for run in runs_of(trainer):
            show(trainer, run, {"features": picture})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log it."""
        if self._score is None:
            return
        pl_module.log(NAME, self._score, sync_dist=True)  # the same on all ranks
        step = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self.scores.append({**step, "score": float(self._score)})
        self._score = None

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the last score and the best, unless the fit was cut short."""
        if trainer.received_sigterm or trainer.interrupted or not self.scores:
            return
        last, best = self.scores[-1], max(self.scores, key=lambda each: each["score"])
        for run in runs_of(trainer):
            run.write("knn.json", {"final": last, "best": best, "all": self.scores})
        print(f"{NAME}: {_told(last)} at the end, {_told(best)} at best")


def runs_of(trainer: Any) -> list[RunFolder]:
    """Return the folder that a run is recorded in; none of a plain fit."""
    return [found.run for found in trainer.callbacks if isinstance(found, RunRecord)]


def _told(score: dict[str, float]) -> str:
    return f"{score['score']:.4f} (epoch {score['epoch']}, step {score['step']})"
