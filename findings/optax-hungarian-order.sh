#!/usr/bin/env bash
# optax 0.2.8, `optax.assignment.hungarian_algorithm`.
#
# It returns (rows, columns) as `scipy.optimize.linear_sum_assignment` does, but the pairs are in another order: SciPy
# sorts them by row, so that for a square cost the answer is in the second array; optax sorts a square cost by column, so
# that the second array is always 0..n-1 and the answer is in the first. The pairs of a wide cost come by falling row,
# those of a tall one by falling column. Code that was written for SciPy and keeps only the second array runs without an
# error and, for a square cost, assigns everything to itself. The docstring states no order.
#
# Seen (4 x 4, uniform random, seed 0): optax rows [2 3 1 0], columns [0 1 2 3]; SciPy rows [0 1 2 3], columns [3 2 0 1].
# The pairs are the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 scipy==1.17.1 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment

for n in (4, 7, 20):
    cost = np.random.default_rng(0).random((n, n), np.float32)
    rows, columns = (np.asarray(x) for x in optax.assignment.hungarian_algorithm(jnp.asarray(cost)))
    scipy_rows, scipy_columns = linear_sum_assignment(cost)
    print(f"optax {n} x {n}: rows {rows}, columns {columns}")
    print(f"SciPy {n} x {n}: rows {scipy_rows}, columns {scipy_columns}")
    assert set(zip(rows, columns)) == set(zip(scipy_rows, scipy_columns)), "the pairs differ"
    assert (columns == np.arange(n)).all(), "optax no longer orders a square cost by column"
    assert (scipy_rows == np.arange(n)).all(), "SciPy no longer orders by row"
    assert (columns != scipy_columns).any(), "the second arrays agree now"
for shape, name, which in (((3, 5), "rows", 0), ((5, 3), "columns", 1)):
    pairs = optax.assignment.hungarian_algorithm(jnp.asarray(np.random.default_rng(0).random(shape, np.float32)))
    print(f"optax {shape[0]} x {shape[1]}: rows {pairs[0]}, columns {pairs[1]}")
    assert (np.diff(np.asarray(pairs[which])) < 0).all(), f"the {name} of a cost of {shape} do not fall any more"
print("as described")
PY
