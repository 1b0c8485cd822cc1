"""Contrastive learning compares all samples of a step, however it is cut."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_foundry import load, load_task
from lit_foundry.checkpoints.files import read_checkpoint
from lit_foundry.cli.main import main
from lit_foundry.data import Digits
from lit_foundry.nn import MLP, Backbone, ImageEncoder, ResNet9, TextEncoder
from lit_foundry.nn.contrastive_loss import nt_xent
from lit_foundry.nn.image.augment import Augment
from lit_foundry.randomness import Moment
from lit_foundry.runs.past import read_metrics
from lit_foundry.tasks import Contrastive
from tests.conftest import REPO, digits_config, tiny_config, write_config
from tests.runs.test_ddp import lit_foundry
from tests.runs.test_resume import end_of, fit, kill_and_compare

pytest.importorskip("sklearn")
VIEWS = Augment(pad=1, pad_mode="zero", erasing=0.5)
MLP_SMALL = {"class_path": "MLP", "init_args": {"hidden": [32, 16]}}
RESNET = {"class_path": "ResNet9", "init_args": {"width": 4, "mean": [0.3], "std": [0.4]}}
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 16, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0}


def config_of(folder: Path, backbone: Mapping[str, Any] = MLP_SMALL, **data: Any) -> Path:
    config = digits_config(folder)
    augment = {"pad": 1, "pad_mode": "zero", "erasing": 0.5}
    model = {"backbone": dict(backbone), "augment": augment, "optim": {"lr": 3e-3}}
    config["model"] = {
        "class_path": "Contrastive",
        "init_args": model | {"projection": [16, 8], "temperature": 0.3},
    }
    sizes = {"max_train_samples": 192, "batch_size": 32, "micro_batch": 8}
    config["data"]["init_args"] |= sizes | data
    return write_config(folder / "tiny.yaml", config)


def text_config(tiny: Path) -> Path:
    config = tiny_config(tiny.parent)
    encoder = {"class_path": "TextEncoder", "init_args": {"config": BERT, "pooling": "mean"}}
    model = {"backbone": encoder, "projection": [], "temperature": 0.1, "optim": {"lr": 3e-3}}
    config["model"] = {"class_path": "Contrastive", "init_args": model}
    config["data"]["init_args"] |= {"micro_batch": 3}  # that two ranks cut steps alike
    return write_config(tiny, config)


def task_of(backbone: Backbone | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"augment": VIEWS, "projection": (16, 8), **options}
    return Contrastive(backbone or MLP((32, 16), 8, 1), **options)


@pytest.fixture(scope="module")
def batch() -> Mapping[str, Any]:
    found: Mapping[str, Any] = Digits(max_train_samples=64).load("train")[list(range(24))]
    return found


def weights(path: Path, name: str, *more: str) -> dict[str, Tensor]:
    model = main(["fit", "--config", str(path), "--experiment", name, *more]).model
    found: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.state_dict().items()}
    return found


def test_micro_batches_change_nothing_but_memory(tmp_path: Path) -> None:
    path = config_of(tmp_path)
    few, all_ = (
        weights(path, str(size), "--trainer.max_epochs=2", f"--data.micro_batch={size}")
        for size in (8, 32)
    )
    for key, want in all_.items():
        torch.testing.assert_close(few[key], want, atol=2e-5, rtol=1e-4, msg=key)


def test_gradient_is_that_of_the_loss_over_the_whole_step(
    batch: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three micro-batches, against one graph of all."""

    class Alone:
        world_size, global_rank, accumulate_grad_batches, precision = 1, 0, 3, "32-true"
        is_last_batch = False

        class strategy:
            model = None

            @staticmethod
            def reduce(value: Tensor, reduce_op: str) -> Tensor:
                return value

        class precision_plugin:
            @staticmethod
            def train_step_context() -> Any:
                from contextlib import nullcontext

                return nullcontext()

    task, trainer = task_of(ResNet9(4, 1, mean=[0.3], std=[0.4])).train(), Alone()
    task.moment = Moment(1, 2)
    cuts = [{k: v[i : i + 8] for k, v in batch.items()} for i in (0, 8, 16)]
    statistics = [b.clone() for b in task.buffers()]
    whole = task._whole
    whole.clear()
    last = [whole.add(cut, task._embed, trainer) for cut in cuts]
    assert last == [False, False, True]
    losses = whole.compare(task.compared, trainer)
    whole.backward(task, task._embed, trainer)
    got = {name: p.grad * 3 for name, p in task.named_parameters() if p.grad is not None}
    moved = [b.clone() for b in task.buffers()]

    for buffer, value in zip(task.buffers(), statistics, strict=True):
        buffer.copy_(value)
    task.zero_grad()
    views = torch.cat([task._embed(cut) for cut in cuts], 1)
    want = nt_xent(views[0], views[1], task.temperature, task.within)
    want.sum().backward()
    torch.testing.assert_close(losses, want.detach())
    assert got.keys() == {n for n, p in task.named_parameters() if p.grad is not None}
    for name, p in task.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, atol=1e-5, rtol=1e-4, msg=name)
    for one, other in zip(task.buffers(), moved, strict=True):
        torch.testing.assert_close(one, other)  # statistics have seen each micro-batch once


