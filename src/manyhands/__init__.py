"""Manyhands trains one image generator across parties that may not pool their images."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manyhands.data.images import Images as Images
    from manyhands.data.partition import ByAttributes as ByAttributes
    from manyhands.data.partition import ById as ById
    from manyhands.data.partition import Dirichlet as Dirichlet
    from manyhands.data.partition import Domains as Domains
    from manyhands.data.partition import Iid as Iid
    from manyhands.data.partition import Lacking as Lacking
    from manyhands.data.partition import Quantity as Quantity
    from manyhands.data.partition import Shards as Shards
    from manyhands.data.sources import Digits as Digits
    from manyhands.data.sources import Folder as Folder
    from manyhands.data.sources import HuggingFace as HuggingFace
    from manyhands.data.sources import Idx as Idx
    from manyhands.data.sources import Zip as Zip
    from manyhands.diffusion.objective import Diffusion as Diffusion
    from manyhands.diffusion.sample import Sampling as Sampling
    from manyhands.diffusion.schedule import Schedule as Schedule
    from manyhands.errors import ManyhandsError as ManyhandsError
    from manyhands.evaluation.figures import grid as grid
    from manyhands.evaluation.judge import Evaluation as Evaluation
    from manyhands.evaluation.judge import Judge as Judge
    from manyhands.experiment import Experiment as Experiment
    from manyhands.experiment import compose as compose
    from manyhands.experiment import split as split
    from manyhands.journal import Round as Round
    from manyhands.message import Message as Message
    from manyhands.methods.baselines import Central as Central
    from manyhands.methods.baselines import Local as Local
    from manyhands.methods.collafuse import CollaFuse as CollaFuse
    from manyhands.methods.fedavg import FedAvg as FedAvg
    from manyhands.methods.gans.hflgan import HFLGan as HFLGan
    from manyhands.methods.gans.mdgan import MDGan as MDGan
    from manyhands.methods.gans.pflgan import PFLGan as PFLGan
    from manyhands.methods.gans.splitgan import SplitGan as SplitGan
    from manyhands.methods.huscf.method import HuSCF as HuSCF
    from manyhands.methods.method import Method as Method
    from manyhands.methods.method import Server as Server
    from manyhands.models.autoencoder import Autoencoder as Autoencoder
    from manyhands.models.cut import Cut as Cut
    from manyhands.models.cut import Cuts as Cuts
    from manyhands.models.forger import Forger as Forger
    from manyhands.models.gan import Gan as Gan
    from manyhands.models.generator import Generator as Generator
    from manyhands.models.latent import Latent as Latent
    from manyhands.models.unet import UNet as UNet
    from manyhands.recipe import load_recipe as load_recipe
    from manyhands.silo import Silo as Silo
    from manyhands.sweep import load_sweep as load_sweep
    from manyhands.training import GanTraining as GanTraining
    from manyhands.training import Training as Training

__version__ = "0.1.0"

_HOME = {
    "data.images": ["Images"],
    "data.partition": ["ByAttributes", "ById", "Dirichlet", "Domains", "Iid", "Lacking", "Quantity", "Shards"],
    "data.sources": ["Digits", "Folder", "HuggingFace", "Idx", "Zip"],
    "diffusion.objective": ["Diffusion"],
    "diffusion.sample": ["Sampling"],
    "diffusion.schedule": ["Schedule"],
    "errors": ["ManyhandsError"],
    "evaluation.figures": ["grid"],
    "evaluation.judge": ["Evaluation", "Judge"],
    "experiment": ["Experiment", "compose", "split"],
    "journal": ["Round"],
    "message": ["Message"],
    "methods.baselines": ["Central", "Local"],
    "methods.collafuse": ["CollaFuse"],
    "methods.fedavg": ["FedAvg"],
    "methods.gans.hflgan": ["HFLGan"],
    "methods.gans.mdgan": ["MDGan"],
    "methods.gans.pflgan": ["PFLGan"],
    "methods.gans.splitgan": ["SplitGan"],
    "methods.huscf.method": ["HuSCF"],
    "methods.method": ["Method", "Server"],
    "models.autoencoder": ["Autoencoder"],
    "models.cut": ["Cut", "Cuts"],
    "models.forger": ["Forger"],
    "models.gan": ["Gan"],
    "models.generator": ["Generator"],
    "models.latent": ["Latent"],
    "models.unet": ["UNet"],
    "recipe": ["load_recipe"],
    "silo": ["Silo"],
    "sweep": ["load_sweep"],
    "training": ["GanTraining", "Training"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, ``manyhands --help`` must not."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'manyhands' has no attribute {name!r}")
    return getattr(import_module(f"manyhands.{_MODULE_OF[name]}"), name)
