"""What a run between sites leaves on its server, as far as the server knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manyhands import ending
from manyhands.evaluation import figures, report
from manyhands.models.autoencoder import TrainedAutoencoder

if TYPE_CHECKING:
    from manyhands.federation.running import Running
    from manyhands.methods.method import Trained


def export(running: Running) -> None:
    """Write the shared model, a picture of what it draws, and the report."""
    assert running.server is not None
    folder, recipe = running.folder, running.recipe
    classes = recipe.data.known_classes()
    shared = running.server.generator()
    if shared is not None:
        shared = ending.ready(shared, recipe.sampling, classes, str(running.device))
        shared.save(folder.model)
        if not isinstance(shared, TrainedAutoencoder):
            picture, headings = ending.picture(shared, 8, list(range(len(classes))))
            figures.grid(folder.figures / "samples.png", picture, headings)
    folder.write("ledger.json", running.ledger.entries())
    report.write(folder, facts(running, shared))


def facts(running: Running, drawn: Trained | None) -> dict[str, Any]:
    """The report of a server that has seen no image: what only sites know is left out."""
    recipe = running.recipe
    held = {site: found.held_out for site, found in running.enrolled.items()}
    unseen = {
        "data": "", "domains": {}, "classes": list(recipe.data.known_classes()), "class_counts": {}, "skipped": [],
        "held_out": {site: held.get(site, 0) for site in running.roster},
    }  # fmt: skip
    assert running.server is not None
    told = ending.Told(
        recipe.method, running.server, running.ledger, running.roster, recipe.sampling, recipe.evaluation
    )
    return ending.facts(told, running.folder, drawn, unseen)