def test_what_runs_twice_drops_the_same_of_images(batch: Mapping[str, Any]) -> None:
    vit = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "patch_size": 4}
    vit |= {"num_attention_heads": 2, "intermediate_size": 16, "hidden_dropout_prob": 0.3}
    task = task_of(ImageEncoder(config=vit, in_channels=1, image_size=8)).train()
    with torch.no_grad():
        first, again = (task.embedded(batch, Moment(1, 0)) for _ in range(2))
    assert torch.equal(first, again)


def test_a_step_that_a_limit_cuts_short_is_taken(tmp_path: Path) -> None:
    words = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3"]
    before = weights(config_of(tmp_path), "a", *words, "--model.optim.lr=1e-12")
    after = weights(config_of(tmp_path), "b", *words)
    assert (before["projection.0.weight"] - after["projection.0.weight"]).abs().max() > 1e-4


def test_views_of_a_sample_depend_on_it_and_the_moment_alone(batch: Mapping[str, Any]) -> None:
    task = task_of().eval()
    with torch.no_grad():
        first, again, later = (task.embedded(batch, Moment(1, e)) for e in (0, 0, 1))
        few = task.embedded({k: v[3:7] for k, v in batch.items()}, Moment(1, 0))
    assert torch.equal(first, again)
    torch.testing.assert_close(few, first[:, 3:7])
    assert (first[0] != first[1]).any(1).float().mean() > 0.9
    assert (first != later).any(2).float().mean() > 0.9


def test_texts_differ_by_dropout_in_training_and_in_evaluation(tiny: Path) -> None:
    cli = main(["fit", "--config", str(text_config(tiny)), "--trainer.max_epochs=2"])
    task: Any = cli.model.eval()
    batch = next(iter(cli.datamodule.val_dataloader()))
    with torch.no_grad():
        first, again = (task.step(batch, "val") for _ in range(2))
        torch.testing.assert_close(first.loss, again.loss)
        assert (first.samples["alignment"] > 1e-4).all()
        assert not task.training
        assert not any(module.training for module in task.backbone.modules())
    rows = cli.trainer.callback_metrics
    assert {"val/alignment", "val/found", "val/loss"} <= rows.keys()


def test_samples_are_told_apart_better_and_neighbours_are_scored(tmp_path: Path) -> None:
    path = config_of(tmp_path, RESNET, max_train_samples=None, batch_size=64, micro_batch=32)
    words = ["--trainer.max_epochs=4", "--trainer.check_val_every_n_epoch=1"]
    run = main(["fit", "--config", str(path), *words, "--trainer.callbacks+=KNN"]).run.path
    metrics = read_metrics(run / "metrics.csv")
    losses, shares = metrics["val/loss"][1], metrics["val/found"][1]
    assert losses[-1] < 0.9 * losses[0]
    assert shares[-1] > shares[0]
    assert len(json.loads((run / "knn.json").read_text(encoding="utf-8"))["all"]) == 4
    best = run / "checkpoints" / "best.ckpt"
    assert isinstance(load_task(best), Contrastive)
    main(["test", "--ckpt_path", str(best)])
    assert load(best).embed([*Digits().images("test", [0])]).shape == (1, 32)


