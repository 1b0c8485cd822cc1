"""Features of texts or images, as a parquet file."""

from pathlib import Path
from typing import Any

from lit_foundry.checkpoints.exported import fingerprint
from lit_foundry.checkpoints.files import digest
from lit_foundry.compress.artifact import open_artifact
from lit_foundry.compress.command import changes_of
from lit_foundry.export.embeddings import embed
from lit_foundry.recipe import import_named
from lit_foundry.sources import check_output
from lit_foundry.training.probing.encoder import POOLINGS, ROWS, Encoder, device_of
from lit_foundry.usage import OWN_HELP, Parser, UsageError

# Arguments of data that change features by rounding alone.
OF_BATCHES = ("batch_size", "batch_tokens", "micro_batch", "num_workers")


def main(args: list[str]) -> None:
    """Run the command."""
    parser = Parser("embed", OWN_HELP["embed"])
    parser.add_argument("--ckpt_path", type=Path, required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pooling", choices=POOLINGS, default="default")
    parser.add_argument("--normalize", action="store_true")
    parser.add_argument("--batch_size", type=int, default=ROWS)
    parser.add_argument("--device")
    parser.add_argument("--import", dest="modules", nargs="+", default=[])
    changes, own = changes_of(args)
    given = parser.parse_args(own)
    import_named(given.modules)
    path, output = given.ckpt_path, given.output
    if path.is_dir():
        raise UsageError(f"--ckpt_path {path} is a folder: features are those of a checkpoint.")
    if output.suffix != ".parquet" or output.is_dir():
        raise UsageError(f"--output {output}: name a file that ends in .parquet.")
    if given.batch_size < 1:
        raise UsageError(f"--batch_size must be at least 1, got {given.batch_size}.")
    device = device_of(given.device)
    artifact = open_artifact(path)
    task: Any = artifact.logits
    data = artifact.data({**changes, "predict": given.input})
    check_output(output, [path, given.input, data.recipe()])
    encode = Encoder(task.to(device), given.pooling)
    about = {
        "checkpoint": fingerprint(path),
        "input": content_of(data, given.input),
        "pooling": given.pooling,
        "data": {key: value for key, value in changes.items() if key not in OF_BATCHES},
    }
    count = embed(encode, data, output, about, given.normalize, given.batch_size, device)
    print(f"{count:,} embeddings in {output}")


def content_of(data: Any, source: str) -> str:
    """Return a hash of the inputs: of what was read, or of the file, or the name of a folder."""
    if hasattr(data, "table"):
        return str(data.table("predict").fingerprint)
    return digest(Path(source)) if Path(source).is_file() else source
