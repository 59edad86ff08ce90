"""What is measured of federated adapters: the bias of their naive mean, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from manyhands.messages.codec.codec import max_wire_bytes
from manyhands.methods.base import WEIGHTS
from manyhands.methods.fedavg.sharing import SHARED
from manyhands.models.adapters import averaging_bias
from manyhands.tensors import strip_prefix

if TYPE_CHECKING:
    from manyhands.methods.fedavg.spec import FedAvgSpec
    from manyhands.silos.silo import Silo


class RoundBytes(NamedTuple):
    """The most bytes of tensors of one silo in a round, once it has the weights of the last round.

    Args:
        up: What it sends.
        down: What it is sent.
    """

    up: float
    down: float


def round_bytes(method: FedAvgSpec, silos: int) -> RoundBytes:
    """Return what a silo sends and is sent in a round, without the headers of messages, which the ledger also counts.

    Args:
        method: Federated averaging of whole weights, or of adapters.
        silos: The silos of a round.
    """
    up = max_wire_bytes(method.up, method.spec_of(SHARED[method.share]))
    return RoundBytes(up / 2 if method.share == "usplit" else up, method.downlink.bytes(1.0, silos))


def naive_bias(silos: Sequence[Silo]) -> float:
    """Return how wrong the naive mean of A and B of silos would be, as a share of the mean of their products.

    The silos have trained adapters of kind ``naive`` by ``Local``, from the same start: for one round, the figure is
    that of a round of ``FedAvg``. The mean is weighted by their numbers of images.

    Args:
        silos: The silos, with what they trained in their memory.
    """
    return averaging_bias([strip_prefix(silo.memory, WEIGHTS) for silo in silos], [len(silo.images) for silo in silos])
