"""Language models learn, score exactly, resume, fill, go on and export."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything

from lit_foundry import load
from lit_foundry.callbacks import EMA
from lit_foundry.checkpoints.files import CheckpointError, load_data, load_task, read_checkpoint
from lit_foundry.cli.main import main
from lit_foundry.data import Corpus, DataError, TrainTokenizer
from lit_foundry.export.command import export
from lit_foundry.nn import TextDecoder, TextEncoder
from lit_foundry.nn.text.as_language_model import language_model
from lit_foundry.nn.text.generation import Generation, generate
from lit_foundry.nn.text.masking import IGNORED, Masking
from lit_foundry.nn.text.noising import Noising
from lit_foundry.randomness import Moment
from lit_foundry.tasks import CausalLM, DenoisingText, MaskedLM
from lit_foundry.tasks.causal_lm import next_tokens
from lit_foundry.training.optim import OptimConfig
from tests.conftest import corpus_config, reviews, tiny_config, write_config, write_csv

TASKS = ["MaskedLM", "CausalLM", "DenoisingText"]
KINDS = "bos", "eos", "pad"


@pytest.fixture(scope="module", params=TASKS)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Pretrain a tiny model; return its command line and the folder of its files."""
    folder = tmp_path_factory.mktemp(request.param)
    config = corpus_config(folder, request.param)
    config["trainer"]["max_epochs"] = 3
    cli = main(["fit", "--config", str(write_config(folder / "tiny.yaml", config))])
    return cli, folder


def best(fitted: Any) -> Path:
    path: Path = fitted[0].run.path / "checkpoints" / "best.ckpt"
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_fit_logs_what_one_looks_at(fitted: Any) -> None:
    rows = rows_of(fitted[0].run.path / "metrics.csv")
    logged = {key for row in rows for key, value in row.items() if value}
    assert {"train/loss", "val/loss", "val/perplexity", "val/acc", "train/acc"} <= logged
    assert {"throughput/tokens_per_s", "throughput/padding", "throughput/mfu"} <= logged
    assert ("val/bits_per_byte" in logged) == isinstance(fitted[0].model, CausalLM)
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    assert losses[-1] < losses[0]
    perplexity = [float(row["val/perplexity"]) for row in rows if row["val/perplexity"]]
    assert perplexity[-1] == pytest.approx(math.exp(losses[-1]), rel=1e-5)


