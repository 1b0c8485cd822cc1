"""Changes of a built network travel with its recipe."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from lit_foundry.checkpoints.files import CheckpointError, build, load_task, read_checkpoint
from lit_foundry.cli.main import main
from lit_foundry.nn.changes import change, inherit
from lit_foundry.tasks import Classification
from tests.tasks.test_base import Toy

LAYER = "backbone.encoder.encoder.layer.0"
NARROWED = [
    {"op": "resize", "module": f"{LAYER}.intermediate.dense", "out_features": 24},
    {"op": "resize", "module": f"{LAYER}.output.dense", "in_features": 24},
]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a run whose network was narrowed before."""
    from lightning.pytorch import Trainer, seed_everything

    from lit_foundry import (
        Classification,
        OptimConfig,
        RunFolder,
        TextEncoder,
        TextFiles,
        TrainTokenizer,
        run_callbacks,
    )
    from tests.conftest import reviews, tiny_config, write_csv

    folder = tmp_path_factory.mktemp("narrow")
    seed_everything(0)
    paths = {n: str(write_csv(folder / f"{n}.csv", reviews(60, 0))) for n in ("train", "test")}
    data = TextFiles(TrainTokenizer(vocab_size=300), **paths, max_length=32, batch_size=12)
    config = tiny_config(folder)["model"]["init_args"]["backbone"]["init_args"]["config"]
    task = Classification(
        TextEncoder(config=config, vocab_size=300), num_classes=2, optim=OptimConfig(lr=1e-3)
    )
    change(task, NARROWED)
    run = RunFolder.start("narrow", root=folder / "runs")
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False}
    fit = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=run_callbacks(run, task), **quiet
    )
    fit.fit(task, data)
    return run.checkpoints / "best.ckpt"


def test_a_checkpoint_rebuilds_the_changed_network(narrow: Path) -> None:
    task = load_task(narrow)
    assert task.get_submodule(f"{LAYER}.intermediate.dense").weight.shape == (24, 32)
    assert task.recipe()["changes"] == NARROWED  # type: ignore[operator]
    scores = main(["test", "--ckpt_path", str(narrow)]).trainer.callback_metrics
    assert "test/acc" in scores


