"""How much a network gains, with few labels, from classes that it learnt before.

usage: python scripts/transfer.py --cifar10 DIR [--output DIR] [--seeds N ...] [--steps N]

Pretrains a small network on five classes of CIFAR-10, fine-tunes it on the other five with 1 %,
10 % and 100 % of their labels in several ways, and trains it from scratch with the same labels.
Every way takes as many steps, but training from scratch twice as many; nothing is chosen on the
test split. All labels are for the first seed alone. Writes transfer.csv and transfer.png of the
seeds it is called with; runs that an earlier call finished are kept.
"""

import argparse
import csv
import json
import statistics
from collections import defaultdict
from pathlib import Path

from lit_foundry.cli.main import main as foundry

CONFIG = Path(__file__).parents[1] / "configs" / "cifar10_airbench.yaml"
FIRST = ["airplane", "automobile", "bird", "cat", "deer"]
SECOND = ["dog", "frog", "horse", "ship", "truck"]
NETWORK = ["--model.backbone.widths=[32,128,128]", "--model.tta=none"]
ADAMW = ["--model.optim.name=adamw", "--model.optim.schedule=cosine", "--model.optim.warmup=0.05"]
ADAMW += ["--model.optim.weight_decay=0.05", "--model.optim.bias_lr=null"]
LOWER = ["--model.optim.muon_lr=0.12"]  # half the rate from scratch
WAYS = {
    "from scratch": [],
    "linear probe": [*ADAMW, "--model.optim.lr=1e-2", "--model.finetune.freeze=all"],
    "full": LOWER,
    "gradual unfreezing": [*LOWER, "--model.finetune.unfreeze=0.15"],
    "layer-wise decay": [*LOWER, "--model.optim.layer_decay=0.7"],
    "LoRA": [*ADAMW, "--model.optim.lr=3e-3", "--model.finetune.lora.rank=8"],
}
LABELS = {0.01: 245, 0.1: 2450, 1.0: 24500}  # of the 24,500 that validation leaves
BATCH = {0.01: 50, 0.1: 250, 1.0: 500}


def run(args: argparse.Namespace, name: str, more: list[str]) -> float:
    """Fit and test, unless that was done before; return the test accuracy."""
    folder = args.output / name / "1"
    if not (folder / "test.json").exists():
        fit = ["fit", "--config", str(CONFIG), "--data.root", args.cifar10, "--experiment", name]
        fit += [
            "--trainer.default_root_dir",
            str(args.output),
            "--trainer.enable_progress_bar=false",
        ]
        fit += ["--trainer.enable_model_summary=false", *NETWORK, *more]
        found = foundry([*fit, "--resume", "auto"]).run.path
        foundry(["test", "--ckpt_path", str(found / "checkpoints" / "best.ckpt")])
        folder = found
    accuracy: float = json.loads((folder / "test.json").read_text(encoding="utf-8"))["test/acc"]
    return accuracy


def classes(names: list[str]) -> str:
    """Return the option that keeps some classes."""
    return f"--data.classes=[{','.join(names)}]"


def main() -> None:
    """Run what is missing, and write table and plot."""
    parser = argparse.ArgumentParser(usage=(__doc__ or "").replace("%", "%%"))
    parser.add_argument("--cifar10", required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    print("pretrained:", run(args, "pretrained", [classes(FIRST)]))
    source = args.output / "pretrained" / "1" / "checkpoints" / "best.ckpt"
    rows = []
    for share, labels in LABELS.items():
        for seed in args.seeds if share < 1 else args.seeds[:1]:
            for way, options in WAYS.items():
                scratch = way == "from scratch"
                steps = args.steps * (2 if scratch else 1)
                epochs = max(1, round(steps * BATCH[share] / labels))
                more = [classes(SECOND), f"--seed_everything={seed}", f"--data.split_seed={seed}"]
                more += [f"--data.max_train_samples={labels}", f"--data.batch_size={BATCH[share]}"]
                more += [f"--trainer.max_epochs={epochs}"]
                more += [f"--trainer.check_val_every_n_epoch={epochs}", *options]
                if not scratch:
                    more += [f"--model.init_from={source}"]
                name = f"{way.replace(' ', '_')}_{share}_{seed}"
                accuracy = run(args, name, more)
                rows.append({"way": way, "labels": labels, "seed": seed, "test/acc": accuracy})
                print(rows[-1], flush=True)
                write(rows, args.output)


def write(rows: list[dict[str, object]], folder: Path) -> None:
    """Write the table, and draw it."""
    with (folder / "transfer.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    from matplotlib.figure import Figure

    from lit_foundry.report.plots import color

    figure = Figure(figsize=(6, 4), layout="constrained", dpi=120)
    axes = figure.subplots()
    for number, way in enumerate(WAYS):
        found: dict[object, list[float]] = defaultdict(list)
        for row in rows:
            if row["way"] == way:
                found[row["labels"]].append(float(str(row["test/acc"])))
        means = [statistics.mean(scores) for scores in found.values()]
        axes.plot(list(found), means, "o-", color=color(number), label=way)
    axes.set(xscale="log", xlabel="labels of the five new classes", ylabel="test accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(folder / "transfer.png")


if __name__ == "__main__":
    main()
