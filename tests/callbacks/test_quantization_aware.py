"""Training that sees few bits: exports lose less, and nothing else of a run is another."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch import nn

from lit_foundry.callbacks import EMA, QuantizationAware, run_callbacks
from lit_foundry.checkpoints.files import load_task, read_checkpoint, recoveries
from lit_foundry.nn.quantization import Fake, fake_rows, layers, put_fakes, remove_fakes
from lit_foundry.runs.folder import RunFolder
from lit_foundry.tasks import Classification, Finetune, Lora
from lit_foundry.training.optim import OptimConfig
from tests.callbacks.test_pruning import Copies
from tests.conftest import write_config
from tests.finetuning import Data, classifier, state
from tests.runs.test_resume import assert_same, kill_and_compare
from tests.runs.test_resume import fit as run_fit
from tests.tasks.test_base import trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
DECAYED = OptimConfig(lr=0.01, layer_decay=0.8)


def rounds(task: nn.Module) -> bool:
    """Tell whether layers round."""
    return any(isinstance(vars(module).get("forward"), Fake) for module in task.modules())


class Rounding(Callback):
    """Notes of each micro-step and validation whether layers round."""

    def __init__(self) -> None:
        self.steps: list[bool] = []
        self.validations: list[bool] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Note it of a micro-step."""
        self.steps.append(rounds(pl_module))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note it of a validation."""
        self.validations.append(rounds(pl_module))


class Last(Callback):
    """Keeps the logits of the last validation."""

    logits = torch.empty(0)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep them."""
        self.logits = logits(pl_module)


def logits(task: Any) -> torch.Tensor:
    """Return the logits of the validation examples."""
    with torch.no_grad():
        found: torch.Tensor = task.eval()(Data("bert").load("val")[range(20)])
    return found


def fit(
    folder: Path, kind: str, *more: Callback, resume: Path | None = None, **options: Any
) -> tuple[Classification, Path]:
    """Fit two epochs of five steps, each of two micro-steps; return task and checkpoints."""
    task = classifier(kind, **options)
    run = RunFolder.start("aware", root=folder, every_n_steps=1)
    callbacks = [*more, *run_callbacks(run, task), Copies(run.checkpoints)]
    fitted = trainer(*callbacks, max_epochs=2, enable_checkpointing=True)
    data = Data(kind, micro_batch=4)
    fitted.fit(task, data, ckpt_path=resume, weights_only=True if resume else None)
    return task, run.checkpoints


@pytest.mark.parametrize("method", [pytest.param("int8-dynamic", marks=pytest.mark.slow), "int4"])
def test_a_run_resumes_with_the_same_bits_and_its_checkpoints_are_plain(
    method: Any, tmp_path: Path
) -> None:
    def made() -> tuple[Callback, ...]:
        return QuantizationAware(method, begin=0.4), EMA(decay=0.5)

    noted = Rounding()
    task, folder = fit(tmp_path, "bert", *made(), noted, optim=DECAYED)
    assert noted.steps == [False] * 8 + [True] * 12
    assert noted.validations == [True] * 2
    [recovery] = recoveries(folder)
    want = read_checkpoint(recovery)
    assert want["state_dict"].keys() == classifier("bert").state_dict().keys()
    assert not any("forward" in vars(m) for m in [*task.modules(), *load_task(recovery).modules()])
    for step in (3, 4, 7):  # before it begins, when it does, after
        start = folder.parent / f"recovery-{step}.ckpt"
        _, other = fit(tmp_path, "bert", *made(), resume=start, optim=DECAYED, seed=7)
        got = read_checkpoint(recoveries(other)[0])
        for part in ("state_dict", "optimizer_states", "lit_foundry"):
            assert_same(got[part], want[part], f"{step}: {part}")
    _, plain = fit(tmp_path, "bert", EMA(decay=0.5), optim=DECAYED)
    other = read_checkpoint(recoveries(plain)[0])["state_dict"]
    assert any(not torch.equal(other[k], v) for k, v in want["state_dict"].items())


