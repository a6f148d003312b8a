"""Data sets in the format of TensorFlow Datasets (ArrayRecord files), written and read without TensorFlow."""
