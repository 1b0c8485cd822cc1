"""The command line: any task with any data module, from YAML."""

import logging
import shlex
import sys
import warnings
from contextlib import nullcontext
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar as Bar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities import rank_zero_only

# Imported so that configs can name these classes without their module paths.
import lit_foundry.callbacks
import lit_foundry.data
import lit_foundry.nn  # noqa: F401
from lit_foundry import ranges
from lit_foundry.callbacks import PredictionWriter, ProgressBar, ScoreRecord, run_callbacks
from lit_foundry.callbacks.recovery import use_own_signals
from lit_foundry.checkpoints.files import (
    CheckpointError,
    check_same_data,
    parsed,
    read_checkpoint,
    recipe_of,
    unchanged,
)
from lit_foundry.cli import accelerator as devices
from lit_foundry.cli.arguments import class_help, fill_facts, has_gaps
from lit_foundry.cli.messages import unwrapped
from lit_foundry.cli.mistakes import check_nulls, explain
from lit_foundry.cli.parts import ConfigParser, classes_written
from lit_foundry.cli.restored import check_same_model, resume_from
from lit_foundry.data import DataModule
from lit_foundry.nn import Backbone, restoring
from lit_foundry.nn.changes import checked, inherit
from lit_foundry.recipe import installed_modules_only
from lit_foundry.runs.folder import ROOT, Resume, RunFolder
from lit_foundry.signals import HANDLER, Stopped
from lit_foundry.tasks import Task
from lit_foundry.training.agreement import check_tokenizer, check_unlabelled
from lit_foundry.usage import USAGE, UsageError, flags, in_order, printable, unknown_command

EVALUATION = ("validate", "test", "predict")
COMMANDS = ("fit", *EVALUATION)
MODEL_GROUPS = ("optim", "finetune", "masking", "noising", "generation")
GROUPS = ("trainer", *(f"model.init_args.{name}" for name in MODEL_GROUPS))
# What `--KEY.help CLASS` explains, by the end of the key.
BASES: dict[str, type] = {
    "model": Task,
    "data": DataModule,
    "backbone": Backbone,
    "callbacks": Callback,
    "logger": Logger,
}
# Mistakes are raised, so that `mistakes` can tell them; a prefix is no key.
STRICT: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
EXPECTED_WARNINGS = (
    # Batches are gathered from memory in microseconds: more loader workers slow most runs down.
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",  # that of the run that is resumed
    ".*module.s. in eval mode at the start of training.*",  # what model.finetune freezes
    ".*LeafSpec.* is deprecated.*",  # Lightning 2.6 calls what newer torch deprecates
)
# A default of Lightning's Timer is one, which jsonargparse cannot write.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, enum: dumper.represent_data(enum.value))


class NoProfiler(PassThroughProfiler):
    """Profiles nothing, faster than Lightning does: it is asked a hundred times a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Return a context that does nothing."""
        return self._nothing