def test_samples_of_each_validation_are_written(fitted: Any) -> None:
    files = sorted((fitted[0].run.path / "samples").iterdir(), key=lambda p: int(p.stem))
    assert len(files) == 3
    text = files[-1].read_text(encoding="utf-8")
    assert ("[MASK]" in text) != isinstance(fitted[0].model, CausalLM)
    assert ("|||" in text) == isinstance(fitted[0].model, CausalLM)
    if isinstance(fitted[0].model, DenoisingText):
        shown = [line.split(": ", 1) for line in text.splitlines() if line]
        names = [name.strip() for name, _ in shown]
        assert names == ["original", "seen", "restored"] * (len(names) // 3)
        return
    fillings = [line.split(" : ")[1].split(", ") for line in text.splitlines() if " : " in line]
    assert {len(best) for best in fillings} == ({5} if "[MASK]" in text else set())


def test_checkpoint_scores_as_the_fit_did(fitted: Any) -> None:
    rows = rows_of(fitted[0].run.path / "metrics.csv")
    lowest = min(float(row["val/loss"]) for row in rows if row["val/loss"])
    cli = main(["validate", "--ckpt_path", str(best(fitted))])
    assert float(cli.trainer.callback_metrics["val/loss"]) == pytest.approx(lowest, abs=1e-6)


def test_predict_fills_masks_or_goes_on(fitted: Any, tmp_path: Path) -> None:
    source, output = tmp_path / "texts.txt", tmp_path / "out.jsonl"
    source.write_text("the plot [MASK] scene\nhero\n", encoding="utf-8")
    words = ["predict", "--ckpt_path", str(best(fitted)), "--input", str(source)]
    main([*words, "--output", str(output)])
    first, second = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert [first["id"], second["id"]] == ["0", "1"]
    if isinstance(fitted[0].model, MaskedLM):
        [mask] = first["masks"]
        assert len(mask) == 5
        assert second["masks"] == []
        probs = [filling["prob"] for filling in mask]
        assert probs == sorted(probs, reverse=True)
        assert 0 < sum(probs) <= 1
    elif isinstance(fitted[0].model, DenoisingText):
        assert "the plot [MASK] scene" in first["text"]
        assert isinstance(first["restored"], str)  # maybe nothing, so early
    else:
        assert first["text"].startswith("the plot")
        assert first["continuation"]
        short = [*words, "--output", str(output), "--model.generation.max_tokens=2"]
        main([*short, "--model.generation.temperature=0"])
        again = json.loads(output.read_text(encoding="utf-8").splitlines()[0])
        assert len(again["continuation"]) < len(first["continuation"])
    with pytest.raises(ValueError, match=r"suffix must be \.jsonl"):
        main([*words, "--output", str(tmp_path / "out.csv")])


def test_export_loads_in_transformers(fitted: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

    folder = export(best(fitted), "hf", tmp_path / "export")
    assert (
        json.loads((folder / "lit_foundry.json").read_text(encoding="utf-8"))["difference"] <= 1e-5
    )
    if isinstance(fitted[0].model, MaskedLM):
        found = pipeline("fill-mask", str(folder))("the plot [MASK] scene")
        task, data = load_task(best(fitted)), load_data(best(fitted))
        batch = next(iter(data.batches(["the plot [MASK] scene"], 64)))
        rows, places = (batch["input_ids"] == data.tokenizer.mask_token_id).nonzero(as_tuple=True)
        [filling] = task.fillings(batch, rows, places)
        assert [f["token"] for f in found] == [i for i, _ in filling]
        assert [f["score"] for f in found] == pytest.approx([p for _, p in filling], abs=1e-5)
    elif isinstance(fitted[0].model, DenoisingText):
        task, data = load_task(best(fitted)), load_data(best(fitted))
        task.check_data(data)
        batch = next(iter(data.batches(["the plot [MASK] scene", "hero"], 64)))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        fields = tokenizer(["the plot [MASK] scene", "hero"], padding=True, return_tensors="pt")
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        ids = model.generate(**fields, max_new_tokens=20, do_sample=False)
        found = tokenizer.batch_decode(ids, skip_special_tokens=True)
        task.generation = Generation(max_tokens=20, temperature=0)
        assert [found[i] for i in batch["index"]] == task.restored(batch, data.tokenizer)
    else:
        found = pipeline("text-generation", str(folder))("the plot", max_new_tokens=3)
        assert found[0]["generated_text"].startswith("the plot")
    with pytest.raises(CheckpointError, match="takes --format hf"):
        export(best(fitted), "onnx", tmp_path / "onnx")
    for path in (best(fitted), folder):
        with pytest.raises(CheckpointError, match="labels nothing"):
            load(path).predict("the plot")


@pytest.mark.parametrize("form", ["checkpoint", "folder"])
def test_fine_tuning_starts_from_it(fitted: Any, tmp_path: Path, form: str) -> None:
    cli, folder = fitted
    start = best(fitted) if form == "checkpoint" else export(best(fitted), "hf", tmp_path / "hf")
    config = tiny_config(folder)
    write_csv(folder / "train.csv", reviews(120, seed=0))
    backbone = read_checkpoint(best(fitted))["lit_foundry"]["model"]["init_args"]["backbone"]
    config["model"]["init_args"] |= {"backbone": backbone, "init_from": str(start)}
    config["data"]["init_args"]["tokenizer"] = str(cli.run.path / "tokenizer")
    config["trainer"] |= {"max_epochs": 1, "default_root_dir": str(tmp_path)}
    config["model"]["init_args"]["optim"] = {"lr": 1e-12, "weight_decay": 0.0}
    tuned = main(["fit", "--config", str(write_config(tmp_path / "tune.yaml", config))])
    theirs = read_checkpoint(best(fitted))["state_dict"]
    for name, value in tuned.model.backbone.state_dict().items():
        assert torch.allclose(value, theirs[f"backbone.{name}"], atol=1e-8), name


def test_another_tokenizer_is_refused(
    fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_FOUNDRY_CACHE", str(tmp_path / "cache"))
    config = tiny_config(tmp_path)
    write_csv(tmp_path / "train.csv", reviews(120, seed=5))
    backbone = read_checkpoint(best(fitted))["lit_foundry"]["model"]["init_args"]["backbone"]
    config["model"]["init_args"] |= {"backbone": backbone, "init_from": str(best(fitted))}
    words = ["fit", "--config", str(write_config(tmp_path / "tune.yaml", config))]
    for resume in ("never", "auto"):
        with pytest.raises(
            CheckpointError, match=r"another tokenizer.*set data.tokenizer to .*tokenizer"
        ):
            main([*words, "--resume", resume])
        # Told before tokenizing, which may take hours, unless the run may be a resume.
        assert (tmp_path / "cache" / "tokens").exists() == (resume == "auto")


def corpus(folder: Path, kind: Any = "wordpiece", **options: Any) -> Corpus:
    """Return a corpus of 150 reviews."""
    (folder / "corpus.txt").write_text(
        "\n".join(text for text, _ in reviews(150, seed=0)), encoding="utf-8"
    )
    defaults: dict[str, Any] = {"max_length": 32, "delimiter": "\n", "batch_size": 12}
    return Corpus(
        TrainTokenizer(kind, vocab_size=300), str(folder / "corpus.txt"), **(defaults | options)
    )


BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


GPT = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}

BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "max_position_embeddings": 64}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}
BART |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 64}