def test_a_run_of_it_is_resumed_and_initializes_another(
    narrow: Path, tmp_path: Path, tiny: Path
) -> None:
    [recovery] = narrow.parent.glob("recovery-*.ckpt")
    recipe = read_checkpoint(narrow)["lit_foundry"]
    plain = {key: {**recipe[key], "changes": None} for key in ("model", "data")}
    for part in plain.values():
        del part["changes"]
    quiet = {"accelerator": "cpu", "default_root_dir": str(tmp_path), "max_epochs": 2}
    config = tmp_path / "again.yaml"
    config.write_text(yaml.safe_dump({**plain, "trainer": quiet}), encoding="utf-8")
    again = main(["fit", "--config", str(config), "--ckpt_path", str(recovery)])
    assert again.trainer.current_epoch == 2
    tokenizer = narrow.parent.parent / "tokenizer"
    words = ["fit", "--config", str(tiny), "--data.tokenizer", str(tokenizer)]
    words += ["--model.init_from", str(narrow), "--trainer.max_epochs", "1"]
    words += ["--model.backbone.vocab_size", "300", "--trainer.callbacks+=EMA"]
    other = main([*words, "--model.optim.lr", "1e-12", "--model.optim.weight_decay", "0"])
    assert other.model.recipe()["changes"] == NARROWED
    weights = load_task(narrow).state_dict()
    for name, value in other.model.backbone.state_dict().items():
        assert torch.allclose(value, weights[f"backbone.{name}"], atol=1e-8), name


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (
            {"op": "exec", "module": "0"},
            "no operation is called 'exec'. There is resize, narrow, factorize.",
        ),
        ({"op": "resize", "module": "7"}, "the network has no module '7'"),
        (
            {"op": "resize", "module": "0", "width": 3},
            r"0 is a torch\.nn\..*Linear, which has no width",
        ),
        ({"op": "resize", "module": "0", "out_features": -1}, "out_features=-1 of 0 is no size"),
        ({"op": "resize", "module": "0", "out_features": "8"}, "out_features='8' of 0 is no size"),
        ({"op": "resize", "module": "0", "bias": "x"}, "bias='x' of 0 is no size"),
        ({"op": "resize"}, "names no op and module"),
        ({"op": "resize", "module": "0", "network": 3}, "0 is a torch.nn"),
        ({"op": "narrow", "module": "7", "out_features": 2}, "the network has no module '7'"),
        ({"op": "narrow", "module": "0", "out_features": 4}, "an integer from 1 to 3"),
        ({"op": "narrow", "module": "0", "out_features": 2.0}, r"out_features=2\.0 of 0 is no"),
        ({"op": "narrow", "module": "0", "out_features": True}, "out_features=True of 0 is no"),
        ({"op": "narrow", "module": "0", "training": 1}, "Linear, whose training is not narrowed"),
        ({"op": "narrow", "module": "0", "__class__": 1}, "whose __class__ is not narrowed"),
        ({"op": "narrow", "module": "1", "momentum": 1}, "whose momentum is not narrowed"),
        ({"op": "factorize", "module": "0"}, "factorize of 0: .* 'rank'"),
        ({"op": "factorize", "module": "0", "rank": 3}, "an integer from 1 to 2"),
        ({"op": "factorize", "module": "0", "rank": 1, "x": 1}, "factorize of 0: .* 'x'"),
        ({"op": "factorize", "module": "1", "rank": 1}, "1 is a BatchNorm1d, and no Linear"),
        ("resize", "names no op and module"),
        ({"op": "resize", "module": ""}, " is a torch.nn.*Sequential, which is not resized"),
    ],
)
def test_what_cannot_be_changed_is_named(entry: Any, why: str) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(CheckpointError, match=why):
        change(network, [entry])
    assert "_changes" not in vars(network)


def test_changes_are_made_in_turn_inherited_once_and_by_the_task_alone() -> None:
    network = nn.Sequential(nn.Linear(2, 3))
    sizes = [{"op": "resize", "module": "0", "out_features": size} for size in (8, 20, 8)]
    change(network, sizes)
    assert network[0].out_features == 8
    assert vars(network)["_changes"] == sizes
    weight = network[0].weight
    inherit(network, sizes[1:], "0")
    assert network[0].weight is weight
    inherit(network, [sizes[1], sizes[1]])
    assert network[0].out_features == 20
    with pytest.raises(CheckpointError, match="changes are a list of operations, and not 3"):
        change(network, 3)  # type: ignore[arg-type]
    inner = Toy()
    change(inner, [{"op": "resize", "module": "layers.0.0", "out_features": 8}])
    with pytest.raises(TypeError, match="backbone was changed by itself: change the task"):
        Classification(inner, 2).recipe()


def test_layers_keep_what_is_not_resized() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)).double()
    sizes = [("0", "out_channels"), ("1", "num_features")]
    change(network.eval(), [{"op": "resize", "module": m, k: 5} for m, k in sizes])
    assert network(torch.ones(1, 3, 9, 9).double()).shape == (1, 5, 4, 4)
    assert network[0].bias is None
    assert not network[1].training


def test_a_layer_keeps_its_places_and_what_of_it_learns() -> None:
    inner = nn.Linear(4, 4).requires_grad_(False)
    network = nn.ModuleDict({"one": inner, "other": inner})
    change(network, [{"op": "resize", "module": "one", "in_features": 3}])
    assert network["one"] is network["other"]
    assert not network["one"].weight.requires_grad
    tied = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "out": nn.Linear(4, 9, bias=False)})
    tied["out"].weight = tied["embedding"].weight
    with pytest.raises(CheckpointError, match="embedding shares a weight with out"):
        change(tied, [{"op": "resize", "module": "embedding", "num_embeddings": 5}])