def test_what_is_frozen_is_rounded_and_keeps_its_weights(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from lit_foundry.export.weight_only import quantize_weights

    last = Last()
    aware = QuantizationAware("int4-weight-only", begin=0)
    before = state(classifier("bert"))
    task, _ = fit(tmp_path, "bert", aware, last, finetune=Finetune(freeze="all"))
    after = state(task)
    assert all(torch.equal(after[k], v) for k, v in before.items() if k.startswith("backbone."))
    floats = (logits(task) - last.logits).abs().max()
    quantize_weights(task.head, "int4-weight-only")
    head = (logits(task) - last.logits).abs().max()
    quantize_weights(task.backbone, "int4-weight-only")
    assert (logits(task) - last.logits).abs().max() < 0.01 * min(head, floats)


def test_a_run_that_fails_leaves_no_rounding_behind(tmp_path: Path) -> None:
    tasks: list[nn.Module] = []

    class Fail(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            """Fail amid a run."""
            assert rounds(pl_module)
            tasks.append(pl_module)
            raise KeyError("of a test")

    with pytest.raises(KeyError, match="of a test"):
        fit(tmp_path, "bert", QuantizationAware("int4", begin=0), Fail())
    assert not rounds(tasks[0])


def test_what_is_in_the_way_is_told_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    aware = QuantizationAware("int8-dynamic")
    with pytest.raises(ValueError, match="QuantizationAware leaves layers such as Conv2d"):
        fit(tmp_path, "resnet", aware)
    with pytest.raises(ValueError, match=r"leave out model\.finetune\.lora"):
        fit(tmp_path, "bert", aware, finetune=Finetune(lora=Lora(rank=2)))
    one: Any = trainer(aware)
    task: Any = SimpleNamespace(backbones={}, finetune=Finetune(), compiled=True)
    with pytest.raises(ValueError, match=r"set model\.compile to false"):
        aware.on_fit_start(one, task)
    with pytest.raises(ValueError, match="needs a Task of lit_foundry, got a Linear"):
        aware.on_fit_start(one, nn.Linear(1, 1))  # type: ignore[arg-type]
    several: Any = SimpleNamespace(strategy=SimpleNamespace())
    with pytest.raises(ValueError, match=r"set trainer\.strategy to ddp"):
        aware.on_fit_start(several, task)
    with pytest.raises(ValueError, match=r"QuantizationAware\.method is one of int8-dynamic, int4"):
        QuantizationAware("int2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"begin is a fraction of the run in \[0, 1\), got 1"):
        QuantizationAware("int4", begin=1.0)


def test_validation_scores_what_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from lit_foundry.export.weight_only import quantize_weights

    last = Last()
    task, _ = fit(tmp_path, "bert", QuantizationAware("int4-weight-only"), last)
    floats = (logits(task) - last.logits).abs().max()
    quantize_weights(task, "int4-weight-only")
    integers = (logits(task) - last.logits).abs().max()
    assert integers < 0.01 * floats
    assert integers < 1e-5


@pytest.mark.filterwarnings("ignore:.*not writable")
def test_onnxruntime_rounds_alike(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from onnx import load, numpy_helper

    from lit_foundry.checkpoints.exported import onnx_session
    from lit_foundry.export.quantization import quantize

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(50, 64), nn.Linear(64, 48)
            self.head = nn.Linear(48, 32)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            """Return what follows a lookup; what sees pooled features is another operation."""
            return self.head(self.layer(torch.relu(self.table(ids))).mean(1))  # type: ignore[no-any-return]

    network, path = Table().eval(), tmp_path / "model.onnx"
    ids = torch.randint(50, (2, 7))
    for method in ("int4", "int8-dynamic"):
        torch.onnx.export(network, (ids,), path, external_data=False, verbose=False)
        quantize(path, method, [])
        outputs = torch.from_numpy(onnx_session(path).run(None, {"ids": ids.numpy()})[0])
        floats = (outputs - network(ids)).abs().max()
        put_fakes(layers(network, ""), method)
        rounded = (outputs - network(ids)).abs().max()
        remove_fakes(layers(network, ""))
        # Of four bits, products round activations to eight, and training does not.
        assert rounded < (0.1 * floats if method == "int4" else 1e-5)
        found = {t.name: numpy_helper.to_array(t) for t in load(str(path)).graph.initializer}
        weight = fake_rows(network.layer.weight, method).detach()
        if method == "int4":
            [name] = [name for name in found if name.startswith("val") and name.endswith("Q4")]
            low, high = (torch.from_numpy(found[name] >> s & 15) for s in (0, 4))
            values = torch.stack([low, high], -1).flatten(-2).float() - 8
            scales = torch.from_numpy(found[name.replace("Q4", "scales")])
            theirs = (values * scales.unsqueeze(-1)).flatten(1)
            table = torch.from_numpy(found["table.weight_Q4"].astype("float32")).view(50, 2, 32)
            table = (table * torch.from_numpy(found["table.weight_scales"])[..., None]).flatten(1)
            rows = fake_rows(network.table.weight, method).detach()
            assert (table - rows).abs().max() < 1e-6
        else:
            [name] = [k for k, v in found.items() if v.shape == (64, 48)]
            scales = torch.from_numpy(found[name.replace("quantized", "scale")])
            theirs = (torch.from_numpy(found[name]).float() * scales).T
        assert (theirs - weight).abs().max() < 1e-6


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tiny: Path) -> None:
    config = yaml.safe_load(tiny.read_text(encoding="utf-8"))
    init = {"method": "int8-dynamic", "begin": 0.4}
    aware = {"class_path": "QuantizationAware", "init_args": init}
    average = {"class_path": "EMA", "init_args": {"decay": 0.9}}
    config["trainer"]["callbacks"] = [aware, average]
    write_config(tiny, config)
    assert run_fit(tiny, "whole") == 0
    kill_and_compare(tiny, ([8], [22], [27, 33], [50]))


@pytest.mark.slow
def test_two_ranks_train_what_one_does(tiny: Path) -> None:
    config = yaml.safe_load(tiny.read_text(encoding="utf-8"))
    bert = config["model"]["init_args"]["backbone"]["init_args"]["config"]
    bert |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config["model"]["init_args"]["dropout"] = 0.0
    init = {"method": "int4", "begin": 0.4}
    config["trainer"]["callbacks"] = [{"class_path": "QuantizationAware", "init_args": init}]
    write_config(tiny, config)
    assert run_fit(tiny, "one") == 0
    ddp = "--trainer.devices=2", "--trainer.strategy=ddp"
    assert run_fit(tiny, "two", None, *ddp, ranks=2) == 0
    folders = (tiny.parent / "runs" / name / "1" / "checkpoints" for name in ("one", "two"))
    one, two = (read_checkpoint(recoveries(folder)[0]) for folder in folders)
    for found in (one, two):
        assert found["callbacks"]["QuantizationAware"] == {"begun": True}
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, rtol=0, atol=1e-3)