def text_encoder(**options: Any) -> TextEncoder:
    return TextEncoder(config=BERT | options, vocab_size=20)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: task_of(temperature=0.0), "model.temperature is above 0"),
        (lambda: task_of(projection=(4, 0)), "model.projection are widths"),
        (
            lambda: task_of(text_encoder(hidden_dropout_prob=0.0), augment=None),
            "differ by dropout alone, and the backbone has none",
        ),
        (lambda: task_of(text_encoder()), "model.augment is for images"),
    ],
)
def test_views_that_would_be_the_same_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("augment", "differ"),
    [
        (None, False),
        (Augment(pad_mode="zero", magnitude=5), False),
        (Augment(jitter=(0.4, 0.0, 0.0, 0.0), jitter_prob=0.0), False),
        (Augment(size=6), True),
        (Augment(grey=0.5, flip="random"), True),
    ],
)
def test_images_that_no_augmentation_changes_are_refused(augment: Any, differ: bool) -> None:
    task = task_of(ResNet9(2, 1, mean=[0.3], std=[0.4]), augment=augment)
    if differ:
        task.check_data(Digits())
        return
    with pytest.raises(ValueError, match=r"model\.augment makes the two views.* are the same here"):
        task.check_data(Digits())


def test_a_frozen_text_encoder_has_two_views_too() -> None:
    task = task_of(text_encoder(), augment=None, projection=()).train()
    task.backbone.eval()
    ids = torch.arange(12).view(2, 6)
    batch = {"input_ids": ids, "attention_mask": ids >= 0, "index": torch.arange(2)}
    first, second = task.embedded(batch, Moment())
    assert (first != second).any(1).all()
    assert not task.backbone.training


@pytest.mark.slow
def test_ranks_train_like_one(tmp_path: Path) -> None:
    path, ends = config_of(tmp_path), []
    for ranks in (1, 2, 4):
        ddp = ["--config", str(REPO / "configs" / "trainer" / "ddp.yaml")] if ranks > 1 else []
        ddp += [f"--trainer.devices={ranks}"] if ranks > 1 else []
        words = ["--experiment", str(ranks), "--trainer.accelerator=cpu", "--trainer.max_epochs=2"]
        lit_foundry("fit", "--config", str(path), *ddp, *words)
        [last] = (tmp_path / "runs" / str(ranks) / "1" / "checkpoints").glob("recovery-*.ckpt")
        ends.append(read_checkpoint(last)["state_dict"])
    for other in ends[1:]:
        for key, want in ends[0].items():
            torch.testing.assert_close(other[key], want, atol=5e-5, rtol=1e-4, msg=key)


@pytest.mark.slow
def test_ranks_drop_the_same_of_a_text(tiny: Path) -> None:
    path, ends = text_config(tiny), []
    for ranks in (1, 2):
        ddp = ["--config", str(REPO / "configs" / "trainer" / "ddp.yaml")] if ranks > 1 else []
        words = ["--experiment", str(ranks), "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
        lit_foundry("fit", "--config", str(path), *ddp, *words)
        [last] = (tiny.parent / "runs" / str(ranks) / "1" / "checkpoints").glob("recovery-*.ckpt")
        ends.append(read_checkpoint(last)["state_dict"])
    for key, want in ends[0].items():
        if not key.endswith("key.bias"):  # whose gradient is nothing but rounding
            torch.testing.assert_close(ends[1][key], want, atol=5e-5, rtol=1e-4, msg=key)


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    path = config_of(tmp_path, RESNET)
    assert fit(path, "whole") == 0
    _, _, order = end_of(path, "whole")
    kill_and_compare(path, ([10], [max(order) // 2, max(order) - 3]))
