"""The training loop and its parts: steps, rounds, checkpoints, the folder of a run, stopping, progress."""
