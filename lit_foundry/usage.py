"""How the command line is written, told without torch."""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NoReturn

Quantization = Literal[
    "int8-dynamic", "int8-static", "int4", "int8-weight-only", "int4-weight-only"
]  # the last two of torch, the others of ONNX models

USAGE = """\
Train and evaluate any task on any data.

usage: python -m lit_foundry COMMAND [--config FILE ...] [--KEY VALUE ...]

  fit       train; --resume auto continues an interrupted run
  validate  score a checkpoint on the validation split: --ckpt_path FILE
  test      score a checkpoint on the test split: --ckpt_path FILE
  predict   label texts, fill masks or go on writing: --ckpt_path FILE --input TEXTS --output FILE
  embed     features of texts or images as parquet: --ckpt_path FILE --input X --output FILE
  export    write a checkpoint for transformers, ONNX or torch.export: --ckpt_path FILE --format hf
  evaluate  compare checkpoints and exports on the samples of a split: PATH ...
  benchmark size, operations, memory and latency of checkpoints and exports: PATH ...
  compress  make a network smaller in stages, and measure each of them: --config FILE
  report    show runs side by side on one page: RUN ...
  tokenizer train a tokenizer on a corpus: --input FILES --output FOLDER
  list      tasks, data modules, backbones and shipped configs

Each has its own --help.
Exit codes: 0 done, 2 a mistake in what was given (LIT_FOUNDRY_DEBUG=1 shows where it was found),
143 terminated after saving, 1 any other failure."""

CONFIG = ("-c", "--config")
COMMANDS = tuple(re.findall(r"^  (\w+) ", USAGE, re.M))

_MORE = {
    "--help-all": "every key",
    "--model.help Classification": "the arguments of a task",
    "--data.help IMDb": "of a data module",
    "--model.backbone.help TextEncoder": "of a backbone",
    "--trainer.callbacks.help EarlyStopping": "of a callback",
}

_EVALUATION = """\
{summary}

usage: python -m lit_foundry {command} --ckpt_path FILE {usage}

  --ckpt_path FILE          checkpoint, such as runs/NAME/1/checkpoints/best.ckpt; it brings model,
                            data, label names and tokenizer
{own}  --config FILE             what else to set; it wins over the checkpoint, as do single keys
  --data.root, --data.test  where the data lie now (IMDb; TextFiles, Corpus)
  --data.batch_tokens 8192  tokens at once (or --data.batch_size)
  --trainer.accelerator cpu, --trainer.devices 1, --trainer.precision bf16-mixed
"""

HELP = {
    "fit": """\
Train what a config says, and keep the run in a folder of its own: runs/EXPERIMENT/NUMBER.

usage: python -m lit_foundry fit --config FILE [--config OVERLAY ...] [--KEY VALUE ...]

  --config FILE             YAML with model, data and trainer; of several files the later ones win,
                            single keys win over files; configs/trainer/ has overlays
  --experiment NAME         folder below runs/; the name of the first config if left out
  --resume auto             continue the experiment's last run if it was interrupted
                            (required: or fail; never, the default: start a new one)
  --save_every_n_steps N    optimizer steps between recovery checkpoints (or every 5 minutes)
  --seed_everything N       seed of initialization, order and dropout (0)
  --print_config            show everything resolved, and stop

Often set:
  --model.optim.lr 3e-5     peak learning rate
  --data.batch_tokens 8192  tokens of one optimizer step, over all devices (or --data.batch_size)
  --data.micro_batch 4096   what one device takes at once; sets the accumulation
  --data.train FILES        what to train on (TextFiles, Corpus)
  --model.init_from FILE    checkpoint, or folder of transformers, to start from
  --trainer.max_epochs 3, --trainer.max_steps 10000 or --trainer.max_time 00:08:00:00
  --trainer.devices 2, --trainer.precision bf16-mixed
  --trainer.fast_dev_run 1  one batch of everything, nothing saved
""",
    "validate": _EVALUATION.format(
        summary="Score a checkpoint on the validation split; scores go into its run's val.json.",
        command="validate",
        usage="[--KEY VALUE ...]",
        own="",
    ),
    "test": _EVALUATION.format(
        summary="Score a checkpoint on the test split; scores go into its run's test.json.",
        command="test",
        usage="[--KEY VALUE ...]",
        own="",
    ),
    "predict": _EVALUATION.format(
        summary="""\
Label texts with a checkpoint: id, label and the probability of each class. A masked language model
fills the masks of texts, a causal one goes on writing (--model.generation.temperature 0.7).""",
        command="predict",
        usage="--input TEXTS [--output FILE]",
        own="""\
  --input TEXTS             .txt (one a line), .csv, .tsv, .jsonl, .parquet, or - for standard input
  --output FILE             .jsonl or (labels only) .csv; JSONL to standard output if left out
""",
    ),
}
for _command in HELP:
    HELP[_command] += "\nMore, after `python -m lit_foundry`:\n"
    HELP[_command] += "\n".join(f"  {_command} {key:40}{what}" for key, what in _MORE.items())

