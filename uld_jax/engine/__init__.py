"""The loop and what it stands on: steps, rounds, checkpoints, the folder of a run, stopping, progress."""
