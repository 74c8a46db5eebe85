"""Linear algebra and random-matrix baselines on plain tensors and arrays."""
