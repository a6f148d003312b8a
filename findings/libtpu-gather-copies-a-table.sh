#!/usr/bin/env bash
# jax 0.10.2, libtpu 0.0.42.1, compiled for TPU v5e (nothing is executed; no TPU is needed).
#
# `jnp.take` of 32 rows of a table u32[20000,W] takes no memory beside the table where W is a multiple of 128, the
# lanes of a TPU's tiles. For any other W tried the compiler first copies the whole table into another layout, in every
# call: 64 words more in a row (1.3 % more memory) save a copy of the whole. The same bytes as u8[20000,80,80,3] are
# copied too. Rows of more than 32,768 words are cut in two before the gather, with a copy again; the same table as
# twice as many rows of half the length is not. On CPU and GPU nothing of the kind shows.
#
# Seen, temporaries of the compiled program:
#   u8[20000,80,80,3]   586 MiB
#   u32[20000,4800]     371 MiB
#   u32[20000,4864]     0 MiB
#   u32[20000,49152]    3750 MiB
#   u32[40000,24576]    0 MiB
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 TPU_WORKER_HOSTNAMES=localhost
"$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

chip = SingleDeviceSharding(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0])
index = jax.ShapeDtypeStruct((32,), np.int32, sharding=chip)


def temporaries(shape, dtype):
    table = jax.ShapeDtypeStruct(shape, dtype, sharding=chip)
    take = jax.jit(lambda table, index: jnp.take(table, index, axis=0, mode="fill", fill_value=0))
    return take.lower(table, index).compile().memory_analysis().temp_size_in_bytes / 2**20


found = {}
words = (20000, 4800), (20000, 4864), (20000, 49152), (40000, 24576)
for shape, dtype in [((20000, 80, 80, 3), np.uint8), *((each, np.uint32) for each in words)]:
    name = f"{np.dtype(dtype).name}{list(shape)}"
    found[name] = temporaries(shape, dtype)
    print(f"{name:28} {found[name]:8.1f} MiB of temporaries", flush=True)
bytes_, short, filled, long, halves = found.values()
assert bytes_ > 300 and short > 300 and long > 3000, "tables are gathered in another way now"
assert filled < 1 and halves < 1, "tables are gathered in another way now"
print("as described")
PY
