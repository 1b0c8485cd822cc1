"""Train the built-in demo, test it, and say what to look at: ``make demo``."""

import json
import os
import sys
import time

# The network is so small that threads would mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from lit_foundry.cli.main import main
from lit_foundry.report import command as report


def demo() -> None:
    """Fit and test configs/demo.yaml, with any further arguments of the command line."""
    start = time.perf_counter()
    fit = main(["fit", "--config", "configs/demo.yaml", *sys.argv[1:]])
    run = fit.run.path
    main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")])
    report.main([str(run)])
    accuracy = json.loads((run / "test.json").read_text(encoding="utf-8"))["test/acc"]
    print(f"""
Test accuracy {accuracy:.3f} after {time.perf_counter() - start:.0f} s. Look at
  {run}/report/index.html         all of the run on a page, mistakes too
  {run}/plots/curves.png          loss, accuracy and learning rates over the steps
  {run}/plots/test_confusion.png  which packages are taken for which
  {run}/config.yaml               all settings; change one and fit again with --config
Label texts of your own:
  echo "Return the eigenvalues of a graph's Laplacian." | python -m lit_foundry predict \\
      --ckpt_path {run / "checkpoints" / "best.ckpt"} --input -
Logs for TensorBoard: tensorboard --logdir {run}""")


if __name__ == "__main__":
    demo()
