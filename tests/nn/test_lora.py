"""LoRA on a BERT, a ResNet and a ViT: what learns, what is saved, and what is left when merged."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from lit_foundry.checkpoints.files import CheckpointError, load_task
from lit_foundry.checkpoints.initialization import load_submodule, submodule_state
from lit_foundry.export.command import export
from lit_foundry.export.inference import load
from lit_foundry.nn import TextDecoder, TorchvisionEncoder
from lit_foundry.nn.lora import add_adapters, check_reached, is_adapter, merge_adapters, plain_name
from lit_foundry.tasks import CausalLM, Classification, Finetune, Lora
from lit_foundry.training.optim import OptimConfig, build_optimizer
from tests.conftest import tiny_config, write_config
from tests.finetuning import BLOCKS, Data, Moves, block_of, classifier, each, network, state
from tests.tasks.test_base import seeded, trainer  # noqa: F401

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
LORA = Finetune(lora=Lora(rank=2))
TEN = {"max_steps": 10, "max_epochs": -1}


def examples(kind: str) -> Any:
    return Data(kind).load("val")[range(20)]


def logits(model: nn.Module, kind: str) -> Tensor:
    with torch.no_grad():
        return model.eval()(examples(kind))  # type: ignore[no-any-return]


def features(model: Classification, kind: str) -> Tensor:
    with torch.no_grad():
        return model.eval().backbone.encode(examples(kind)).pooled


@pytest.fixture
def fitted(kind: str, tmp_path: Path) -> tuple[Classification, Path]:
    """Fit ten steps with adapters, and save."""
    model, fitting = classifier(kind, LORA), trainer(**TEN)
    fitting.fit(model, Data(kind))
    fitting.save_checkpoint(tmp_path / "lora.ckpt")
    return model, tmp_path / "lora.ckpt"


@each
@pytest.mark.parametrize("freeze", [0, 2])
def test_only_adapters_and_the_head_move(kind: str, freeze: int) -> None:
    model, moves = classifier(kind, Finetune(freeze, lora=Lora(rank=2, dropout=0.1))), Moves()
    plain = classifier(kind)
    assert torch.equal(features(model, kind), features(plain, kind)), "they begin as nothing"
    model.train()
    trainer(moves, **TEN).fit(model, Data(kind))
    blocks = block_of(model)
    adapters = {n for n in model.state_dict() if is_adapter(n)}
    assert {blocks[name] for name in adapters} == set(range(max(freeze, 1), BLOCKS))
    heads = {n for n in model.state_dict() if n.startswith("head.")}
    assert moves.learning == [adapters | heads] * 10
    assert set().union(*moves.changed) == adapters | heads
    kinds = (nn.Linear,) if kind != "resnet" else (nn.Conv2d,)
    above = [m for b in plain.backbone.blocks()[max(freeze, 1) :] for m in b.modules()]
    assert len(adapters) == 2 * sum(isinstance(m, kinds) for m in above)


@each
def test_merged_is_the_plain_network_with_logits_within_1e5(
    kind: str, fitted: tuple[Classification, Path]
) -> None:
    model, path = fitted
    want, plain = logits(model, kind), classifier(kind)
    assert not torch.allclose(want, logits(plain, kind), atol=1e-3)
    merged: Any = load_task(path)
    assert torch.equal(logits(merged, kind), want), "a checkpoint holds its adapters"
    merged.merge()
    assert merged.recipe()["init_args"]["finetune"] == plain.recipe()["init_args"]["finetune"]
    assert [(n, type(m)) for n, m in merged.backbone.named_modules()] == [
        (n, type(m)) for n, m in plain.backbone.named_modules()
    ]
    assert torch.allclose(logits(merged, kind), want, rtol=0, atol=1e-5)
    assert list(state(merged)) == list(state(plain))


@each
def test_evaluation_and_resume_rebuild_the_adapters(
    kind: str, fitted: tuple[Classification, Path], tmp_path: Path
) -> None:
    model, path = fitted
    [want] = trainer().test(model, Data(kind), verbose=False)
    [got] = trainer().test(classifier(kind, LORA, seed=4), Data(kind), path, verbose=False)
    assert got == want
    half = trainer(max_steps=5, max_epochs=-1)
    half.fit(classifier(kind, LORA), Data(kind))
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = classifier(kind, LORA, seed=4)
    trainer(**TEN).fit(resumed, Data(kind), ckpt_path=tmp_path / "half.ckpt")
    ours, theirs = state(resumed), state(model)
    assert [n for n in theirs if not torch.equal(ours[n], theirs[n])] == []


@each
@pytest.mark.parametrize("finetune", [Finetune(), LORA])
def test_init_from_takes_merged_weights_and_gives_plain_ones_to_adapters(
    kind: str, fitted: tuple[Classification, Path], finetune: Finetune
) -> None:
    model, path = fitted
    new = classifier(kind, finetune, seed=7, init_from=path)
    optim = OptimConfig(lr=1e-12)
    new.optim = optim
    trainer(max_steps=1, max_epochs=-1).fit(new, Data(kind))
    ours, theirs = features(new, kind), features(model, kind)
    # One step moved statistics of BatchNorms that learn; weights alone are compared there.
    if finetune.lora or kind != "resnet":
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    source = submodule_state(path, "backbone")
    mine = {plain_name(n): v for n, v in new.backbone.named_parameters() if not is_adapter(n)}
    assert all(torch.allclose(v, source[n], atol=1e-6) for n, v in mine.items())
    assert not any(map(is_adapter, source))


@each
def test_other_weights_are_named_plainly_where_they_do_not_fit(
    kind: str, fitted: tuple[Classification, Path]
) -> None:
    other = network({"bert": "vit", "vit": "resnet", "resnet": "bert"}[kind])
    with pytest.raises(CheckpointError, match=r"lora.ckpt, backbone does not fit the model"):
        load_submodule(other, fitted[1])


@each
@pytest.mark.parametrize("options", [{"head_first": 0.4}, {"unfreeze": 0.2}])
def test_adapters_wait_like_other_weights(kind: str, options: dict[str, Any]) -> None:
    model, moves = classifier(kind, Finetune(lora=Lora(rank=2), **options)), Moves()
    trainer(moves, **TEN).fit(model, Data(kind))
    blocks = block_of(model)
    for step, changed in enumerate(moves.changed):
        first = BLOCKS - step // 2 if "unfreeze" in options else BLOCKS * (step < 4)
        assert {blocks[n] for n in changed if is_adapter(n)} == set(range(max(first, 1), BLOCKS))


def test_muon_leaves_adapters_to_adamw() -> None:
    model = classifier("bert", LORA)
    blocks = [(model.backbone, model.backbone.blocks())]
    groups = build_optimizer(model, OptimConfig(name="muon"), blocks).param_groups
    assert not any(group["muon"] for group in groups)
    assert any(group["part"] == "backbone" for group in groups)


@each
def test_targets_choose_layers_by_the_ends_of_their_names(kind: str) -> None:
    ends = {"bert": ["query", "value"], "vit": ["q_proj"], "resnet": ["layer.0.convolution"]}
    model = classifier(kind, Finetune(lora=Lora(targets=ends[kind])))
    adapted = {n.split(".lora_")[0] for n, _ in model.named_parameters() if is_adapter(n)}
    assert adapted
    assert all(name.endswith(tuple(ends[kind])) for name in adapted)
    with pytest.raises(
        ValueError, match=r"targets=\['keys'\] names no linear layer .* take some of"
    ):
        classifier(kind, Finetune(lora=Lora(targets=["keys"])))


def test_transposed_layers_of_gpt2_are_adapted_and_merged() -> None:
    gpt = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    model = CausalLM(TextDecoder(config=gpt | {"vocab_size": 50}), finetune=LORA)
    adapters = [(n, p) for n, p in model.named_parameters() if is_adapter(n)]
    assert len(adapters) == 8
    batch = model.backbone.example(2, 8)
    for _, p in adapters:
        nn.init.normal_(p)
    with torch.no_grad():
        want = model.eval().backbone.encode(batch).tokens
        merge_adapters(model)
        assert torch.allclose(model.backbone.encode(batch).tokens, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "lora.rank is at least 1, got 0"),
        ({"alpha": 0}, "lora.alpha is a scale above 0, got 0"),
        ({"dropout": 1.0}, r"lora.dropout is a probability in \[0, 1\), got 1.0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lora(**options)


def test_what_adapters_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lora=Lora.* means nothing under .*freeze=all"):
        Finetune("all", lora=Lora())
    backbone = network("vit")
    add_adapters(backbone, 2, 4.0, 0.0, None)
    with pytest.raises(ValueError, match="has adapters already: build a new one for each task"):
        Classification(backbone, 2, finetune=LORA)
    # Layers whose weights a network reads past them would never learn, without a word.
    torchs = TorchvisionEncoder("vit_b_32", image_size=32)
    with pytest.raises(ValueError, match=r"cannot adapt .*out_proj, whose weights .* reads past"):
        add_adapters(torchs, 2, 4.0, 0.0, None)


def test_swin_of_torchvision_is_adapted_where_it_calls_its_layers() -> None:
    swin = TorchvisionEncoder("swin_t")
    before = list(swin.state_dict())
    with pytest.raises(
        ValueError, match=r"attn\.(qkv|proj), .* reads past .*'0', '3', 'reduction'"
    ):
        Classification(swin, 2, finetune=LORA)
    assert list(swin.state_dict()) == before
    assert not any(m._forward_hooks for m in swin.modules())
    model = Classification(swin, 2, finetune=Finetune(lora=Lora(targets=["0", "3", "reduction"])))
    model.backbone(swin.example(1, 32)["pixel_values"]).pooled.sum().backward()
    check_reached(model.backbone, "backbone")


def test_adapters_that_the_network_reads_past_are_named_at_the_first_step() -> None:
    class Aside(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)

    # Images are tried beforehand, texts are not.
    backbone = network("bert")
    backbone.blocks()[1].register_module("spare", Aside(3, 3))
    torch.manual_seed(0)
    model = Classification(backbone, 2, finetune=Finetune(lora=Lora(targets=["query", "spare"])))
    with pytest.raises(ValueError, match=r"adapts backbone\..*\.spare, whose weights the network"):
        trainer(**TEN).fit(model, Data("bert"))


def test_without_peft_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r"needs peft: pip install 'lit-foundry\[lora\]'"):
        classifier("bert", LORA)


def test_command_line_fits_tests_and_exports_adapters(tiny: Path) -> None:
    from lit_foundry.cli.main import main

    config = tiny_config(tiny.parent)
    config["model"]["init_args"]["finetune"] = {"lora": {"rank": 4}}
    config["model"]["init_args"]["optim"] = {"lr": 0.01}
    config["trainer"]["max_epochs"] = 1
    write_config(tiny, config)
    main(["fit", "--config", str(tiny)])
    run = tiny.parent / "runs" / "tiny" / "1"
    best = run / "checkpoints" / "best.ckpt"
    main(["test", "--ckpt_path", str(best)])
    written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert written["model"]["init_args"]["finetune"]["lora"]["rank"] == 4
    texts = ["bright great story", "dull poor plot"]
    probs = load(best).predict(texts).probs
    for format in ("hf", "safetensors"):
        exported = load(export(best, format, tiny.parent / format)).predict(texts).probs
        assert torch.allclose(exported, probs, atol=1e-5)