# Of commands that are no Trainer method.
OWN_HELP = {
    "embed": """\
Write the features of texts or images as parquet: id and embedding, in the order of the input.

usage: python -m lit_foundry embed --ckpt_path FILE --input X --output FILE [--KEY VALUE ...]

  --ckpt_path FILE  checkpoint of any task with one backbone
  --input X         what predict takes: texts (.txt, .csv, .jsonl, ...), images (a folder, a table)
  --output FILE     .parquet; parts lie beside it until all are there, and the same command goes on
                    after a kill
  --pooling mean    of all tokens or places; first: token of a text; default: as the backbone pools
  --normalize       divide each vector by its length
  --batch_size 64   inputs at once, at most; --device cuda (a GPU if there is one), --data.KEY VALUE
""",
    "export": """\
Write the network of a checkpoint in a form that others load, once its outputs were compared.

usage: python -m lit_foundry export --ckpt_path FILE --format {hf,onnx,torch,safetensors}
                                    [--quantize METHOD] [--output DIR] [--import MODULES]

  --ckpt_path FILE  checkpoint, such as runs/NAME/1/checkpoints/best.ckpt
  --format hf       folder for transformers: safetensors, config with label names, tokenizer
  --format onnx     model.onnx with dynamic shapes, tokenizer; needs lit-foundry[onnx]
  --format torch    model.pt2, a program of torch.export with dynamic shapes, tokenizer
  --format safetensors  weights and recipe of any classifier, for lit_foundry.load and
                    --model.init_from
  --quantize int8-dynamic  of onnx: weights in 8 bits, activations rounded batch by batch, for
                    transformers; int8-static: by the range of 128 training samples, for networks
                    of convolutions; int4: weights in 4 bits. Of torch, by lit-foundry[torchao]:
                    int8-weight-only and int4-weight-only, whose activations are floats
  --output DIR      folder to write; <run>/export/<format>, or <format>-<method>, if left out
  --import MODULES  modules of your own that the checkpoint's classes lie in

The network is written beside its place, read back, and compared with the checkpoint on batches of
several shapes; only then does it replace an older export. A quantized one has to agree with it
on 90 % of 128 training samples. In Python, lit_foundry.load(DIR) labels
texts or images with any of them; onnx and torch take images (uint8) of the size that was trained
on, and hf the networks of ImageEncoder. Language models take --format hf: a folder for
AutoModelForMaskedLM or AutoModelForCausalLM, and for --model.init_from of a fine-tuning.
""",
    "evaluate": """\
Score checkpoints and exports on a split, and compare each with the first, sample by sample.

usage: python -m lit_foundry evaluate PATH [PATH ...] [--split {test,val}] [--data.KEY VALUE ...]
                                      [--output FILE.json] [--import MODULES] [--by METHOD ...]

  PATH              checkpoint, such as runs/NAME/1/checkpoints/best.ckpt, or a folder that
                    export wrote, of any format; each brings its data, label names and tokenizer
  --split val       test if left out
  --data.root, --data.test  where the data lie now (IMDb; TextFiles); any other argument of the
                    data module, such as --data.batch_size 256, but for what the weights belong to
  --output FILE     JSON of all of it, for other programs
  --import MODULES  modules of your own that classes lie in

Of classes it tells accuracy with its interval of 95 % (Wilson) and the log loss; of several classes
at once exact match, F1 and mean average precision; of values errors and correlations; of tags
accuracy and F1. Beside the first artifact, on the same samples: the share of them (of tags: of
words) of which both predict the same, and the paired difference of accuracy with its interval of
95 % (Newcombe). A checkpoint has the scores that the command test gives it.

Of any checkpoint with one backbone, also of one that predicts nothing, --by scores the features:

  --by knn linear   nearest neighbours (--k 200, --temperature 0.07), logistic regression; finetune:
                    fits of --config FILE on --fractions 0.01 0.1 1 of the labels
  --data FILE       config of other data, with labels; --pooling mean; --device cuda
  --baselines       also untrained weights, and the pixels of images
""",
    "benchmark": """\
Measure what checkpoints and exports cost: parameters, bytes, multiply-adds, memory and latency.

usage: python -m lit_foundry benchmark PATH [PATH ...] [--batch 1 32] [--size TOKENS]
                                       [--repeats N] [--data.KEY VALUE ...]
                                       [--output FILE.json] [--import MODULES]

  PATH              checkpoint, or a folder that export wrote, of any format
  --batch 1 32      batch sizes
  --size TOKENS     tokens of each row of texts; if left out 128, or as many as the networks take
  --repeats 50      rounds: in each, every artifact runs a batch in turn, after one untimed
  --data.root, --data.test  where the data lie now
  --output FILE     JSON of all of it, for other programs
  --import MODULES  modules of your own that classes lie in

Inputs are samples of the test split, or of the validation split, a text repeated up to its size;
where neither can be read, random ones. Latencies are medians and 95th percentiles over the rounds,
ratios medians of the ratios to the first artifact in each round. Bytes are those of the weight
files; of a checkpoint, in which the state of an optimizer may lie too, of the tensors in
state_dict. Multiply-adds, of one sample, are counted where torch runs the network (all but onnx).
Memory is the growth of a process of its own that has imported torch, transformers and onnxruntime,
loads the artifact and runs a batch of the largest size. torch and onnxruntime use the same number
of threads, which OMP_NUM_THREADS sets.
""",
    "compress": """\
Make a trained network smaller in stages, and measure what each of them costs and gains.

usage: python -m lit_foundry compress --config FILE [--start PATH] [--experiment NAME]
                                      [--data.KEY VALUE ...] [--import MODULES]

  --config FILE      the stages, as in configs/compress_imdb.yaml
  --start PATH       checkpoint, or exported folder, that it begins with; wins over the config
  --experiment NAME  folder below runs/; the name of the config if left out
  --data.root        where the data lie now (IMDb), for fits and measurements; any other argument
                     of the data module too
  --import MODULES   modules of your own that classes lie in

A stage is a fit of any config, or an export:

  start: runs/minilm_imdb/1/checkpoints/best.ckpt
  limits: {lost: 0.03}              # of the start's score, in every stage
  stages:
    distil:
      fit: distil_imdb.yaml         # beside this file
      set:                          # keys of the fit; ${NAME} is what a stage, or the start, made
        model.teacher: ${start}
    int8:
      export: onnx                  # of the last checkpoint
      quantize: int8-dynamic
      limits: {size: 0.04}          # of the start's bytes; lost, stage_lost, agreement, latency

Of each stage it measures what evaluate and benchmark do, beside the start and the stage before,
prints tables, and writes a page with a Pareto plot: runs/NAME/report/index.html. A stage that
breaks a limit ends it, with what was measured. The same command goes on where it was stopped, even
by SIGKILL; what was made with other settings than now is set aside, and made anew. Also: split
(test or val), data, batch, size, repeats (of benchmark), within (0.01: the smallest network is
looked for so far below the start's score).
""",
    "report": """\
Show one run, or several side by side, on a page that stands alone: settings, curves, confusion
matrix, calibration, accuracy against length, the most confident mistakes.

usage: python -m lit_foundry report RUN [RUN ...] [--output DIR] [--batch]

  RUN           folder of a run, runs/NAME/1; of an experiment, runs/NAME, for its last run;
                or a checkpoint inside of a run
  --output DIR  folder for index.html and its images as PNG; by default report/ in the folder of
                the run, or for several runs in the current folder
  --batch       also show training images as the network sees them in its first epochs
  --import MODULES  modules of your own that --batch needs for the checkpoint's classes
""",
    "tokenizer": """\
Train a tokenizer on a corpus of any size, write it for transformers, and measure it.

usage: python -m lit_foundry tokenizer --input FILES [FILES ...] --output FOLDER [--KEY VALUE ...]

  --input FILES         .txt, .csv, .tsv, .jsonl, .parquet (.txt and .jsonl also with .gz), folders
                        with such files, patterns such as 'data/*.txt'
  --output FOLDER       what to write; an older tokenizer there is replaced
  --kind wordpiece      as in BERT; bpe: of bytes, as in GPT-2; unigram: as in ALBERT; characters
  --vocab_size 32768    most tokens, special ones included
  --multiple_of 64      fill up with unused tokens, as matrices of such sizes are multiplied faster
  --lowercase true      fold case and accents; by default true for wordpiece and false for others
  --text COLUMN         column of the texts (text), where there are columns
  --delimiter '\\n\\n'    what parts documents in .txt files; if left out, each file is one
  --max_documents N     read the first N documents only

The same texts give the same tokenizer. Special tokens are [PAD], [UNK], [CLS], [SEP] and [MASK];
a causal model takes [CLS] as the beginning and [SEP] as the end of a document.
""",
}


