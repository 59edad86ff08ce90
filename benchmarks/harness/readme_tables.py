"""README's two tables: which method is for whom, and eight claims; every figure is one of the committed results."""

from __future__ import annotations

from typing import Any

from harness import case_files, tables
from harness.descriptions import HIGHLIGHTS

METHODS = ("method", "a silo has to", "what leaves it", "what the server can learn of its images", "traffic", "quality")
CLAIMS = ("claim", "bar", "measured", "95 % interval", "seeds", "holds")


def which_method() -> str:
    """What each method asks of a silo, gives away, sends and reaches."""
    federated, cut, gan = (tables.rows(program) for program in ("federated_diffusion", "collafuse", "huscf"))
    released = tables.newest("collafuse")["reidentified"]
    cheap, recommended = released["picked"]["0.4"]["picked"], released["at_it"]["picked"]
    rows = [
        [
            "`fedavg`",
            "train the whole network",
            "its weights, each round",
            "perhaps parts of them: the server sees the weights of each silo",
            f"weights both ways; with 4 bits {federated['quant4_bytes']['figure']:.1f} x fewer bytes",
            _times_fid(federated["vanilla_iid"], "pooled data"),
        ],
        [
            "`collafuse`",
            "train a network of its own, and run the last denoising steps of a sample; their share is the *cut* "
            "(.4: 40 %)",
            "each image once, with noise",
            f"which image it got: it picks the right one of 1,000 in {_percent(cheap)} of cases at cut .4, in "
            f"{_percent(recommended)} at cut {released['recommended_cut']:.3g}",
            "4 bytes a pixel, once; more each time a silo generates images",
            f"no gain: at the worst cut from .2 to .6, {_times_fid(cut['quality_alone'], 'silos that train alone')}",
        ],
        [
            "`huscf`",
            f"train the outer blocks of a GAN: {_of_fedavg('huscf 4', 'flops_silo'):.2f} x the work with these cuts",
            "activations and gradients, each mini-batch",
            "**all images and labels**: it can compute them",
            f"{_of_fedavg('huscf 4', 'bytes'):.0f} x `fedavg`; in 8 bits {gan['traffic']['figure']:.1f} x fewer bytes",
            f"CAS {_measured(gan['quality_small'])} points below pooled data",
        ],
        [
            "`mdgan`, `splitgan`",
            f"train a discriminator: {_of_fedavg('mdgan 4', 'flops_silo'):.2f} x the work",
            "gradients at generated images; its discriminator",
            "perhaps parts of them, from its discriminator",
            f"{_of_fedavg('mdgan 4', 'bytes'):.1f} x and {_of_fedavg('splitgan 4', 'bytes'):.1f} x `fedavg`",
            f"CAS {_cas('mdgan 4')} and {_cas('splitgan 4')}; `huscf` in the same test: {_cas('huscf 4')} (one seed)",
        ],
        [
            "`pflgan`",
            "train a whole GAN",
            "its generator, every few rounds; images that it generates go to other silos",
            "what its generator can generate",
            f"{_of_fedavg('pflgan 4', 'bytes'):.2f} x `fedavg`",
            f"CAS {_cas('pflgan 4')} (one seed)",
        ],
        [
            "`hflgan`",
            "the same",
            "its weights, each round",
            "as with `fedavg`",
            "1 x `fedavg`",
            f"CAS {_cas('hflgan 4')} (one seed)",
        ],
        [
            "`local`",
            "train the whole network",
            "losses and counts",
            "nothing of them",
            "none",
            f"CAS {_cas('local 4')} (one seed); with skewed data, if each generates all classes, also those it lacks, "
            f"{_times_fid(federated['beats_local'], '`fedavg`')}",
        ],
    ]
    return _table(METHODS, rows)


def eight_claims() -> str:
    """Claims about each part, those that fail among them."""
    rows = []
    for key, words in HIGHLIGHTS.items():
        program, name = key.split(".")
        row = tables.rows(program)[name]
        cells = [words, row["bar"], tables.shown(row["figure"]), tables.interval(row), tables.seeds(row)]
        rows.append([*cells, tables.verdict(row)])
    return _table(CLAIMS, rows)


def _table(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


def _measured(row: dict[str, Any]) -> str:
    """A figure with its seeds and its interval."""
    return f"{row['figure']:.3g} ({_within(row)})"


def _within(row: dict[str, Any]) -> str:
    count, ends = len(row["seeds"]), row.get("interval")
    return f"{ends[0]:.3g} to {ends[1]:.3g}; {count} seeds" if ends else "one seed"


def _times_fid(row: dict[str, Any], baseline: str) -> str:
    return f"{row['figure']:.3g} x the FID of {baseline} ({_within(row)})"


def _of_fedavg(case: str, name: str) -> float:
    """Against averaging the same GAN on the same images, scenario 4."""
    files = tables.files("huscf")
    return float(case_files.first(files, case, name) / case_files.first(files, "fedavg 4", name))


def _cas(case: str) -> str:
    by_seed = case_files.values(tables.files("huscf"), case, "cas")
    return f"{sum(by_seed.values()) / len(by_seed):.0f} %"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
