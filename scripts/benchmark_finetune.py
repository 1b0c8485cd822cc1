"""Contestants of ``scripts/benchmark.py finetune``."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from timing import MINILM, Figures, Meter, fit, quiet, text_files, trainer_clock


def finetune_foundry(
    batch_tokens: int, texts: int, steps: int | None, **_: Any
) -> dict[str, Figures]:
    """Fine-tune with lit_foundry, on every text once if no steps are given."""
    backbone = {"pretrained": MINILM, "dropout": 0.0}
    config = {
        "model": {
            "class_path": "Classification",
            "init_args": {
                "backbone": {"class_path": "TextEncoder", "init_args": backbone},
                "dropout": 0.0,
                "optim": {"lr": 1e-4, "fused": True},
            },
        },
        "data": text_files({"batch_tokens": batch_tokens}, MINILM, 512),
        "trainer": quiet({"max_epochs": 1, "max_steps": steps or -1, "log_every_n_steps": 10}),
    }
    meter = Meter().install()
    watch = fit(config)
    steps = steps or watch.epoch_steps
    if steps > watch.epoch_steps:
        sys.exit(f"{texts} texts are {watch.epoch_steps} steps: ask for fewer, or for more texts.")
    rows = texts / watch.epoch_steps
    figures = meter.figures(watch.end - watch.start, steps)
    return {"lit_foundry": figures | {"rows/step": rows}}


def finetune_trainer(strategy: str, steps: int, rows: int, **_: Any) -> dict[str, Figures]:
    """Fine-tune with the transformers Trainer, with as many rows in each step."""
    import datasets
    import torch
    import transformers as hf

    from lit_foundry.sources import resolve

    folder = resolve(MINILM)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    data = datasets.load_dataset("json", data_files="train.jsonl", split="train")
    data = data.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=512), batched=True
    )
    names = sorted(set(data["label"]))
    data = data.map(lambda row: {"labels": names.index(row["label"])})
    data = data.map(lambda row: {"length": len(row["input_ids"])}).remove_columns(["text", "label"])
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = hf.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, dtype=torch.float32, trust_remote_code=False, **off
    )

    watch = trainer_clock()
    args = hf.TrainingArguments(
        "out",
        per_device_train_batch_size=rows,
        max_steps=steps,
        learning_rate=1e-4,
        max_grad_norm=1.0,
        train_sampling_strategy=strategy,
        optim="adamw_torch_fused",
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    collate = hf.DataCollatorWithPadding(tokenizer)
    trainer = hf.Trainer(model, args, train_dataset=data, data_collator=collate, callbacks=[watch])
    meter = Meter().install()
    trainer.train()
    figures = meter.figures(watch.end - watch.start, steps)
    return {f"Trainer, {strategy}": figures | {"rows/step": rows}}


FINETUNE: list[Callable[..., dict[str, Figures]]] = [
    finetune_foundry,
    partial(finetune_trainer, "random"),
    partial(finetune_trainer, "group_by_length"),
]
