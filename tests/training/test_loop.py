"""What the data decide of Lightning's loop."""

from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lit_foundry.training.loop import accumulate
from tests.tasks.test_base import data, task, trainer


def test_accumulation_set_against_micro_batch_is_refused() -> None:
    fit = Trainer(accelerator="cpu", accumulate_grad_batches=3, logger=False)
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=3 is set by data.micro_batch"):
        accumulate(fit, 2)


def test_a_fit_accumulates_what_the_data_cut(tmp_path: Path) -> None:
    texts = data(tmp_path, micro_batch=4)
    fit = trainer(max_epochs=1)
    for _ in range(2):  # a second fit with the same trainer
        fit.fit(task(), texts)
        assert fit.accumulate_grad_batches == texts.accumulate > 1
