"""How images are distributed to silos: pure functions of labels, the number of silos and a random generator.

Each returns one array of image numbers for each silo. Together the arrays hold every image once, and none has fewer
than ``minimum``: a silo with fewer gets random images of the largest silo. Only ``by_attributes`` and ``lacking`` may
leave images out, and only ``by_attributes`` may give one image to several silos.
"""

from __future__ import annotations

from manyhands.data.partition.base import AnyPartition, Partition, Parts, class_counts
from manyhands.data.partition.by_attributes import ByAttributes, by_attributes
from manyhands.data.partition.by_id import ById, by_id
from manyhands.data.partition.dirichlet import Dirichlet, dirichlet
from manyhands.data.partition.domains import Domains, domains
from manyhands.data.partition.iid import Iid, iid
from manyhands.data.partition.lacking import Lacking, lacking
from manyhands.data.partition.quantity import Quantity, quantity
from manyhands.data.partition.shards import Shards, shards

__all__ = [
    "AnyPartition",
    "ByAttributes",
    "ById",
    "Dirichlet",
    "Domains",
    "Iid",
    "Lacking",
    "Partition",
    "Parts",
    "Quantity",
    "Shards",
    "by_attributes",
    "by_id",
    "class_counts",
    "dirichlet",
    "domains",
    "iid",
    "lacking",
    "quantity",
    "shards",
]