def masked_lm(data: Corpus, lr: float = 1e-2, **options: Any) -> MaskedLM:
    seed_everything(0)
    backbone = TextEncoder(config=BERT, vocab_size=data.facts["vocab_size"])
    return MaskedLM(backbone, optim=OptimConfig(lr=lr, schedule="constant"), **options)


def trainer(folder: Path, **options: Any) -> Trainer:
    silent: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": folder,
    }
    return Trainer(**(silent | options))


def test_accumulation_averages_over_tokens_not_over_micro_batches(tmp_path: Path) -> None:
    after = []
    for micro in (12, 3, 1):
        data = corpus(tmp_path, micro_batch=micro)
        task = masked_lm(data)
        trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(task, data)
        after.append(torch.cat([p.detach().flatten() for p in task.parameters()]))
        assert task.step_loss is not None
    assert torch.allclose(after[0], after[1], atol=1e-4)
    assert torch.allclose(after[0], after[2], atol=1e-4)


def test_validation_loss_is_the_mean_over_all_predictions(tmp_path: Path) -> None:
    scores = []
    for size in (1, 5, 64):
        data = corpus(tmp_path, batch_size=size)
        found = trainer(tmp_path).validate(masked_lm(data), data, verbose=False)[0]
        scores.append(found["val/loss"])
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)


def test_evaluation_masks_15_percent_the_same_each_time_whatever_training_has(
    tmp_path: Path,
) -> None:
    data = corpus(tmp_path)
    found = [
        trainer(tmp_path).validate(masked_lm(data, masking=masking), data, verbose=False)[0]
        for masking in (Masking(), Masking(prob=0.4, unit="span"), Masking())
    ]
    assert found[0] == found[1] == found[2]


def test_one_batch_is_learnt_by_heart(tmp_path: Path) -> None:
    data = corpus(tmp_path, batch_size=4)
    task = masked_lm(data, lr=3e-3)
    loop = trainer(tmp_path, max_steps=0, limit_val_batches=0)
    loop.fit(task, data)
    batch = next(iter(data.train_dataloader()))
    optimizer = torch.optim.AdamW(task.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        step = task.step(batch, "train")
        step.loss.backward()
        optimizer.step()
    assert step.loss.item() < 0.5  # what is predicted is the same in each call: epoch 0
    assert step.preds is not None
    assert (step.preds == step.target)[step.target != IGNORED].float().mean() > 0.9


def test_sparse_prediction_equals_the_loss_over_all_places(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    task = masked_lm(data)
    trainer(tmp_path, max_steps=0, limit_val_batches=0).fit(task, data)
    batch = next(iter(data.train_dataloader()))
    masked = task.masked(batch, "train")
    tokens = task.backbone.encode({**batch, "input_ids": masked.input_ids}).tokens
    logits = task.head(tokens, task.head.decoder_weight(task.backbone))
    labels = torch.full_like(batch["input_ids"], IGNORED).scatter(
        1, masked.positions, masked.target
    )
    want = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    step = task.step(batch, "train")
    assert torch.allclose(step.loss, want, atol=1e-5)
    assert int(step.count) == int((labels != IGNORED).sum())


def test_training_masks_whole_words_anew_in_each_epoch_as_often_as_scheduled(
    tmp_path: Path,
) -> None:
    data = corpus(tmp_path, "bpe")
    task = masked_lm(data, masking=Masking(prob=0.4, final_prob=0.1, unit="word"))
    trainer(tmp_path, max_steps=0, limit_val_batches=0).fit(task, data)
    batch = next(iter(data.train_dataloader()))
    ids = batch["input_ids"]
    maskable = batch["attention_mask"] & ~task.special[ids]

    def chosen() -> torch.Tensor:
        masked = task.masked(batch, "train")
        nothing = torch.zeros_like(ids, dtype=torch.bool)
        return nothing.scatter(1, masked.positions, masked.target != IGNORED)

    first = chosen()
    assert not first[~maskable].any()
    assert 0.35 < first.sum() / maskable.sum() < 0.45
    goes_on = task.continues[ids][:, 1:] & maskable[:, 1:] & maskable[:, :-1]
    assert goes_on.sum() > 50
    assert (first[:, 1:] == first[:, :-1])[goes_on].all()
    assert torch.equal(chosen(), first)
    task.moment = Moment(epoch=1)
    assert not torch.equal(chosen(), first)
    task.moment = Moment(progress=1.0)
    assert 0.05 < chosen().sum() / maskable.sum() < 0.15


def test_averaged_weights_train_and_validate(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    loop = trainer(tmp_path, max_epochs=1, callbacks=[EMA()])
    loop.fit(masked_lm(data), data)
    assert "val/loss" in loop.callback_metrics


def test_a_sample_goes_on_with_the_first_document_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = corpus(tmp_path)
    task = CausalLM(TextDecoder(config=GPT, vocab_size=data.facts["vocab_size"]))
    seen: list[Any] = []
    monkeypatch.setattr(task, "continued", lambda batch, _: seen.append(batch) or [])
    batch: Any = data.load("val")[[0, 1]]
    task.samples(batch, data.tokenizer)
    assert torch.equal(seen[0]["attention_mask"], (batch["document"] == 1)[:, :32])
    assert (batch["document"] > 1)[:, :32].any()


def test_next_tokens_stay_within_a_document() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9, 0]])
    batch = {
        "input_ids": ids,
        "attention_mask": ids > 0,
        "document": torch.tensor([[1, 1, 1, 2, 2, 0]]),
    }
    assert next_tokens(batch).tolist() == [[6, 7, -100, 9, -100, -100]]
    del batch["document"]
    assert next_tokens(batch).tolist() == [[6, 7, 8, 9, -100, -100]]


