"""Studies of many runs or of finished runs: sweeps, figures of papers, clusters, feature caches, results."""
