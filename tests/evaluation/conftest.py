import numpy as np
import pytest

from uld_jax.evaluation import measure
from uld_jax.evaluation.stability import Stability


@pytest.fixture
def still(monkeypatch):
    """Stability that takes no time."""
    px = lambda *a, scale=0.0, **k: Stability(1.5 + scale, np.zeros(3), np.ones(3, int), np.zeros((1, 3)), "turned")
    monkeypatch.setattr(measure, "stability", px)
