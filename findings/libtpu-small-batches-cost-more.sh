#!/usr/bin/env bash
# jax 0.10.2, libtpu 0.0.42.1, compiled for TPU v5e (nothing is executed; no TPU is needed).
#
# Two 3 x 3 convolutions of 128 channels at 128 x 128 pixels: by the compiler's own estimate (`estimated_cycles` in the
# optimised program) a batch of six images takes longer than one of eight. Below eight images a chip the compiler cuts
# images into strips that it treats as more images, and copies the strips' borders between any two layers. With
# LIBTPU_INIT_ARGS="--xla_tpu_run_space_to_batch=false --xla_tpu_run_space_to_batch_on_new_platforms=false" it does not.
# A batch of 24 on four chips, or of 16 (four a chip), is such a batch.
#
# Seen, estimates in ms at 1.5 GHz:
#   8 images              0.58
#   6 images              1.32
#   6 images, with both   0.47
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 TPU_WORKER_HOSTNAMES=localhost
cat >"$folder/estimate.py" <<'PY'
import re
import sys

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

chip = SingleDeviceSharding(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0])
shape = lambda *s: jax.ShapeDtypeStruct(s, jax.numpy.bfloat16, sharding=chip)
convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
two = jax.jit(lambda x, k: convolve(jax.nn.relu(convolve(x, k)), k))
text = two.lower(shape(int(sys.argv[1]), 128, 128, 128), shape(3, 3, 128, 128)).compile().as_text()
entry = text[text.index("\nENTRY") :]
print(sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry))) / 1.5e6)
PY
flags="--xla_tpu_run_space_to_batch=false --xla_tpu_run_space_to_batch_on_new_platforms=false"
eight=$("$folder/venv/bin/python" "$folder/estimate.py" 8)
six=$("$folder/venv/bin/python" "$folder/estimate.py" 6)
without=$(LIBTPU_INIT_ARGS="$flags" "$folder/venv/bin/python" "$folder/estimate.py" 6)
echo "8 images $eight ms, 6 images $six ms, 6 images with both flags $without ms"
python3 -c "
eight, six, without = $eight, $six, $without
assert six > 1.3 * eight and without < eight, 'small batches are compiled in another way now'
print('as described')"
