"""Recipes: whatever an object was built from, as plain data that builds it again."""

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

import lit_foundry
from lit_foundry.callbacks import EMA
from lit_foundry.checkpoints.files import build
from lit_foundry.cli.arguments import load_value
from lit_foundry.cli.main import main
from lit_foundry.data import Docstrings, IMDb, TextData, TextFiles, TrainTokenizer
from lit_foundry.export.command import export
from lit_foundry.export.inference import load
from lit_foundry.recipe import CheckpointError, Recorded, differences, plain, public_path, renewed


@dataclass(frozen=True)
class Inner:
    """Has a field that YAML lacks."""

    rate: float = 0.1
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Outer:
    """Holds another."""

    inner: Inner = field(default_factory=Inner)
    path: Path | None = None


class Part(Recorded):
    """Does not keep its arguments."""

    def __init__(self, width: int, depth: int = 2) -> None:
        self.size = width * depth


class Whole(Recorded, nn.Module):
    """Takes all kinds of arguments."""

    def __init__(
        self,
        part: Part,
        outer: Outer = Outer(),
        sizes: Mapping[str, int] | None = None,
        flag: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.part, self.layer = part, nn.Linear(part.size, 1)


class Wider(Whole):
    """Adds nothing to the constructor."""


class Bare(Recorded):
    """Has no constructor."""


def test_recipe_holds_positional_arguments_and_defaults_by_name() -> None:
    assert Part(3).recipe() == {
        "class_path": f"{__name__}.Part",
        "init_args": {"width": 3, "depth": 2},
    }
    assert Part(3, 4).recipe()["init_args"] == {"width": 3, "depth": 4}
    assert Part(depth=4, width=3).recipe()["init_args"] == {"width": 3, "depth": 4}
    assert Bare().recipe()["init_args"] == {}


def test_recipe_holds_nested_objects_and_dataclasses() -> None:
    whole = Wider(Part(3), Outer(path=Path("x/y")), {"a": 1}, flag=False)
    assert whole.recipe() == {
        "class_path": f"{__name__}.Wider",
        "init_args": {
            "part": Part(3).recipe(),
            "outer": {"inner": {"rate": 0.1, "names": ["a", "b"]}, "path": "x/y"},
            "sizes": {"a": 1},
            "flag": False,
        },
    }


def test_further_keyword_arguments_stand_beside_the_named_ones() -> None:
    args = Whole(Part(1), flag=False, extra=1, options=2).recipe()["init_args"]
    assert args["flag"] is False
    assert (args["extra"], args["options"]) == (1, 2)


def test_recipe_is_plain_enough_for_yaml_and_for_weights_only(tmp_path: Path) -> None:
    sizes: Any = {"a": np.float64(0.5)}  # a float by inheritance
    recipe = Whole(Part(3), sizes=sizes).recipe()
    assert yaml.safe_load(yaml.safe_dump(recipe)) == recipe
    torch.save(recipe, tmp_path / "recipe")
    assert torch.load(tmp_path / "recipe", weights_only=True) == recipe


def test_copies_and_unpickled_objects_keep_their_recipe() -> None:
    whole = Whole(Part(3), sizes={"a": 1})
    whole.layer = nn.Linear(2, 2)
    for twin in (copy.deepcopy(whole), copy.copy(whole), pickle.loads(pickle.dumps(whole))):
        assert twin.recipe() == whole.recipe()
        assert twin.layer.weight.equal(whole.layer.weight)
    twin = copy.deepcopy(whole)
    twin.__dict__["_init_args"]["sizes"]["a"] = 2
    assert whole.recipe()["init_args"]["sizes"] == {"a": 1}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"deep": {"er": object()}}, "sizes.deep.er is a object"),
        ([1, {2}], "sizes is a set"),
        (nn.Linear(1, 1), "sizes is a Linear"),
        (Outer(inner=Inner(rate=np.zeros(2))), "sizes.inner.rate is a ndarray"),  # type: ignore[arg-type]
        (torch.ones(1), "sizes is a Tensor"),
        (Outer, "sizes is a type"),
        (print, "sizes is a builtin"),
    ],
)
def test_what_is_not_plain_is_refused_by_its_name(value: Any, name: str) -> None:
    whole = Whole(Part(1), sizes=value)
    with pytest.raises(TypeError, match=rf"^{name}.* which a checkpoint's recipe cannot hold\.$"):
        whole.recipe()


def test_wrong_arguments_fail_as_in_any_class() -> None:
    with pytest.raises(TypeError, match="dept"):
        Part(1, dept=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="width"):
        Part()  # type: ignore[call-arg]


def test_plain_keeps_plain_values_as_they_are() -> None:
    values = {"a": [1, 2.5, "x", None, True], "b": {"c": []}}
    assert plain(values) == values
    assert type(plain(True)) is bool