class UsageError(ValueError):
    """The command line or a config holds a mistake; the message is meant for its author."""


class Parser(argparse.ArgumentParser):
    """Parses a command that is no Trainer method, and tells its mistakes in one line.

    Args:
        command: Name of the command.
        help: What ``--help`` prints.
    """

    def __init__(self, command: str, help: str) -> None:
        super().__init__(prog=f"python -m lit_foundry {command}", allow_abbrev=False)
        self.command, self.help = command, help

    def format_help(self) -> str:
        """Return the help as it was given."""
        return self.help

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown options first: argparse would tell of missing arguments instead.

        Raises:
            UsageError: If an option is unknown, or something else is wrong.
        """
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for key, _ in flags(args or ()):
            if key.startswith("--") and key != "--" and key not in known:
                close = get_close_matches(key, known, n=1)
                hint = f"Did you mean {close[0]}?" if close else f"It has {', '.join(known)}."
                raise UsageError(f"{self.command} takes no {key}. {hint}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit with."""
        raise UsageError(f"{self.command}: {message}. See {self.prog} --help.")


def printable(text: str) -> str:
    """Return a text with the control characters escaped by which it could direct a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def unknown_command(word: str) -> str:
    """Say that a word is no command, and which was likely meant."""
    if word.startswith("-"):
        return f"{word} comes after the command: python -m lit_foundry fit {word} ..."
    close = get_close_matches(word, COMMANDS, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"There is {', '.join(COMMANDS)}."
    return f"{word!r} is no command. {hint}"


def flags(words: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the keys of a command line with their values; a stray word has the key ''."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not word.startswith("-"):
            yield "", word
        elif equals:
            yield key, value
        else:
            yield key, rest.pop(0) if rest and not re.match("--|-[a-z]", rest[0]) else None


def in_order(words: Sequence[str]) -> list[str]:
    """Return a command with its configs before its keys, which win over them.

    Keys are joined to their values, which may then begin with a minus (-1e-3).
    """
    given = list(flags(words[1:]))
    joined = [(k in CONFIG, k if v is None else f"{k}={v}" if k else v) for k, v in given]
    return [words[0], *(w for c, w in joined if c), *(w for c, w in joined if not c)]
