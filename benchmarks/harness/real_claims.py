"""What is claimed of training as practitioners do it, of latent models, and of three clinics' cells."""

from __future__ import annotations

from pathlib import Path

from harness.case_files import Figure, Table, first, mean, ratio, worst
from harness.settings_tried import CODECS, SKEWED, Changes

BARS = {
    "flow": "<= 1.05", "solver": "<= 1.05", "flips_cells": "<= 0.95", "flips_cifar": "<= 0.95", "step_ema": "<= 0.95",
    "latent": "<= 1.3",
    "latent_quant8": "", "latent_quant4": "", "latent_prox": "", "cells": ">= 0.9", "cells_alone": "<= 1",
    "cells_central": "", "pretrained": "<= 0.5", "lora_bytes": ">= 50", "lora_bytes_8": ">= 150", "lora_fid": "<= 1.15",
    "lora_bias": "", "lora_bias_product": "",
}  # fmt: skip
LORA = 'rank=7,alpha=700,targets=["to_out.0","conv1","conv2","time_emb_proj"]'
WHOLE = 'whole=["class_embedding","norm1","norm2","conv_in","conv_out","conv_norm_out"]'
FEW_ROUNDS = ("method.rounds=8", "method.training.steps=50", "method.keep_optimiser=false")
SKEWED_THREE = 'partition={kind="dirichlet",silos=3,alpha=0.1,minimum=10}'
QUANT = {name: codec for name, codec in CODECS.items() if "2 bits" not in name}
CELLS = {"fedavg": "cells local", "collafuse": "cells local", "huscf": "cells local, GAN"}
"""The methods of three clinics, and the case in which each clinic trains such a generator alone."""
CIFAR = str(Path(__file__).with_name("cifar-small.toml"))


def cases(scale: str) -> dict[str, tuple[str, Changes]]:
    """The recipe of each case, and what is changed of it; WORK is the folder of the runs."""
    if scale == "quick":
        return {"v": ("digits-fedavg", ()), "flow": ("digits-fedavg", ("method.diffusion.target=flow",))}
    long = ("method.rounds=6", "method.training.steps=50", "method.ema=0")
    latent = ('method.model.folder="WORK/letters-0/model"',)
    pixels = ('method.model={kind="unet",widths=[16,32]}', "method.training.steps=10")
    clinics = {kind: f"cells-{kind}" for kind in CELLS}
    codecs = {f"latent, {name}": (*latent, f"method.up={{{c}}}", f"method.down={{{c}}}") for name, c in QUANT.items()}
    latent_skewed = (*latent, SKEWED, "method.rounds=6", "method.training.steps=250", "method.ema=0")
    scratch = 'method.model={kind="unet",widths=[32,64,64],attention=true}'
    slower = "method.training.learning_rate=2e-3"
    eight = tuple(f"method.{way}={{{CODECS['updates, 8 bits']}}}" for way in ("up", "down"))
    return {
        "v": ("mnist16-fedavg", ()),
        "flow": ("mnist16-fedavg", ("method.diffusion.target=flow",)),
        "long": ("mnist16-fedavg", long),
        "long, step average": ("mnist16-fedavg", (*long, "method.training.step_ema=0.95")),
        "letters": ("letters-autoencoder", ()),
        "pixels": ("mnist-latent", pixels),
        **{name: ("mnist-latent", changes) for name, changes in {"latent": latent, **codecs}.items()},
        "latent skewed": ("mnist-latent", latent_skewed),
        "latent skewed, mu 0.1": ("mnist-latent", (*latent_skewed, "method.proximal=0.1")),
        **{f"cells {kind}": (recipe, ()) for kind, recipe in clinics.items()},
        "cells central-joined": ("cells-fedavg", ("method.kind=central", "method.joined=true")),
        "cells local": ("cells-fedavg", ("method.kind=local",)),
        "cells local, GAN": ("cells-huscf", ("method.kind=local", 'method.model={kind="gan",width=16}')),
        "cells fedavg, no flips": ("cells-fedavg", ("method.training.flip=false",)),
        "cifar": (CIFAR, ()),
        "cifar, no flips": (CIFAR, ("method.training.flip=false",)),
        "letters unet": ("letters16-unet", ()),
        "scratch": ("mnist16-pretrained", (scratch, slower)),
        "whole": ("mnist16-pretrained", (_begun(), slower)),
        "lora": ("mnist16-pretrained", (_begun("ffa"),)),
        "lora, 8 bits": ("mnist16-pretrained", (_begun("ffa"), *eight)),
        "lora skewed, stacked": ("mnist16-pretrained", (_begun("stacked"), SKEWED_THREE, *FEW_ROUNDS)),
        "lora skewed, naive": ("mnist16-pretrained", (_begun("naive"), SKEWED_THREE, *FEW_ROUNDS)),
    }


def _begun(adapter: str = "") -> str:
    """A model begun from the letters' network, whole or with adapters of a kind."""
    beside = f",{WHOLE}" if adapter == "ffa" else ""
    parts = f',adapter={{kind="{adapter}",{LORA}{beside}}}' if adapter else ""
    return f'method.model={{kind="pretrained",folder="WORK/letters-unet-0/model"{parts}}}'


def figures(table: Table, _: str) -> dict[str, Figure | None]:
    """Samplers against DDIM in 50 steps on the same images; the worst codec of a width; the worst method of clinics."""
    drawn = {
        f"{case} {sampler}": {seed: {"figures": {"fid": fid}} for seed, file in table.get(case, {}).items()
                              if (fid := file["figures"].get("by_sampler", {}).get(sampler)) is not None}
        for case, sampler in (("v", "ddim 50"), ("v", "dpm++ 10"), ("flow", "dpm++ 10"))
    }  # fmt: skip
    quant = {
        bits: [ratio(table, "fid", f"latent, {n}", "latent") for n in QUANT if f"{bits} bits" in n] for bits in (8, 4)
    }
    whole, lora, eight = (first(table, case, "bytes") for case in ("whole", "lora", "lora, 8 bits"))
    return {
        "pretrained": ratio(table, "fid", "whole", "scratch"),
        "lora_bytes": Figure(whole / lora) if whole and lora else None,
        "lora_bytes_8": Figure(whole / eight) if whole and eight else None,
        "lora_fid": ratio(table, "fid", "lora", "whole"),
        "lora_bias": ratio(table, "fid", "lora skewed, naive", "lora skewed, stacked"),
        "lora_bias_product": mean(table, "lora skewed, naive", "product_bias"),
        "flow": ratio(drawn, "fid", "flow dpm++ 10", "v ddim 50"),
        "solver": ratio(drawn, "fid", "v dpm++ 10", "v ddim 50"),
        "flips_cells": ratio(table, "fid", "cells fedavg", "cells fedavg, no flips"),
        "flips_cifar": ratio(table, "fid", "cifar", "cifar, no flips"),
        "step_ema": ratio(table, "fid", "long, step average", "long"),
        "latent": ratio(table, "fid", "latent", "pixels"),
        "latent_quant8": worst(quant[8]),
        "latent_quant4": worst(quant[4]),
        "latent_prox": ratio(table, "fid", "latent skewed, mu 0.1", "latent skewed"),
        "cells": worst([mean(table, f"cells {kind}", "recognised") for kind in CELLS], min),
        "cells_alone": worst([ratio(table, "fid", f"cells {kind}", alone) for kind, alone in CELLS.items()]),
        "cells_central": worst([ratio(table, "fid", f"cells {kind}", "cells central-joined") for kind in CELLS]),
    }
