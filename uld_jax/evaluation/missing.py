"""Numbers that may be missing."""

import numpy as np


def known_mean(values, axis=None):
    """Mean of the values that are not NaN; NaN, without a warning, if there are none."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def or_none(value):
    """Replace NaN and infinity by None, because JSON has neither."""
    return float(value) if np.isfinite(value) else None
