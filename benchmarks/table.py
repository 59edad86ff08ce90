"""Tables of the committed results: ``python -m benchmarks.table`` writes them into README.md and docs/methods.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WHAT = {
    "overhead": "rounds of a run against a bare PyTorch loop, 10 silos",
    "memory": "peak memory, 100 silos against 2",
    "bytes_equal": "ledger against bytes really encoded, over 6 methods and settings",
    "kill_resume": "killed with `kill -9`, resumed: final weights identical",
    "torn": "truncated or bit-flipped checkpoints noticed, named and survived",
    "chatty": "steps/s of a split network with two calls a mini-batch, against unsplit",
    "gradient_difference": "largest difference of its gradients from the unsplit ones",
    "start": "`manyhands --help`, seconds",
    "demo_seconds": "`make demo` in a fresh clone, seconds, pip included",
    "fid_reference": "FID of a set with itself, and three against a float64 computation with scipy: largest difference",
    "kid_unbiased": "mean KID of equal sets of real digits, in standard errors from 0",
    "ranking": "share of FID, KID, coverage, CAS that rank MNIST real > GAN at 4,000 steps > at 1,000 > noise",
    "metric_seconds": "all metrics of 1,000 images at 28 x 28, CAS included, classifier and floors cached, seconds",
    "metric_seconds_without_cas": "the same without CAS",
    "sampling_memory": "peak memory of drawing 10,000 samples at 28 x 28, against 1,000",
    "sampling_held": "share of the samples that drawing keeps in memory, at 64 x 64",
    "report": "report of a run of 50 rounds and 10 silos: share of the three bars below that it meets",
    "report_megabytes": "its size, MB",
    "report_seconds": "its opening in Chromium, seconds",
    "report_errors": "its errors in the console",
    "memorisation": "a model over-trained on 51 images is flagged, the digits recipe is not: share right",
    "contraction": "share of the rates on heterogeneous quadratics, mu 0 to 20, that stay within their bounds",
    "bias_falls": "share of the steps in mu that bring the fixed point nearer to the optimum",
    "rounding_8": "error of `updates` against that of `weights` after 1,500 rounds, both ways, 8 bits",
    "rounding_4": "the same at 4 bits",
    "vanilla_iid": "FID of `fedavg`, 10 silos IID, against pooled data with joined batches, 3 seeds",
    "beats_local": "FID of a silo on its own, asked for every class, against `fedavg`, Dirichlet 0.1",
    "prox": "FID of the best proximal term of the sweep against none, Dirichlet 0.1, 50 local steps",
    "quant8_bytes": "bytes of float32 against `updates` at 8 bits, both ways",
    "quant8_fid": "FID of `updates` at 8 bits against float32",
    "quant4_bytes": "bytes of float32 against `updates` at 4 bits, both ways",
    "quant4_fid": "FID of `updates` at 4 bits against float32",
    "beats_local_together": "the same, each image drawn by the silo that holds such ones (3 seeds)",
    "stretch_bytes": "bytes of float32 against the coarsest `updates`, both ways",
    "stretch_fid": "its FID against float32",
    "codec_seconds": "encoding and decoding 35.7 M weights at 8 bits on one core, seconds",
    "codec_copies": "peak memory of that, in copies of the update",
    "fifty_silos": "peak memory of 50 silos, 10 a round, 100 rounds of MNIST by writer, against 10 silos",
    "exactness": "Gaussian images, cuts .1 to .9: error of mean and covariance at the hand-over and at 0, `collafuse`",
    "exactness_authors": "the same in the authors' mode, at its best cut: the test tells them apart",
    "quality": "FID of `collafuse`, cuts <= .4, against the better of the global model and `fedavg` at equal images",
    "quality_long": "the same against a `fedavg` whose silos take as many steps as those of `collafuse`",
    "quality_alone": "FID of `collafuse`, cuts <= .6, against silos alone",
    "quality_authors": "FID of the exact mode against the authors' at every inner cut",
    "silo_compute": "a silo's work in drawing, against the cut's share of a whole network's",
    "silo_compute_small": "the same of a light network taught to finish in two steps, against an equal one, cut .2",
    "silo_compute_small_fid": "its FID against that of equal networks",
    "traffic": "bytes of the release against images x size x 4",
    "traffic_fresh": "releases of an image at the authors' settings, against one",
    "secrets": "images, labels, names among all bytes that leave five silos with 1,000 marked images",
    "secrets_algebra": "images recovered by exact algebra from the same bytes",
    "secrets_control": "share of the images that the same searches find where they are sent",
    "reidentification": "right one of 1,000 images picked by its release at the recommended cut",
    "reidentification_theory": "worst error of theory over 8 cuts",
    "speed": "server's steps/s while 8 silos release and train, against a bare loop",
    "split_equals_whole": "one silo, each of 16 cuts: largest difference of a weight from the uncut GAN's, 20 steps",
    "split_equals_whole_many": "16 silos, each with another cut, against one process with the same joined batches",
    "wire": "bytes of an iteration against the paper's table, at each of the 16 cuts, headers included",
    "wire_messages": "messages of a silo in an iteration, both ways",
    "cost_model": "the authors' model of time, 100 devices, at the cuts of their search: seconds an iteration",
    "cost_model_off": "how far that is from the notes' figure",
    "cost_model_cuts_off": "how many of the seven kinds of devices get other cuts than in the notes",
    "exact_seconds": "the exact solver for it, seconds on one core",
    "genetic_better": "how often the genetic solver finds better cuts than the exact one, over 100 random fleets",
    "brute_differs": "how often the exact one differs from brute force, over 50 small fleets",
    "predicted": "time of an iteration on throttled processes: worst error of the model over 5 mixes of devices",
    "predicted_choice": "the chosen cuts against the fastest of those tried, worst of the mixes",
    "identical": "hashes of weights that differ between one process and four, for `fedavg`, `collafuse`, `huscf`",
    "rate": "operations/s in which two sites send 1 MB each and get 1 MB, over mutual TLS on loopback",
    "rate_20ms": "the same at 20 ms there and back, against gRPC alone",
    "u_gan": "mini-batches/s of a site, `huscf` with two sites",
    "fedavg_round": "seconds that a round of 35.7 M weights takes longer than in one process, two sites",
    "fedavg_memory": "peak memory of its server, against 2.5 times the weights and 300 MB",
    "fedavg_memory_8": "the same with eight sites",
    "half_gone": "four of eight sites die: seconds from the deadline to the end of the round",
    "half_gone_mean": "whether its mean is another than that of the four who are left",
    "rejoin": "a site that was left out is begun again: seconds until a round has it",
    "cuts": "network cut for 5, 30, 120 s: seconds from its healing to the end of a round, worst",
    "malformed": "1,000 broken messages of a site, 1,000 of strangers: those that broke anything, or had no refusal",
    "strangers": "of seven kinds, those who heard a word: wrong authority, expired, another's name, no certificate",
    "approval": "recipes changed by one byte after approval, share refused",
    "sockets": "parties of a federation that listen where they should not",
    "kills": "`kill -9` of a site, its worker, the server's, all: share that ended by itself with the same weights",
    "leaks_control": "share of the variance that comes back of a one-block head with known weights: the control",
    "leaks_unknown": "the same where it has not the weights, worst of the heads",
    "leaks_tail": "the same of made images, by the tail's weights",
    "clusters": "agreement of the clusters found with two domains, 20 silos (adjusted Rand index)",
    "clusters_three": "the same with three domains, not IID",
    "quality_small": "CAS of the pooled GAN above that of `huscf`, points, worst of scenarios 1 and 3, small",
    "quality_small_rivals": "CAS of `huscf` above the best rival's, points, scenario 4 (two domains, not IID), small",
    "quality_paper": "CAS above the authors', points, worst of scenarios 1, 3 and 5 at full size",
    "huscf.traffic": "bytes of activations and gradients in 32 bits against 8, both ways",
    "traffic_quality": "CAS lost by 8 bits, points",
    "huscf.speed": "iterations/s of 8 silos with mixed cuts, against the uncut GAN on the joined batch",
    "digits": "asked digit recognised on 500 samples (DDIM 25, guidance 2), worst of 3 seeds",
    "train_and_sample_seconds": "training and drawing 500 samples, seconds, slowest of 3",
}


def figures() -> str:
    """All figures, for README."""
    lines = ["| claim | bar | measured | holds | program |", "|---|---|---|---|---|"]
    for program in sorted({path.stem.rsplit("-", 1)[0] for path in RESULTS.glob("*.json")}):
        result = newest(program)
        for name, figure in result["figures"].items():
            verdict = {True: "yes", False: "**no**", None: "not measured"}[result["holds"].get(name)]
            shown = "-" if figure is None else f"{figure:.4g}"
            cells = [
                WHAT.get(f"{program}.{name}") or WHAT[name],
                result["bars"][name],
                shown,
                verdict,
                f"`benchmarks/{program}.py`",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def newest(program: str) -> dict[str, Any]:
    """The result at full size where there is one, else the small one."""
    paths = [RESULTS / f"{program}-{scale}.json" for scale in ("paper", "small")]
    result: dict[str, Any] = json.loads(next(path for path in paths if path.exists()).read_text())
    return result


def cases() -> str:
    """What each case of federated diffusion came to, for docs/methods.md."""
    told = newest("federated_diffusion")["cases"]
    lines = [
        "| case | FID | deviation over 3 seeds (-: one seed) | asked class recognised | bytes both ways |",
        "|---|---|---|---|---|",
    ]
    for name, row in told.items():
        deviation = "-" if row["deviation"] is None else f"{row['deviation']:.2f}"
        less = told["vanilla"]["bytes"] / row["bytes"]
        told_bytes = f"{row['bytes'] / 1e6:.1f} MB" + (
            f", {less:.1f} x fewer" if less > 1.01 and "bits" in name else ""
        )
        lines.append(f"| {name} | {row['fid']:.2f} | {deviation} | {row['label_match']:.3f} | {told_bytes} |")
    return "\n".join(lines)


def cuts() -> str:
    """What each case of CollaFuse came to, for docs/methods.md."""
    lines = [
        "| case | FID | deviation over 3 seeds (-: one seed) | asked class recognised | up | a silo's work, FLOP |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in newest("collafuse")["cases"].items():
        deviation = "-" if row["deviation"] is None else f"{row['deviation']:.2f}"
        up, work = f"{row['bytes_up'] / 1e6:.1f} MB", f"{row['flops_silo'] / 1e12:.2f} T"
        lines.append(f"| {name} | {row['fid']:.2f} | {deviation} | {row['label_match']:.3f} | {up} | {work} |")
    return "\n".join(lines)


def rivals() -> str:
    """What each case of HuSCF-GAN came to, for docs/methods.md."""
    lines = [
        "| case | CAS, % | of real images | FID | asked class recognised | bytes both ways | a silo's work, FLOP |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in newest("huscf")["cases"].items():
        if row["fid"] is None:
            continue
        mean, work = sum(row["cas"].values()) / len(row["cas"]), f"{row['flops_silo'] / 1e9:.0f} G"
        cells = [name, f"{mean:.1f}", f"{row['cas_real']:.1f}", f"{row['fid']:.2f}", f"{row['label_match']:.3f}"]
        lines.append("| " + " | ".join([*cells, f"{row['bytes'] / 1e9:.2f} GB", work]) + " |")
    return "\n".join(lines)


TABLES = {"figures": figures, "cases": cases, "collafuse": cuts, "huscf": rivals}
PAGES = {ROOT / "README.md": ("figures",), ROOT / "docs" / "methods.md": ("cases", "collafuse", "huscf")}


def with_table(page: Path) -> str:
    """A page with its tables put between their marks."""
    text = page.read_text()
    for name in PAGES[page]:
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{TABLES[name]()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_table(page))
        sys.stdout.write(f"{page.relative_to(ROOT)}\n")
