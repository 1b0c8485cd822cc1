"""A process keeps its memory, unless it is told otherwise."""

import os
import subprocess
import sys

import pytest

from lit_foundry.memory import keep

PROBE = """
import resource
import sys
from lit_foundry.memory import keep

kept = keep()
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for round in range(10):
    before = faults()
    torch.ones(12 * 2**20)  # 48 MB: 12,288 pages of 4 kB
print(kept, faults() - before)
"""


def probed(**settings: str) -> tuple[bool, int]:
    """Return whether memory is kept, and the page faults of a tensor after nine others."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "LIT_FOUNDRY_K"))}
    command = [sys.executable, "-c", PROBE]
    found = subprocess.run(
        command, env=plain | settings, check=True, capture_output=True, text=True, encoding="utf-8"
    )
    kept, faults = found.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is tuned on Linux only")
def test_the_pages_of_a_tensor_are_used_again() -> None:
    kept, faults = probed()
    if not kept:
        pytest.skip("another malloc than glibc's")
    assert faults < 100
    kept, faults = probed(LIT_FOUNDRY_KEEP_MEMORY="0")
    assert not kept
    assert faults > 20  # huge pages of 2 MB, or more of a smaller size


def test_a_malloc_that_the_user_chose_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert not keep()
