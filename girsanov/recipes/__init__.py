"""Recipes: what ``girsanov run NAME`` puts together. ``RECIPES`` lists them as ``module:Class``, imported when run."""

import importlib
import importlib.util
from typing import TYPE_CHECKING

from girsanov.errors import GirsanovError
from girsanov.settings import unknown

if TYPE_CHECKING:
    from girsanov.recipes.base import Recipe

RECIPES: dict[str, str] = {
    "digits": "girsanov.recipes.digits:DigitsRecipe",
    "mixture": "girsanov.recipes.mixture:MixtureRecipe",
    "words": "girsanov.recipes.words:WordsRecipe",
    "language": "girsanov.recipes.language:LanguageRecipe",
    "text-to-image": "girsanov.recipes.text_to_image:TextToImage",
    "class-to-image": "girsanov.recipes.class_to_image:ClassToImage",
    "sd15": "girsanov.recipes.presets:SD15",
    "sdxl": "girsanov.recipes.presets:SDXL",
    "sd3": "girsanov.recipes.presets:SD3",
    "flux": "girsanov.recipes.presets:Flux",
    "flux2-klein": "girsanov.recipes.presets:Flux2Klein",
    "sit": "girsanov.recipes.presets:SiT",
    "lq": "girsanov.recipes.control:LQRecipe",
    "pairs": "girsanov.recipes.control:PairsRecipe",
}
"""Every recipe by name."""


def get_recipe(name: str) -> "Recipe":
    """The recipe of a name. Raises GirsanovError with the nearest name."""
    if name not in RECIPES:
        raise GirsanovError(f"{name!r} {unknown(name, RECIPES, 'recipe')}")
    module, _, cls = RECIPES[name].partition(":")
    return getattr(importlib.import_module(module), cls)()