@pytest.mark.parametrize("val_from", ["documents", "end"])
@pytest.mark.parametrize("packing", ["isolated", "concatenated"])
def test_each_text_ends_once_however_it_is_cut(packing: str, val_from: str, tmp_path: Path) -> None:
    data = corpus(tmp_path, packing=packing, val_from=val_from, val_fraction=0.5, max_length=16)
    end, found, untold = data.tokenizer.sep_token_id, {}, 0
    for split in ("train", "val"):
        rows: Any = data.load(split)  # type: ignore[arg-type]
        batch = rows[range(len(rows))]
        assert (batch["input_ids"][batch["cut"]] == end).all()
        found[split] = int((next_tokens(batch) == end).sum())
        if packing == "isolated":
            assert batch["cut"].any()
            first = torch.ones_like(batch["document"], dtype=torch.bool)
            first[:, 1:] = batch["document"].diff() != 0
            begins = first.flatten().nonzero().flatten().tolist()
            assert batch["offsets"].tolist() == [*begins, first.numel()]
        else:  # nothing predicts the first token of a row, and training leaves out a rest
            untold += len(rows) + 1
    texts = len(data.tokens("train"))
    assert texts - untold <= found["train"] + found["val"] <= texts
    assert val_from == "documents" or not found["train"]


def saved(kind: str, folder: Path, data: Corpus) -> Any:
    """Save a random network of transformers, and return it."""
    import transformers as hf

    torch.manual_seed(1)
    size = data.facts["vocab_size"]
    if kind == "MaskedLM":
        config: Any = hf.BertConfig(
            **{k: v for k, v in BERT.items() if k != "model_type"}, vocab_size=size
        )
        model: Any = hf.BertForMaskedLM(config)
    elif kind == "DenoisingText":
        ids = {"pad_token_id": 0, "decoder_start_token_id": data.tokenizer.sep_token_id}
        config = hf.BartConfig(**BART, vocab_size=size, **ids)
        model = hf.BartForConditionalGeneration(config)
        model.final_logits_bias.normal_()
    else:
        config = hf.GPT2Config(
            **{k: v for k, v in GPT.items() if k != "model_type"}, vocab_size=size
        )
        model = hf.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", TASKS)
def test_step_0_of_continuing_has_the_loss_of_transformers(kind: str, tmp_path: Path) -> None:
    data = corpus(tmp_path, packing="concatenated")
    theirs = saved(kind, tmp_path / "weights", data)
    folder = str(tmp_path / "weights")
    backbone = (TextDecoder if kind == "CausalLM" else TextEncoder)(folder)
    task: Any = {cls.__name__: cls for cls in (MaskedLM, CausalLM, DenoisingText)}[kind](backbone)
    loop = trainer(tmp_path, max_steps=0, limit_val_batches=0)
    loop.fit(task, data)
    task.eval()
    batch = next(iter(data.train_dataloader()))
    step = task.step(batch, "val")
    fields = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].long()}
    if kind == "MaskedLM":
        masked = task.masked(batch, "val")
        labels = torch.full_like(batch["input_ids"], IGNORED)
        fields |= {"input_ids": masked.input_ids}
        fields |= {"labels": labels.scatter(1, masked.positions, masked.target)}
    elif kind == "DenoisingText":
        noised = task.noised(batch, "val")
        fields = {"input_ids": noised.input_ids, "attention_mask": noised.attention_mask.long()}
        fields |= {"labels": batch["input_ids"].where(batch["attention_mask"], IGNORED)}
    else:
        fields |= {"labels": batch["input_ids"]}
    with torch.no_grad():
        want = theirs(**fields).loss
    assert step.loss.item() == pytest.approx(want.item(), abs=1e-5)


