"""A run between sites as a job of NVIDIA FLARE."""
