"""The process that talks to Weights & Biases, fed by :mod:`lit_foundry.runs.tracking` line by line.

Started as a script. It imports nothing of this package, and ends when its input does: also when the
process that feeds it was killed.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

import wandb

UPLOADED, OFFLINE = 0, 10  # exit codes


def begin(start: Mapping[str, Any]) -> wandb.Run:
    """Open or continue the run; offline where there is no key or the server does not answer."""
    settings = wandb.Settings(
        console="off",
        silent=True,
        symlink=False,
        init_timeout=start["init_timeout"],
        # The environment that we log names the commit; sources and diffs stay here.
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_stats_pid=os.getppid(),  # the process whose load is of interest
    )
    wanted = {key: start[key] for key in ("id", "project", "entity", "name", "dir", "config")}
    try:
        return wandb.init(**wanted, resume="allow", settings=settings)
    except Exception as error:
        print(f"offline: {error}", file=sys.stderr, flush=True)
        wandb.teardown()
        return wandb.init(**wanted, resume="allow", mode="offline", settings=settings)


def log(run: wandb.Run, message: Mapping[str, Any]) -> None:
    """Log what a message holds."""
    values = dict(message.get("metrics", {}))
    values |= {key: wandb.Table(**table) for key, table in message.get("tables", {}).items()}
    values |= {key: wandb.Image(path) for key, path in message.get("images", {}).items()}
    if values:
        run.log(values)
    run.summary.update(message.get("summary", {}))
    if artifact := message.get("artifact"):
        made = wandb.Artifact(artifact["name"], artifact["type"])
        add = made.add_dir if os.path.isdir(artifact["path"]) else made.add_file
        add(artifact["path"])
        run.log_artifact(made, aliases=artifact["aliases"])


def main() -> int:
    """Follow the messages until the last; return the exit code."""
    start = json.loads(sys.stdin.readline())
    run = begin(start)
    # The default, wandb's own count of rows, does not go on where a resumed run does.
    run.define_metric(start["step"])
    run.define_metric("*", step_metric=start["step"])
    code = 1  # without a last message, the process that fed this one died
    try:
        for line in sys.stdin:
            message = json.loads(line)
            if "exit_code" in message:
                code = message["exit_code"]
                break
            log(run, message)
    finally:
        # What hangs here has no one left who would end it.
        watchdog = threading.Timer(start["wait"], os._exit, [1])
        watchdog.daemon = True
        watchdog.start()
        offline = run.offline
        run.finish(exit_code=code)
        wandb.teardown()
    return OFFLINE if offline else UPLOADED


if __name__ == "__main__":
    sys.exit(main())
