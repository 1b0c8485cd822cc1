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
            raise ValueError(f"{prefix}.{key} {rule}, got {values[key]}.")


def is_finite(value: Any) -> bool:
    """Tell whether there is neither infinity nor NaN in a value, or in a list of them."""
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
