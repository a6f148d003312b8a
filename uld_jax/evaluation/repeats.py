"""Several fits of one protocol as one result."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uld_jax.evaluation.missing import known_mean, or_none


def averaged(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several results of `landmark_regression.evaluate` as one.

    They are fitted on different training images and scored on the same test images. Errors and shares, the tables by
    landmark and by image among them, are means over the results that have a value; counts, names and `predicted` are
    those of the first. `spread` tells how far they are apart: repeats, and the sample standard deviations of
    forward_nme and backward_nme.

    Raises:
      ValueError: no results.
    """
    if not results:
        raise ValueError("averaged needs at least one result")
    if len(results) == 1:
        return dict(results[0])

    def mean(values, name=""):
        known = [v for v in values if v is not None]
        first = known[0] if known else None
        if isinstance(first, Mapping):
            return {key: mean([v.get(key) for v in known], key) for key in first}
        if isinstance(first, np.ndarray) and name != "predicted":
            return known_mean(np.stack(known), 0)
        return float(known_mean(np.array(known))) if isinstance(first, float) else first

    keys = dict.fromkeys(key for result in results for key in result)
    spread = {
        name: or_none(np.std([result[name] for result in results], ddof=1)) for name in ("forward_nme", "backward_nme")
    }
    together = {key: mean([result.get(key) for result in results], key) for key in keys}
    return together | {"spread": {"repeats": len(results)} | spread}
