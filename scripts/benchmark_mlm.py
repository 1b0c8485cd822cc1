"""Contestants of ``scripts/benchmark.py mlm``."""

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from timing import MINILM, SKIP, Figures, Meter, fit, gpu_memory, preset, quiet, trainer_clock


def bert(model: str) -> dict[str, Any]:
    """Return the config of a preset."""
    config: dict[str, Any] = preset(model.replace("-", "_"))["init_args"]["config"]
    return config


def foundry(
    name: str,
    model: str,
    length: int,
    batch_tokens: int,
    steps: int,
    precision: str,
    packing: str = "isolated",
    compile: bool = False,
    compiled: bool = False,
    dense: bool = False,
    workers: int = 0,
    **_: Any,
) -> dict[str, Figures]:
    """Pretrain with lit_foundry."""
    import torch

    from lit_foundry.training.device_flops import measured_flops

    if dense:  # as if every place were predicted
        from lit_foundry.nn.text.masking import Masking

        Masking.room = lambda self, size: size  # type: ignore[method-assign]
    backbone = {"class_path": "TextEncoder", "init_args": {"config": bert(model)}}
    task = {"backbone": backbone, "compile": compile or compiled, "optim": {"lr": 1e-4}}
    files = {"train": "train.jsonl", "val": "val.jsonl", "tokenizer": MINILM}
    rows = batch_tokens // length
    sizes = {"max_length": length, "batch_size": rows, "packing": packing, "num_workers": workers}
    config = {
        "model": {"class_path": "MaskedLM", "init_args": task},
        "data": {"class_path": "Corpus", "init_args": files | sizes},
        "trainer": quiet(
            {"max_steps": steps + SKIP, "log_every_n_steps": 10, "precision": precision}
        ),
    }
    meter = Meter().install()
    watch = fit(config, SKIP)
    seconds = watch.end - watch.start
    figures = meter.figures(seconds, steps, SKIP) | gpu_memory()
    flops = watch.task.flops({"input_ids": torch.empty(rows, length)}) * steps / seconds
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    peak = measured_flops(torch.device("cuda" if torch.cuda.is_available() else "cpu"), dtype)
    return {name: figures | {"of matrix rate": flops / peak, "matrix TFLOP/s": peak / 1e12}}


def trainer(
    name: str,
    model: str,
    length: int,
    batch_tokens: int,
    steps: int,
    precision: str,
    packed: bool,
    compile: bool = False,
    workers: int = 0,
    **_: Any,
) -> dict[str, Figures]:
    """Pretrain with the transformers Trainer, as its script run_mlm.py prepares the texts."""
    import datasets
    import torch
    import transformers as hf

    from lit_foundry.sources import resolve

    tokenizer = hf.AutoTokenizer.from_pretrained(resolve(MINILM), trust_remote_code=False)
    data = datasets.load_dataset("json", data_files="train.jsonl", split="train")
    data = data.remove_columns("label")

    def tokenized(rows: Any) -> Any:
        return tokenizer(
            rows["text"], return_special_tokens_mask=True, truncation=not packed, max_length=length
        )

    def grouped(rows: Any) -> Any:
        joined = {key: list(chain(*rows[key])) for key in rows}
        total = len(joined["input_ids"]) // length * length
        return {
            key: [ids[i : i + length] for i in range(0, total, length)]
            for key, ids in joined.items()
        }

    data = data.map(tokenized, batched=True, remove_columns=["text"])
    if packed:
        data = data.map(grouped, batched=True)
    settings = bert(model)
    config = hf.CONFIG_MAPPING[settings.pop("model_type")](**settings)
    network = hf.AutoModelForMaskedLM.from_config(config, trust_remote_code=False)
    args = hf.TrainingArguments(
        "out",
        per_device_train_batch_size=batch_tokens // length,
        max_steps=steps + SKIP,
        learning_rate=1e-4,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=precision == "bf16-mixed",
        use_cpu=not torch.cuda.is_available(),  # else it refuses bf16
        torch_compile=compile,
        dataloader_num_workers=workers,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    watch = trainer_clock(SKIP)
    collate = hf.DataCollatorForLanguageModeling(tokenizer)
    loop = hf.Trainer(network, args, train_dataset=data, data_collator=collate, callbacks=[watch])
    meter = Meter().install()
    loop.train()
    return {name: meter.figures(watch.end - watch.start, steps, SKIP) | gpu_memory()}


MLM: list[Callable[..., dict[str, Figures]]] = [
    partial(foundry, "lit_foundry"),
    partial(foundry, "compiled", compiled=True),
    partial(foundry, "concatenated", packing="concatenated"),
    partial(foundry, "dense head", dense=True),
    partial(trainer, "Trainer, concatenated", packed=True),
    partial(trainer, "Trainer, padded", packed=False),
]
