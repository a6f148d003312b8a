#!/usr/bin/env bash
# jax 0.10.2, `jax.make_mesh`, TPU topologies of libtpu 0.0.42.1 (nothing is executed; no TPU is needed).
#
# The devices of a one-axis mesh over a whole TPU slice follow the torus, so the chips of one host need not be
# neighbours in it: a host may come, go and come again. Code that takes "this process's rows" of a global batch as
# everything from its first to its last device then feeds rows of other hosts; on CPU and GPU, and on slices whose rings
# happen to pass each host once, the same code is right, so that no test without the slice shows it.
# Rows that are asked of the sharding (`NamedSharding.addressable_devices_indices_map`) are right everywhere.
#
# Seen, the host of each device along the mesh:
#   v5e:2x2    1 host, visited once
#   v5e:4x4    4 hosts, visited 7 times: 0 0 1 1 1 1 0 2 3 3 3 3 2 2 2 0 (v6e:4x4 too)
#   v5e:8x8   16 hosts, visited 32 times
#   v5p:2x2x2  2 hosts, visited 8 times: 0 1 0 1 0 1 0 1
#   v5p:2x2x4  4 hosts, visited 16 times: 0 1 2 3 0 1 2 3 0 1 2 3 0 1 2 3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 TPU_WORKER_HOSTNAMES=localhost
"$folder/venv/bin/python" - <<'PY'
import jax
from jax.experimental import topologies

split = 0
for name in ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5p:2x2x2", "v5p:2x2x4", "v6e:4x4"):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices)
    hosts = [d.process_index for d in mesh.devices.flat]
    visits = 1 + sum(a != b for a, b in zip(hosts, hosts[1:]))
    print(f"{name}: {len(set(hosts))} hosts, visited {visits} times: {' '.join(map(str, hosts[:32]))}")
    split += visits > len(set(hosts))
assert split, "every host's chips are neighbours in the mesh now"
print("as described")
PY