@pytest.mark.parametrize("packing", ["isolated", "concatenated"])
def test_corpus_rows_hold_the_texts(packing: str, tmp_path: Path) -> None:
    data = corpus(tmp_path, packing=packing)
    texts = {text for text, _ in reviews(150, seed=0)}
    tokenizer = data.tokenizer
    found: list[str] = []
    total = 0
    for split in ("train", "val"):
        dataset: Any = data.load(split)
        for row in range(len(dataset)):
            batch = dataset[[row]]
            ids = batch["input_ids"][0][batch["attention_mask"][0]]
            total += len(ids)
            if packing == "isolated":
                document = batch["document"][0]
                assert (batch["position_ids"][0][document == 1][:2] == torch.arange(2)).all()
                found += [
                    tokenizer.decode(batch["input_ids"][0][document == d], skip_special_tokens=True)
                    for d in range(1, int(document.max()) + 1)
                ]
    if packing == "isolated":
        whole = [text for text in found if text in texts]
        assert len(whole) > 100  # the others were cut to fill rows
    tokens = data.tokens("train")
    assert total >= (tokens.lengths.sum() + 2 * 150) * 0.99 - 2 * 32


def test_corpus_holds_out_documents_or_ends(tmp_path: Path) -> None:
    data = corpus(tmp_path, val_fraction=0.2)
    train, val = data.load("train"), data.load("val")
    assert isinstance(train.documents, np.ndarray)
    assert not set(train.documents) & set(val.documents)
    assert 15 < len(val.documents) < 45
    ends = corpus(tmp_path, val_fraction=0.2, val_from="end", delimiter=None)
    train, val = ends.load("train"), ends.load("val")
    assert train.documents.tolist() == val.documents.tolist() == [0]
    total = int(ends.tokens("train").lengths[0])
    assert int(val.offsets[0]) == int(total * 0.8)


def test_corpus_leaves_out_equal_documents_of_both_splits_on_request(tmp_path: Path) -> None:
    for deduplicate, documents in ((False, 300), (True, 150)):
        data = corpus(tmp_path, val_fraction=0.2, deduplicate=deduplicate)
        texts = (tmp_path / "corpus.txt").read_text(encoding="utf-8")
        (tmp_path / "corpus.txt").write_text(f"{texts}\n{texts}", encoding="utf-8")
        rows: list[Any] = [data.load("train"), data.load("val")]
        assert sum(len(split.documents) for split in rows) == documents


def test_predict_reads_the_column_that_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"body": "the plot"}\n', encoding="utf-8")
    data = corpus(tmp_path, text="body", predict=str(tmp_path / "in.jsonl"))
    assert list(data.table("predict").texts) == ["the plot"]


