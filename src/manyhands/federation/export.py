"""The model, the picture and the report that a run between sites leaves on its server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manyhands.evaluation import plots
from manyhands.messages.ledger import Ledger
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.report import page
from manyhands.runs import summary
from manyhands.runs.experiment import NOT_EVALUATED
from manyhands.runs.finished import restored
from manyhands.runs.recipe_file import parse_recipe

if TYPE_CHECKING:
    from manyhands.runs.run_folder import RunFolder


def export(folder: RunFolder, device: str, held_out: dict[str, int], problems: list[str], memory: int) -> None:
    """Write the shared model, a picture of its samples, and the report.

    Args:
        folder: The run folder, from which everything else comes.
        device: Where to draw.
        held_out: The number of held-out images of each site, as the site states it.
        problems: The problems of the run, for the report.
        memory: The most memory that the server took, in bytes.
    """
    recipe, state, ledger = parse_recipe(folder.recipe, str(folder.path)), folder.state(), Ledger()
    for line in problems:
        folder.problem(line)
    folder.problem(f"{NOT_EVALUATED}: a server has no images to measure on; use manyhands evaluate --data")
    server = restored(state, recipe.method, recipe.seed, device, ledger)
    classes = recipe.data.known_classes()
    shared = server.generator()
    if shared is not None:
        shared = summary.prepare_for_sampling(shared, recipe.sampling, classes, device)
        shared.save(folder.model)
        if not isinstance(shared, TrainedAutoencoder):
            picture, headings = summary.picture(shared, 8, list(range(len(classes))))
            plots.grid(folder.figures / "samples.png", picture, headings)
    folder.write("ledger.json", ledger.entries())
    run_summary = summary.RunSummary(
        method=recipe.method,
        server=server,
        ledger=ledger,
        roster=state.roster,
        sampling=recipe.sampling,
        evaluation=recipe.evaluation,
    )
    unseen: dict[str, Any] = {
        "data": "", "domains": {}, "classes": list(classes), "class_counts": {}, "skipped": [],
        "held_out_counts": {site: held_out.get(site, 0) for site in state.roster},
    }  # fmt: skip
    page.write(folder, summary.build_report(run_summary, folder, shared, unseen) | {"peak_memory": memory})