class FoundryCLI(LightningCLI):
    """LightningCLI with run folders, facts filled in from the data, and checkpoints as recipes."""

    def __init__(self, args: ArgsType = None) -> None:
        self.words = list(sys.argv[1:] if args is None else args)
        if not self.words or self.words[0] not in COMMANDS:
            raise UsageError(unknown_command(self.words[0]) if self.words else USAGE)
        super().__init__(
            Task,
            DataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=None,
            seed_everything_default=0,
            parser_class=ConfigParser,
            parser_kwargs={self.words[0]: STRICT} | STRICT,
            # Ranks share the samples by the data module's own sampler.
            trainer_defaults={"use_distributed_sampler": False},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the command that was given: a parser takes 0.1 s to build."""
        return {self.words[0]: LightningCLI.subcommands()[self.words[0]]}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument(
                "--experiment",
                type=str | None,
                help="Folder below runs/; the name of the first config if left out.",
            )
            parser.add_argument(
                "--resume",
                type=Resume,
                default="never",
                help="Continue the experiment's last run: auto if it was interrupted, required or "
                "fail, never.",
            )
            parser.add_argument(
                "--save_every_n_steps",
                type=int | None,
                help="Optimizer steps between recovery checkpoints; every 5 minutes if left out.",
            )
        if subcommand == "predict":
            parser.add_argument(
                "--input",
                type=str | None,
                help="File of texts, or of paths or bytes of images (.txt, .csv, .tsv, .jsonl, "
                ".parquet), - for standard input, or a folder of images.",
            )
            parser.add_argument(
                "--output",
                type=Path | None,
                help="File to write (.jsonl or .csv); JSONL to standard output if left out.",
            )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, with the recipe of ``--ckpt_path`` below all that the user wrote."""
        for key, value in flags(self.words):
            if key.endswith(".help") and (base := BASES.get(key.split(".")[-2].lstrip("-"))):
                print(class_help(key.removesuffix(".help"), value or None, base))
                sys.exit()
        if "--help-all" in self.words:
            parser.parse_args([self.words[0], "--help"])
        recipe = None
        words = in_order(self.words)
        path = _value_of(words, "--ckpt_path")
        self.checkpoint: dict[str, Any] | None = None
        if words[0] in EVALUATION:
            if path is None:
                raise CheckpointError(f"{words[0]} needs --ckpt_path FILE: the checkpoint to use.")
            self.checkpoint = read_checkpoint(Path(path))
            built = recipe_of(self.checkpoint, Path(path))
            below = {
                key: unchanged(built[key], BASES[key])[0]
                for key in ("model", "data")
                if built.get(key)
            }
            recipe = yaml.safe_dump(below, sort_keys=False)
            self._check(below, recipe, words)
            words = [words[0], "--config", recipe, *words[1:]]
        try:
            self.config = parser.parse_args(words)
            check_nulls(self.words, self._parser(words[0]), recipe)
            for group in GROUPS:  # jsonargparse lets a null or a number pass
                if group in self.settings and not isinstance(self.settings[group], Namespace):
                    raise ArgumentError(None, f"{group} holds keys")
        except (ArgumentError, OSError, UnicodeDecodeError) as error:  # of a config, these two
            raise UsageError(explain(self.words, self._parser(words[0]), recipe, error)) from error
        self._check_ranges()

    def _check_ranges(self) -> None:
        """Check the numbers that no class of ours is given."""
        seed, every = self.settings.seed_everything, self.settings.get("save_every_n_steps")
        rules = {
            "seed_everything": (0 <= seed < 2**32, "is 0 at least, and below 2 ** 32"),
            "save_every_n_steps": (every is None or every >= 1, "is 1 at least, or null"),
        }
        values = {"seed_everything": seed, "save_every_n_steps": every}
        ranges.check("", values, rules)

    def _check(self, parts: dict[str, Any], recipe: str, words: list[str]) -> None:
        """Parse the recipe alone first, and import no module for it but what the user named."""
        try:
            for key, part in parts.items():
                parsed(part, BASES[key], classes_written(words))
        except ArgumentError as error:
            with installed_modules_only():
                told = explain(words[:1], self._parser(words[0]), recipe, error)
            raise UsageError(told) from error

    def _parse_ckpt_path(self) -> None:
        """Replace Lightning's, which lets a checkpoint override what the user wrote."""

    @property
    def settings(self) -> Namespace:
        """The parsed configuration of the subcommand."""
        settings: Namespace = self.config[self.config.subcommand]
        return settings

    @cached_property
    def data(self) -> DataModule:
        """The data module, built before the model so that its facts are known."""
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
        config = parser.parse_object({"data": self.settings.data.as_dict()})
        with unwrapped():
            data: DataModule = parser.instantiate(config).data
        if self.checkpoint and (state := self.checkpoint["lit_foundry"]["data_state"]):
            check_same_data(self.checkpoint["lit_foundry"]["data"], data)
            data.restore(state)
        return data

    def instantiate_classes(self) -> None:
        """Fill what the config left out from the data, then build; check the checkpoint."""
        settings = self.settings
        devices.check(settings.trainer.accelerator)
        if settings.get("input"):
            settings.data.init_args.predict = settings.input
        if has_gaps(settings.model.init_args):
            augment = settings.model.init_args.get("augment") or {}  # what is seen of larger images
            own = {"image_size": augment["size"]} if augment.get("size") else {}
            fill_facts(settings.model.init_args, {**self.data.facts, **own})
        with (
            unwrapped(),
            restoring() if self.checkpoint or settings.get("ckpt_path") else nullcontext(),
        ):
            super().instantiate_classes()
        self.datamodule = self.data
        if self.checkpoint:
            inherit(self.model, checked(self.checkpoint["lit_foundry"]["model"].get("changes", [])))
            check_same_model(self.checkpoint, self.model)
        elif isinstance(self.model, Task):
            self.model.check_data(self.data)  # before hours may go into tokenizing
            check_unlabelled(self.model, self.data)
            fresh = settings.get("resume") == "never" and not settings.get("ckpt_path")
            if (begin := self.model.served.init_from) and fresh:
                check_tokenizer(begin, self.data)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give a fit its run folder; evaluation writes beside its checkpoint."""
        config = self.settings
        limits = config.trainer
        if limits.max_epochs is None and limits.max_steps == -1 and limits.max_time is None:
            limits.max_epochs = self.config_init[self.config.subcommand].trainer.max_epochs = 1
        if self.config.subcommand != "fit":
            assert self.checkpoint is not None
            score = ScoreRecord(Path(config.ckpt_path), self.checkpoint["global_step"])
            extra: list[Any] = [score, ProgressBar()]
            if self.config.subcommand == "predict":
                old = self.checkpoint["lit_foundry"]
                recipes = [old["model"], old["data"], self.model.recipe(), self.data.recipe()]
                read = [config.ckpt_path, *recipes]  # which the output must not write over
                extra.append(PredictionWriter(self.data.labels, config.output, read))
            return self._trainer_with(extra, logger=False)
        if limits.fast_dev_run:
            resume_from(self.model, config.ckpt_path)
            return self._trainer_with([ProgressBar()])
        if limits.enable_checkpointing is False:
            raise ValueError(
                "trainer.enable_checkpointing=false: a run keeps its best checkpoint and those to "
                "resume from. Leave it out; trainer.fast_dev_run=true keeps nothing."
            )
        self.run = RunFolder.start(
            self.experiment,
            root=limits.default_root_dir or ROOT,
            resume=config.resume,
            every_n_steps=config.save_every_n_steps,
        )
        if self.run.finished and config.resume == "auto":
            print(
                "Nothing to do. To prolong it: --resume required with a higher limit, such as "
                "--trainer.max_epochs; to start anew: --resume never."
            )
            sys.exit()
        if self.run.ckpt_path:
            # Lightning passes on what was instantiated, and saves what was parsed.
            config.ckpt_path = self.config_init.fit.ckpt_path = str(self.run.ckpt_path)
        resume_from(self.model, config.ckpt_path)
        # Fed back to --config, it starts a new run of this experiment.
        fresh = config.clone()
        fresh.ckpt_path, fresh.resume, fresh.experiment = None, "never", self.experiment
        dump = self._parser("fit").dump(fresh, skip_unset=False)
        extra = [*run_callbacks(self.run, self.model, dump), ProgressBar()]
        return self._trainer_with(extra, logger=self._loggers())

    def _loggers(self) -> Any:
        """Return the run's own loggers and those of the config; none if it says false."""
        wanted = self._get(self.config_init, "trainer").logger
        if wanted is False:
            return False
        more = [] if wanted in (None, True) else wanted if isinstance(wanted, list) else [wanted]
        return [*self.run.loggers(), *more]

    def _trainer_with(self, callbacks: list[Any], **changes: Any) -> Trainer:
        values = {**self._get(self.config_init, "trainer"), **changes}
        values["profiler"] = values["profiler"] or NoProfiler()
        wanted = values["callbacks"] or []
        bars = [c for c in (wanted if isinstance(wanted, list) else [wanted]) if isinstance(c, Bar)]
        if values["enable_progress_bar"] is False or bars:
            callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
        trainer = self._instantiate_trainer(values, callbacks)
        use_own_signals(trainer)
        return trainer

    @property
    def experiment(self) -> str:
        """Name of the experiment: as written, else that of the first config, else the task's."""
        config = _value_of(self.words, "--config", "-c")
        named = Path(config).stem if config and Path(config).is_file() else None
        return self.settings.experiment or named or type(self.model).__name__.lower()


def _value_of(words: list[str], *keys: str) -> str | None:
    """Return the value of the first of these keys on a command line."""
    return next((value for key, value in flags(words) if key in keys), None)


def main(args: ArgsType = None) -> FoundryCLI:
    """Run the command line, or ``args`` in its place."""
    for expected in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", expected)
    # No path, no line.
    warnings.formatwarning = lambda text, *_, **__: f"warning: {printable(str(text))}\n"
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip: " not in record.getMessage()  # advertisements
    )
    try:
        with HANDLER:
            return FoundryCLI(args)
    except Stopped as stopped:
        if not getattr(rank_zero_only, "rank", 0):
            print(stopped, file=sys.stderr)
            if stopped.saved:
                words = shlex.join(sys.argv[1:] if args is None else args)
                print(f"To go on: python -m lit_foundry {words} --resume required", file=sys.stderr)
        sys.exit(stopped.code)
