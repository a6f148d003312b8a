"""Commands over many runs, or about finished ones: sweeps, figures of papers, clusters, feature caches, results."""
