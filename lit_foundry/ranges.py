"""Numbers that users set: within their range and finite, or one line that says so."""

import math
from collections.abc import Mapping
from typing import Any


def check(prefix: str, values: Mapping[str, Any], rules: Mapping[str, tuple[bool, str]]) -> None:
    """Raise ValueError unless every value keeps its rule and is finite.

    Args:
        prefix: What comes before the keys, such as ``model.optim``.
        values: Values by key; those without a rule are not looked at.
        rules: By key, whether the value keeps the rule, and the rule as the end of a sentence that
            the key begins. Comparisons with NaN are false, but infinity passes many.
    """
    for key, (holds, rule) in rules.items():
        if not (holds and is_finite(values[key])):
            name = f"{prefix}.{key}" if prefix else key
            raise ValueError(f"{name} {rule}, got {values[key]}.")


def check_probs(prefix: str, **probs: float | None) -> None:
    """Raise ValueError unless all are probabilities below 1, or None."""
    rule = "is a probability in [0, 1), or null"
    check(prefix, probs, {k: (p is None or 0 <= p < 1, rule) for k, p in probs.items()})


def is_finite(value: Any) -> bool:
    """Tell whether there is neither infinity nor NaN in a value, or in a list of them."""
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
