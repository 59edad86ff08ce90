"""A process that has imported PyTorch once, from which others are forked in milliseconds."""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "diffusers.models.unets.unet_2d",
        "diffusers.schedulers.scheduling_ddim",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "sklearn.datasets",
        "manyhands.runs.experiment",
    ]
)
