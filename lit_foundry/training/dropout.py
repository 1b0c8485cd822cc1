"""Dropout that a resumed run continues as if it had never stopped."""

import torch


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generators of CPU and device, as ``torch.manual_seed`` does.

    That one also seeds kinds of devices that are absent: it queues a call for each of them with the
    stack it came from, for ever, which takes a millisecond a step and never frees its memory.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
