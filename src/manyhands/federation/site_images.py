"""A site's own images: the source that its operator names, or in the demo those that a recipe deals to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from manyhands.data.image_warnings import image_warnings
from manyhands.errors import DataError, RecipeError
from manyhands.federation.approval import count_images
from manyhands.federation.secret import site_secret
from manyhands.formatting import names_text
from manyhands.models.network import check_denoiser
from manyhands.runs.compose import silo_of, silos_of
from manyhands.silos.device import chosen_device
from manyhands.silos.silo import FROM_THE_SEED, DeviceContext

if TYPE_CHECKING:
    from manyhands.data.formats.place import Place
    from manyhands.data.sources.file_source import FileSource
    from manyhands.federation.policy import Policy
    from manyhands.runs.recipe import Recipe
    from manyhands.silos.silo import Silo


class SiteImages:
    """The images of a site, whatever source a recipe names.

    Args:
        name: The site's name.
        policy: The site's policy, which names the source.
        budget_folder: The folder of the site's secret and releases.
        log: Takes a line for people.
    """

    def __init__(self, name: str, policy: Policy, budget_folder: Path, log: Callable[[str], None]) -> None:
        self.name, self.policy, self.budget_folder, self.log = name, policy, budget_folder, log
        self.loaded_files: list[tuple[Place, int]] = []

    def files(self) -> int:
        """Count the site's files, without opening an image; 0 if a recipe deals the images."""
        return self.policy.source.count() if self.policy.source else 0

    def count(self, recipe: Recipe) -> int:
        """Return about how many images this recipe trains on, without opening any; 0 if it deals them itself."""
        return count_images(recipe, self.files())

    def load(self, recipe: Recipe) -> Silo:
        """Load the images, and check that the method can train on them."""
        silo = self._own(recipe, self.policy.source) if self.policy.source else self._simulated(recipe)
        context = DeviceContext(chosen_device(self.policy.device, repeatable=recipe.repeatable))
        silo = replace(silo, seed=recipe.seed, device_context=context)
        check_denoiser(recipe.method.image_model)
        recipe.method.check_silo(silo)
        for line in image_warnings({self.name: silo.images}):
            self.log(f"warning: {line}")
        return silo

    def _own(self, recipe: Recipe, source: FileSource) -> Silo:
        versions = [entry.version for entry in source.entries()]
        listing = source.listing(recipe.data.known_classes())
        silo = replace(silo_of(self.name, source, recipe, listing), secret=site_secret(self.budget_folder))
        if versions != [entry.version for entry in source.entries()]:
            raise DataError(f"{source.title}: was changed while it was read")
        self.loaded_files = listing.places()
        for line in silo.images.skipped:
            self.log(f"not read: {line}")
        return silo

    def _simulated(self, recipe: Recipe) -> Silo:
        silos = {silo.name: silo for silo in silos_of(recipe)[0]}
        if self.name not in silos:
            raise RecipeError(f"the recipe deals no images to {self.name}, only to {names_text(sorted(silos))}")
        if recipe.method.needs_secret:
            self.log(f"simulated: noise {FROM_THE_SEED}")
        return silos[self.name]