def test_corpus_of_one_document_says_how_to_validate(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set data\.val_from to end"):
        corpus(tmp_path, delimiter=None).load("train")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for a CPU with g++")
@pytest.mark.filterwarnings("ignore")  # of torch's own
def test_compiled_training_equals_plain(tmp_path: Path) -> None:
    states = []
    for compiled in (False, True):
        data = corpus(tmp_path)
        task = masked_lm(data, compile=compiled)
        trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(task, data)
        states.append(task.state_dict())
    plain, compiled_state = states
    assert plain.keys() == compiled_state.keys()
    for key, tensor in plain.items():
        torch.testing.assert_close(compiled_state[key], tensor, rtol=1e-3, atol=1e-4)


def test_a_tokenizer_without_mask_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    data = corpus(tmp_path)
    tokenizer = data.tokenizer
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("mask_token")
    path.write_text(json.dumps(config), encoding="utf-8")
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").mask_token is None
    texts = str(tmp_path / "corpus.txt")
    without = Corpus(str(tmp_path / "tokenizer"), texts, delimiter="\n", max_length=32)
    with pytest.raises(ValueError, match=r"no mask token, which MaskedLM needs"):
        trainer(tmp_path, max_steps=1).fit(masked_lm(data), without)


@pytest.mark.parametrize("max_length", [16, 32])
@pytest.mark.parametrize("packing", ["isolated", "concatenated"])
def test_bits_per_byte_counts_predictions_and_bytes(
    packing: str, max_length: int, tmp_path: Path
) -> None:
    data = corpus(tmp_path, packing=packing, max_length=max_length)
    rows: Any = data.load("val")
    batches = [next_tokens(rows[[row]]) for row in range(len(rows))]
    predicted = sum(int((target != IGNORED).sum()) for target in batches)
    num_bytes = data.tokens("train").num_bytes[rows.documents].sum()
    # The first token of a row, which nothing predicts, is not free.
    predicted += len(rows) if packing == "concatenated" else 0
    assert data.tokens_per_byte("val") == pytest.approx(predicted / num_bytes)
    ended = corpus(tmp_path, packing=packing, max_length=max_length)
    ended.__dict__["frame"] = [], [data.tokenizer.sep_token_id]  # as GPT-2, which begins no text
    rows = ended.load("val")
    batches = [next_tokens(rows[[row]]) for row in range(len(rows))]
    predicted = sum(int((target != IGNORED).sum()) for target in batches)
    predicted += len(rows) if packing == "concatenated" else len(rows.rows.length)
    assert ended.tokens_per_byte("val") == pytest.approx(predicted / num_bytes)


@pytest.mark.parametrize("packing", ["isolated", "concatenated"])
def test_evaluation_has_the_same_rows_whatever_the_seed(packing: str, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        seed_everything(seed)
        data = corpus(tmp_path, packing=packing)
        rows: Any = {split: data.load(split) for split in ("train", "val")}  # type: ignore[arg-type]
        found.append({split: rows[split][[0, 1]]["input_ids"] for split in rows})
    seed_everything(0)
    assert torch.equal(found[0]["val"], found[1]["val"])
    assert not torch.equal(found[0]["train"], found[1]["train"])


def test_export_of_a_causal_model_alone_leaves_texts_open(fitted: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    cli, _ = fitted
    folder = export(best(fitted), "hf", tmp_path / "export")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the plot")["input_ids"]
    assert ids[0] == tokenizer.cls_token_id
    assert (ids[-1] == tokenizer.sep_token_id) != isinstance(cli.model, CausalLM)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    want = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in KINDS}
    if isinstance(cli.model, DenoisingText):  # which begins and ends with one
        want |= dict.fromkeys(("eos_token_id", "decoder_start_token_id"), tokenizer.sep_token_id)
        want["forced_eos_token_id"] = None
    assert {key: config.get(key) for key in want} == want


@pytest.mark.parametrize("form", ["checkpoint", "folder"])
def test_pretraining_goes_on_with_its_head(fitted: Any, tmp_path: Path, form: str) -> None:
    cli, folder = fitted
    start = best(fitted) if form == "checkpoint" else export(best(fitted), "hf", tmp_path / "hf")
    words = ["fit", "--config", str(folder / "tiny.yaml"), "--model.init_from", str(start)]
    words += ["--model.optim.lr=1e-12", "--model.optim.weight_decay=0", "--trainer.max_epochs=1"]
    again = main([*words, f"--trainer.default_root_dir={tmp_path}"])
    rows = rows_of(cli.run.path / "metrics.csv")
    lowest = min(float(row["val/loss"]) for row in rows if row["val/loss"])
    assert float(again.trainer.callback_metrics["val/loss"]) == pytest.approx(lowest, abs=1e-5)


def test_a_causal_network_predicts_no_masks() -> None:
    with pytest.raises(ValueError, match="TextDecoder, which sees nothing after a mask"):
        MaskedLM(TextDecoder(config=GPT, vocab_size=300))


def test_a_written_vocabulary_size_is_kept() -> None:
    assert TextEncoder(config={**BERT, "vocab_size": 128}, vocab_size=100).vocab_size == 128
    with pytest.raises(ValueError, match="vocab_size=128 is less than the 200 tokens"):
        TextEncoder(config={**BERT, "vocab_size": 128}, vocab_size=200)


def denoising(data: Corpus, **options: Any) -> DenoisingText:
    seed_everything(0)
    config = {"model_type": "bart", **BART}
    backbone = TextEncoder(config=config, vocab_size=data.facts["vocab_size"], pad_id=0)
    return DenoisingText(backbone, optim=OptimConfig(lr=3e-3, schedule="constant"), **options)


def test_denoising_is_the_same_whatever_micro_batches(tmp_path: Path) -> None:
    after = []
    for micro in (12, 3):
        data = corpus(tmp_path, packing="concatenated", micro_batch=micro)
        task = denoising(data, noising=Noising(delete=0.1))
        trainer(tmp_path, max_steps=3).fit(task, data)
        after.append(torch.cat([p.detach().flatten() for p in task.parameters()]))
    assert torch.allclose(after[0], after[1], atol=1e-4)
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


def test_noise_is_new_in_each_epoch_and_the_same_in_each_evaluation(tmp_path: Path) -> None:
    data = corpus(tmp_path, packing="concatenated")
    task = denoising(data)
    trainer(tmp_path, max_steps=0, limit_val_batches=0).fit(task, data)
    batch = next(iter(data.train_dataloader()))
    first = task.noised(batch, "train").input_ids
    assert torch.equal(task.noised(batch, "train").input_ids, first)
    told = task.noised(batch, "val").input_ids
    task.moment = Moment(epoch=1)
    assert not torch.equal(task.noised(batch, "train").input_ids, first)
    assert torch.equal(task.noised(batch, "val").input_ids, told)


def test_a_text_is_restored_once_learnt_by_heart(tmp_path: Path) -> None:
    data = corpus(tmp_path, packing="concatenated", batch_size=4, max_length=16)
    task = denoising(data, noising=Noising(infill=0, permute=True))
    trainer(tmp_path, max_steps=0, limit_val_batches=0).fit(task, data)
    batch = data.load("train")[[0, 1]]
    optimizer = torch.optim.AdamW(task.parameters(), 3e-3)
    for _ in range(250):
        optimizer.zero_grad()
        task.step(batch, "val").loss.backward()
        optimizer.step()
    task.eval()
    *_, (original, _, restored) = (
        [line.split(": ", 1)[1] for line in text.splitlines()]
        for text in task.samples(batch, data.tokenizer)
    )
    assert restored == data.tokenizer.decode(batch["input_ids"][1], skip_special_tokens=True)
    assert original == data.tokenizer.decode(batch["input_ids"][1])


@pytest.mark.parametrize("task", ["CausalLM", "DenoisingText"])
def test_what_was_adapted_or_pruned_writes_as_it_is(tmp_path: Path, task: str) -> None:
    config = corpus_config(tmp_path, task)
    config["model"]["init_args"] |= {"generation": {"max_tokens": 8}}
    words = ["fit", "--config", str(write_config(tmp_path / "tiny.yaml", config))]
    words += ["--trainer.max_epochs=1"]
    start = main(words).run.path
    words += [f"--data.tokenizer={start / 'tokenizer'}"]
    words += [f"--model.init_from={start / 'checkpoints' / 'best.ckpt'}"]
    lora = main([*words, "--model.finetune.lora.rank=2"]).run.path
    pruning = ["--trainer.callbacks+=Pruning", "--trainer.callbacks.target=0.7"]
    pruned = main([*words, *pruning]).run.path if task == "DenoisingText" else lora
    source, output = tmp_path / "texts.txt", tmp_path / "out.jsonl"
    source.write_text("the plot\n", encoding="utf-8")
    for run in (lora, pruned):
        assert list((run / "samples").iterdir())
        best = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
        main(["predict", *best, "--input", str(source), "--output", str(output)])
        assert json.loads(output.read_text(encoding="utf-8"))["text"]
    if task == "DenoisingText":
        with pytest.raises(ValueError, match="No config of transformers describes this bart"):
            export(pruned / "checkpoints" / "best.ckpt", "hf", tmp_path / "hf")


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_operations_are_counted_of_both_stacks(tmp_path: Path, kind: str) -> None:
    data = corpus(tmp_path, packing="concatenated")
    small = {"model_type": "t5", "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4}
    small |= {"num_layers": 1, "num_decoder_layers": 2, "tie_word_embeddings": False}
    config = {"model_type": "bart", **BART} if kind == "bart" else small
    backbone = TextEncoder(config=config, vocab_size=data.facts["vocab_size"], pad_id=0)
    task = DenoisingText(backbone)
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(task, data)
    batch = data.load("train")[[0, 1]]
    both = task.flops(batch)
    decoder = sum(p.numel() for p in task.decoder.layers.parameters() if p.ndim > 1)
    assert both > 6 * batch["input_ids"].numel() * 2 * decoder


def test_what_is_written_follows_the_weights(tmp_path: Path) -> None:
    data = corpus(tmp_path, packing="concatenated")
    task = denoising(data)
    task.on_predict_start()
    assert task.writer is task.writer
    task.on_predict_end()
    torch.nn.init.constant_(task.head.bias, 2.0)
    assert bool((task.writer.final_logits_bias == 2.0).all())


def test_masks_are_not_for_encoder_decoders(tmp_path: Path) -> None:
    config = {"model_type": "bart", **BART}
    with pytest.raises(ValueError, match=r"bart has a decoder that predicts.* DenoisingText"):
        MaskedLM(TextEncoder(config=config, vocab_size=300))


def test_what_denoising_lacks_is_named(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    with pytest.raises(ValueError, match=r"data\.packing isolated .* set it to concatenated"):
        trainer(tmp_path, max_steps=1).fit(denoising(data), data)
    with pytest.raises(ValueError, match="model_type bert has no decoder: take one such as bart"):
        DenoisingText(TextEncoder(config=BERT, vocab_size=300))
    with pytest.raises(ValueError, match=r"model\.noising corrupts nothing"):
        Noising(infill=0, permute=False)
    whole = corpus(tmp_path, packing="concatenated")
    whole.tokenizer.mask_token = None
    with pytest.raises(ValueError, match="no token for a mask, which DenoisingText needs"):
        trainer(tmp_path, max_steps=1).fit(denoising(whole), whole)


def test_generation_begins_an_empty_text_and_ends_where_one_ends() -> None:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=16, vocab_size=20)
    model = hf.GPT2LMHeadModel(config).eval()
    ids = torch.tensor([[0, 0, 0], [5, 6, 7], [5, 0, 0]])
    how = Generation(max_tokens=8, temperature=1.0, top_k=0)
    places = {"max_length": 16, "pad_id": 0, "start_id": 1, "end_id": None}
    found = generate(model, ids, ids > 0, how, **places)
    assert [len(tokens) for tokens in found] == [8, 8, 8]
    again = generate(model, ids, ids > 0, how, **places)
    assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))
    end = int(found[1][3])
    cut = generate(model, ids, ids > 0, how, **(places | {"end_id": end}))
    assert end not in cut[1]
    greedy = Generation(max_tokens=4, temperature=0)
    alone = generate(model, ids[2:, :1], ids[2:, :1] > 0, greedy, **places)
    assert torch.equal(generate(model, ids, ids > 0, greedy, **places)[2], alone[0])  # padding


def test_generation_draws_among_the_most_probable_and_reads_each_token_once() -> None:
    torch.manual_seed(0)
    backbone = TextDecoder(config=GPT, vocab_size=20)
    model = language_model(backbone, backbone.language_head())
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda _, args, named: seen.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    places = {"max_length": 64, "pad_id": 0, "start_id": 1, "end_id": None}

    def drawn(**how: Any) -> list[Any]:
        found = generate(model, ids, ids > 0, Generation(max_tokens=8, **how), **places)
        return [tokens.tolist() for tokens in found]

    greedy = drawn(temperature=0)
    assert seen == [3] + [1] * 7
    hot = {"temperature": 5.0}
    assert drawn(**hot, top_k=1) == drawn(**hot, top_k=0, top_p=1e-6) == greedy
    assert drawn(**hot, top_k=0) != greedy


def test_resume_with_another_tokenizer_or_other_texts_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path / "tiny.yaml", corpus_config(tmp_path))
    words = ["fit", "--config", str(path), "--save_every_n_steps=1"]
    run = main([*words, "--trainer.max_epochs=1"]).run.path
    kept = (run / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    texts = tmp_path / "corpus.txt"
    texts.write_text(
        texts.read_text(encoding="utf-8") + "\nQuixotic zephyrs vex jumbled fjords." * 9,
        encoding="utf-8",
    )
    more = [*words, "--resume=required", "--trainer.max_epochs=2"]
    with pytest.raises(CheckpointError, match=r"another tokenizer.*set data\.tokenizer to .*1/tok"):
        main(more)
    assert (run / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8") == kept
    assert (run / "summary.json").exists()
    more.append(f"--data.tokenizer={run / 'tokenizer'}")
    more.append("--trainer.val_check_interval=3")
    step = main([*more, "--trainer.max_steps=6"]).trainer.global_step
    assert step == 6
    texts.write_text(texts.read_text(encoding="utf-8").replace("vex", "tax"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"lies inside an epoch, and content of the training"):
        main(more)


def test_resume_inside_an_epoch_with_other_rows_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path / "tiny.yaml", corpus_config(tmp_path))
    words = ["fit", "--config", str(path), "--save_every_n_steps=1", "--trainer.max_steps=2"]
    words += ["--trainer.val_check_interval=3"]
    main(words)
    more = ["--resume=required", "--trainer.max_steps=4", "--data.batch_warmup.tokens=1000"]
    with pytest.raises(ValueError, match=r"lies inside an epoch, and data\.batch_warmup"):
        main([*words, *more])