def test_differences_are_listed_by_dotted_key() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": None, "same": 0}, "gone": "x"}
    new = {"a": 2, "b": {"c": [1, 3], "d": {"e": 1}, "same": 0}, "fresh": True}
    assert differences(old, new, "model") == [
        "model.a: 1 -> 2",
        "model.b.c: [1, 2] -> [1, 3]",
        "model.b.d: None -> {'e': 1}",
        "model.gone: 'x' -> None",
        "model.fresh: None -> True",
    ]
    assert differences(old, copy.deepcopy(old)) == []
    assert differences(1, 2) == [": 1 -> 2"]


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (IMDb, {"root": "some/root", "max_length": 64, "truncation": "tail"}),
        (IMDb, {"val_fraction": 0.2, "batch_tokens": 4096, "micro_batch": 1024}),
        (TextFiles, {"train": "a.csv", "label_names": ["y", "x"], "id": "n", "split_seed": 3}),
        (TextFiles, {"text": ["first", "second"], "batch_size": 4, "cache": Path("/tmp/x")}),
        (Docstrings, {"max_length": 32, "num_workers": 2}),
        (Docstrings, {}),
    ],
)
@pytest.mark.parametrize("tokenizer", ["some/tokenizer", TrainTokenizer("bpe", 400)], ids=str)
def test_a_recipe_builds_the_data_that_it_was_taken_from(
    kind: type[TextData], args: dict[str, Any], tokenizer: Any
) -> None:
    data = kind(tokenizer, **args)
    recipe = yaml.safe_load(yaml.safe_dump(data.recipe()))
    assert set(args) <= set(recipe["init_args"])
    twin = build(recipe, TextData)
    assert type(twin) is kind
    hidden = {"_init_args", "_hparams"}
    mine, its = ({k: v for k, v in vars(d).items() if k not in hidden} for d in (data, twin))
    assert its == mine
    # What jsonargparse adds are defaults that the constructor passed on.
    again = twin.recipe()["init_args"]
    assert {key: again[key] for key in recipe["init_args"]} == recipe["init_args"]


def test_a_recipe_of_another_type_is_refused() -> None:
    with pytest.raises(Exception, match="IMDb"):
        build(IMDb("t").recipe(), nn.Module)


def test_a_recipe_within_itself_or_of_aliases_of_aliases_is_refused() -> None:
    own: list[Any] = []
    own.append(own)
    with pytest.raises(CheckpointError, match="over 100 deep within each other"):
        renewed(own)
    for text in ("a: &a [*a]", "[" * 5000 + "]" * 5000):
        with pytest.raises(yaml.YAMLError):
            load_value(text)
    shared: Any = ["great"]
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(CheckpointError, match="hold over 1,000,000 values"):
        renewed({"class_path": shared})


# The files of public classes when recipes still named those.
FORMER = {
    "lit_foundry.nn": "airbench.Airbench image_encoder.ImageEncoder resnet9.ResNet9 "
    "text.TextEncoder text_decoder.TextDecoder timm_encoder.TimmEncoder "
    "torchvision_encoder.TorchvisionEncoder",
    "lit_foundry.data": "cifar10.CIFAR10 cifar100.CIFAR100 corpus.Corpus digits.Digits "
    "docstrings.Docstrings image_files.ImageFiles image_folder.ImageFolder imdb.IMDb "
    "text_files.TextFiles",
    "lit_foundry.tasks": "causal_lm.CausalLM classification.Classification masked_lm.MaskedLM",
}


@pytest.mark.parametrize(
    "path", [f"{room}.{path}" for room, paths in FORMER.items() for path in paths.split()]
)
def test_a_former_path_stands_for_the_public_one(path: str) -> None:
    name = path.rpartition(".")[2]
    old = {"data": [{"class_path": path, "init_args": {"backbone": {"class_path": path}}}]}
    assert renewed(old) == {
        "data": [
            {
                "class_path": f"lit_foundry.{name}",
                "init_args": {"backbone": {"class_path": f"lit_foundry.{name}"}},
            }
        ]
    }
    assert public_path(getattr(lit_foundry, name)) == f"lit_foundry.{name}"


@pytest.mark.parametrize(
    "place", ["", "lightning.pytorch.callbacks.", "lightning.pytorch.callbacks.weight_averaging."]
)
def test_an_earlier_config_takes_our_averages(place: str) -> None:
    old = f"callbacks: [{{class_path: {place}EMAWeightAveraging}}]"
    assert load_value(old) == {"callbacks": [{"class_path": "lit_foundry.callbacks.EMA"}]}
    found = EMA(decay=0.5)
    assert found.state_key == EMAWeightAveraging().state_key


@pytest.mark.parametrize("path", ["lit_foundry_extra.IMDb", "my.IMDb", "IMDb", "lit_foundry.x.Own"])
def test_the_path_of_another_class_stays(path: str) -> None:
    assert renewed({"class_path": path}) == {"class_path": path}


def test_a_checkpoint_that_names_files_of_classes_loads(tiny: Path) -> None:
    run = main(["fit", "--config", str(tiny), "--trainer.max_epochs", "1"]).run.path
    path = run / "checkpoints" / "best.ckpt"
    scores = main(["test", "--ckpt_path", str(path)]).trainer.callback_metrics
    now = torch.load(path, weights_only=True)
    ours = {key: now["lit_foundry"].pop(key) for key in ("model", "data")}
    text = yaml.safe_dump(ours)
    for room, paths in FORMER.items():
        for former in paths.split():
            name = former.rpartition(".")[2]
            text = text.replace(f"lit_foundry.{name}\n", f"{room}.{former}\n")
    assert text.count("lit_foundry.nn.text.TextEncoder") == 1
    now["lit_foundry"] |= yaml.safe_load(text)
    old = run / "checkpoints" / "old.ckpt"
    torch.save(now, old)
    assert main(["test", "--ckpt_path", str(old)]).trainer.callback_metrics == scores
    export(old, "safetensors", run / "export")
    assert (
        load(run / "export")
        .predict("a bright plot")
        .probs.equal(load(path).predict("a bright plot").probs)
    )
