"""Training that sees the few bits in which its network will be exported."""

import warnings
from math import isclose
from typing import Any, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_foundry import ranges
from lit_foundry.callbacks.best import start_over
from lit_foundry.nn.quantization import Layer, Method, layers, put_fakes, remove_fakes
from lit_foundry.training.progress import progress


class QuantizationAware(Callback):
    """Rounds weights of linear layers and embeddings in each pass as an export will round them.

    What learns are the floats behind, whose gradients pass the rounding by (straight-through).
    Validation sees rounded weights too; checkpoints hold the floats, and ``export --quantize`` with
    the same method loses less. What is frozen is rounded too, and keeps its weights. What a network
    reads past its layer, such as tied output weights, is not. When it begins, the search for the
    best checkpoint starts over, as before, another network was validated.

    Args:
        method: As of ``export --quantize``: ``int8-dynamic`` (activations too) and ``int4`` of
            ``onnx``, ``int8-weight-only`` and ``int4-weight-only`` of ``torch``.
        begin: Fraction of the run after which it begins. From the start of a training from scratch,
            it may cost more than it saves.

    Raises:
        ValueError: If a value lies outside its range.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference, 2017. https://arxiv.org/abs/1712.05877
    """

    def __init__(self, method: Method, begin: float = 0.5) -> None:
        methods = get_args(Method)
        rules = {
            "method": (method in methods, f"is one of {', '.join(methods)}"),
            "begin": (0 <= begin < 1, "is a fraction of the run in [0, 1)"),
        }
        ranges.check("QuantizationAware", {"method": method, "begin": begin}, rules)
        self.method, self.begin = method, begin
        self._layers: dict[str, Layer] = {}
        self._begun = self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """Return whether it has begun."""
        return {"begun": self._begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._resumed = bool(state_dict["begun"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers.

        Raises:
            ValueError: If there are none, or if something else of the run is in the way.
        """
        task: Any = getattr(pl_module, "served", pl_module)
        if not hasattr(task, "backbones"):
            raise ValueError(
                f"QuantizationAware needs a Task of lit_foundry, got a {type(task).__name__}."
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise ValueError(
                "QuantizationAware rounds whole weights, and "
                f"{type(trainer.strategy).__name__} divides them: set trainer.strategy to ddp."
            )
        if task.finetune.lora:
            raise ValueError(
                "QuantizationAware trains weights, and adapters leave them alone: leave out "
                "model.finetune.lora."
            )
        if getattr(task, "compiled", False):
            raise ValueError(
                "QuantizationAware changes what layers compute in training, and compiled ones "
                "would not see it: set model.compile to false."
            )
        layers(task, "QuantizationAware")
        # A validation may come before the first step of a resumed run.
        self._begun, self._resumed = self._resumed, False
        if self._begun:
            self._put(task)

    def _put(self, task: Any) -> None:
        self._layers = layers(task, "QuantizationAware")
        put_fakes(self._layers, self.method)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin, if that is due at the start of a step."""
        if self._begun or batch_idx % trainer.accumulate_grad_batches:
            return
        done, step = progress(trainer, batch_idx)
        # Of a short run, the last step is the last chance.
        if done >= self.begin or isclose(done, self.begin) or (step and done + 1.5 * step > 1):
            self._begun = True
            self._put(getattr(pl_module, "served", pl_module))
            start_over(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Until it begins, have no validation stop the run as worse than one before it."""
        if trainer.state.fn == "fit" and not self._begun:
            start_over(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell if it has not begun."""
        if not self._begun:
            warnings.warn(
                f"QuantizationAware: the run ended before QuantizationAware.begin={self.begin}.",
                stacklevel=2,
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the network of floats."""
        remove_fakes(self._layers)
        self._layers = {}

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave it so too where Lightning tears nothing down."""
        self.teardown(trainer, pl_module, "fit")
