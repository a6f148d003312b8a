"""Clustering on the devices: jitted, masked, sharded over the mesh's `data` axis."""
