#!/usr/bin/env bash
# jax 0.10.2 with jaxlib 0.10.2, CPU (x86-64), default flags: a jitted sum of products, repeated along an axis and added
# to another array, is wrong from the second tile of 32,768 output numbers on.
#
# XLA's CPU backend joins the sum, its repetition and the addition in one `__ynn_fusion`. If one factor of the products
# is the same in every row, the fused program reads the sums of the first rows again in each tile, so that row 546 of a
# [1000,20,3] result holds the sum of row 0. There is no warning, and smaller arrays are right, so that small tests pass.
# jaxlib 0.10.1 and 0.12.0.1 are right, as is 0.10.2 with XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= (empty; other
# versions of jaxlib may not know the flag).
#
# Seen, sums of rows 544 to 548: 544 545 0 1 2 under jit, 544 545 546 547 548 without jit or with the flag.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/program.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
import numpy as np


def shifted(x, z):
    return jnp.sum(jnp.eye(3) * x[:, None], -1)[:, None] + z


x, z = jnp.stack([jnp.arange(1000.0)] * 3, 1), jnp.zeros((20, 3))
expected = np.broadcast_to(np.arange(1000.0)[:, None, None], (1000, 20, 3))
for name, function in (("jit", jax.jit(shifted)), ("no jit", shifted)):
    found = np.asarray(function(x, z))
    wrong = np.flatnonzero((found != expected).any((1, 2)))
    print(f"{sys.argv[1]}, {name}: rows 544 to 548 are {found[544:549, 0, 0]}, {len(wrong)} rows are wrong")
    assert (len(wrong) > 0) == (sys.argv[1] == "default flags" and name == "jit"), "this is different now"
    assert not len(wrong) or wrong[0] == 546, "the first wrong row is another one now"
PY
export JAX_PLATFORMS=cpu
XLA_FLAGS= "$folder/venv/bin/python" "$folder/program.py" "default flags"
XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= "$folder/venv/bin/python" "$folder/program.py" "without the fusion"
echo "as described"
