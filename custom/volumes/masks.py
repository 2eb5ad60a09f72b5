"""What a mask holds: whole numbers, the classes, within what storing them has rounded."""

from collections.abc import Sequence

import numpy as np

TOLERANCE = 1e-3
"""How far from a whole number a class may be: scales and single precision move it so far, resampling moves it more."""


def mask_problem(values: Sequence[float] | np.ndarray, num_classes: int | None) -> str | None:
    """Why the values of a mask are no classes, in a sentence with what to do; None where they are.

    Args:
        values: that occur in it.
        num_classes: background included; None takes any.
    """
    values = np.asarray(values, dtype=float)
    highest = np.inf if num_classes is None else num_classes - 1
    if np.isfinite(values).all():
        classes = np.round(values)
        whole = (np.abs(values - classes) <= TOLERANCE).all()
        if whole and classes.min(initial=0) >= 0 and classes.max(initial=0) <= highest:
            return None
    found = ", ".join(f"{value:.4g}" for value in values[:8]) + (", ..." if len(values) > 8 else "")
    rule = "whole numbers from 0" if num_classes is None else f"whole numbers from 0 to {num_classes - 1}"
    return f"a mask holds {rule}, found {found}; make it anew, or map its values to classes"