def test_a_layer_with_layers_inside_is_resized() -> None:
    network = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    change(network, [{"op": "resize", "module": "attention", "kdim": 4, "vdim": 4}])
    assert network["attention"].k_proj_weight.shape == (8, 4)


def test_layers_are_narrowed_in_place() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)
    )
    layers, parameters = [*network], [*network.parameters()]
    network[0].weight.requires_grad_(False)
    sizes = ["out_channels", "num_features", "groups", "in_channels"]
    made = [{"op": "narrow", "module": f"{n}", size: 5} for n, size in enumerate(sizes)]
    change(network, made)
    assert [*network] == layers
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert not network[0].weight.requires_grad
    assert network(torch.ones(1, 3, 9, 9)).shape == (1, 2, 5, 5)
    # A smaller size takes the place of an earlier one.
    smaller = [entry | {size: 4} for entry, size in zip(made, sizes, strict=True)]
    change(network, smaller)
    assert vars(network)["_changes"] == smaller
    grouped = nn.Sequential(nn.Conv2d(8, 4, 3, groups=2))
    with pytest.raises(CheckpointError, match="whose out_channels is not narrowed"):
        change(grouped, [{"op": "narrow", "module": "0", "out_channels": 2}])


def test_heads_of_attention_are_a_size() -> None:
    attention = nn.Identity()
    attention.num_heads, attention.attn_dim = 4, 8  # type: ignore[assignment]
    network = nn.ModuleDict({"attention": attention})
    change(network, [{"op": "narrow", "module": "attention", "num_heads": 3, "attn_dim": 6}])
    assert (attention.num_heads, attention.attn_dim) == (3, 6)
    torchs = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(CheckpointError, match="whose num_heads is not narrowed"):
        change(torchs, [{"op": "narrow", "module": "attention", "num_heads": 1}])


def test_a_linear_layer_becomes_two() -> None:
    layer = nn.Linear(6, 4).double().requires_grad_(False)
    network = nn.ModuleDict({"one": layer, "other": layer}).eval()
    change(network, [{"op": "factorize", "module": "one", "rank": 2}])
    assert network["one"] is network["other"]
    assert {name: tuple(p.shape) for name, p in network["one"].named_parameters()} == {
        "0.weight": (2, 6),
        "1.weight": (4, 2),
        "1.bias": (4,),
    }
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(module.training for module in network.modules())
    tied = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "out": nn.Linear(4, 9, bias=False)})
    tied["out"].weight = tied["embedding"].weight
    for entry in ({"op": "factorize", "rank": 2}, {"op": "narrow", "out_features": 5}):
        with pytest.raises(CheckpointError, match="out shares a weight with embedding"):
            change(tied, [entry | {"module": "out"}])


class Narrowed(Classification):
    """Changes itself whenever it is built."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Toy(), 2, **options)
        inner = {"op": "resize", "module": "backbone.layers.0.0", "bias": 1}
        change(self, [inner | {"out_features": 8} for _ in range(2)])


def test_a_task_that_changes_itself_is_rebuilt_as_it_was() -> None:
    recipe: Any = Narrowed().recipe()
    for _ in range(2):
        recipe = build(recipe, Classification).recipe()
    assert len(recipe["changes"]) == 2


def test_what_a_task_says_of_itself_is_no_module() -> None:
    with pytest.raises(CheckpointError, match="has no module 'trainer'"):
        change(Classification(Toy(), 2), [{"op": "resize", "module": "trainer", "size": 2}])


def test_adapters_of_a_network_that_was_changed_are_refused(narrow: Path, tiny: Path) -> None:
    pytest.importorskip("peft")
    tokenizer = narrow.parent.parent / "tokenizer"
    words = ["fit", "--config", str(tiny), "--data.tokenizer", str(tokenizer)]
    words += ["--model.init_from", str(narrow), "--model.backbone.vocab_size", "300"]
    with pytest.raises(ValueError, match=r"changed after it was built.*leave out model\.finetune"):
        main([*words, "--model.finetune.lora.rank", "2"])
