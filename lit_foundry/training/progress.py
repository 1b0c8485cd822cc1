"""How much of a run is done, in whatever limits it: steps, epochs or wall-clock."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Timer


def progress(trainer: Trainer, batch_idx: int) -> tuple[float, float]:
    """Measure the run at the start of an optimizer step.

    Where several limits are set, the one nearest to its end counts. Steps and epochs depend on
    counters alone, so that a resumed run goes on identically; wall-clock is that of rank 0,
    and continues from the elapsed time that the checkpoint holds.

    Args:
        trainer: A trainer that fits.
        batch_idx: Micro-batches of this epoch that are done.

    Returns:
        The fraction of the run that is done, and that of one optimizer step (0 if unknown).
    """
    limits = [(0.0, 0.0)]
    if trainer.max_steps > 0:
        limits.append((trainer.global_step / trainer.max_steps, 1 / trainer.max_steps))
    if trainer.max_epochs and trainer.max_epochs > 0:
        batches = trainer.num_training_batches
        done = trainer.current_epoch + batch_idx / batches
        step = trainer.accumulate_grad_batches / batches
        limits.append((done / trainer.max_epochs, step / trainer.max_epochs))
    for timer in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(timer, Timer) and (left := timer.time_remaining()) is not None:
            elapsed = timer.time_elapsed()
            done = elapsed / max(elapsed + left, 1e-9)
            if trainer.world_size > 1:
                done = trainer.strategy.broadcast(done)
            limits.append((done, done / max(1, trainer.global_step)))
    done, step = max(limits)
    return min(done, 1.0), step


def epochs(trainer: Trainer, batch_idx: int, step: float) -> tuple[float, float]:
    """Measure the run in epochs at the start of an optimizer step.

    Args:
        trainer: A trainer that fits.
        batch_idx: Micro-batches of this epoch that are done.
        step: Fraction of the run that one optimizer step takes.

    Returns:
        The epochs that are done, and the fraction of the run that one takes.
    """
    batches = trainer.num_training_batches
    done = trainer.current_epoch + batch_idx / batches
    return done, step * batches / trainer.accumulate_grad_batches


def is_logged(trainer: Trainer) -> bool:
    """Tell whether someone may read the metrics of this step: logging them all takes 1.5 ms.

    A timer stops the run, and has its last step logged, when it is too late to add to it.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return (
        trainer._logger_connector.should_update_logs
        or trainer.is_last_batch
        or any(isinstance(callback, Timer) for callback in callbacks)
    )
