"""Presets of real models: valid settings, each with a source, that reach the configuration and stand on the page."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from girsanov.config import describe, dump_config, load_config, parse_overrides
from girsanov.launch import configure
from girsanov.methods import METHODS
from girsanov.presets import EVERY, published, settings_of, sources
from girsanov.recipes import RECIPES, get_recipe

ROOT = Path(__file__).resolve().parents[2]
MODELS = [name for name, place in RECIPES.items() if "presets:" in place]
PRESETS = [(model, method) for model in MODELS for method in published(model) if method != EVERY]


def at(data: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        data = data[part]
    return data


def holds(found: Any, wanted: Any) -> bool:
    """Whether a resolved value is the wanted one; options that were not given may have been filled in."""
    if isinstance(wanted, dict):
        return all(holds(found[k], v) for k, v in wanted.items())
    if isinstance(wanted, str) and isinstance(found, dict):
        return found["kind"] == wanted
    return found == wanted


@pytest.mark.parametrize(("model", "method"), PRESETS)
def test_a_preset_is_a_configuration_with_every_value(model: str, method: str) -> None:
    """Every setting of the file arrives, the method's above those of every method; the dump gives it back."""
    config = configure(get_recipe(model), [{"method": method}])
    data = describe(config)
    files = published(model)
    own = {k: v for part in files[method].values() for k, v in part.items()}
    shared = {k: v for part in files[EVERY].values() for k, v in part.items()}
    for key, value in {**shared, **own}.items():
        assert holds(at(data, key), value), key
    assert load_config(type(config), yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize("model", MODELS)
def test_every_value_has_a_source_and_every_method_a_name(model: str) -> None:
    for method, parts in published(model).items():
        assert method == EVERY or method in METHODS
        assert set(parts) <= set(sources())
        for source, part in parts.items():
            for other, values in parts.items():
                assert other == source or not set(part) & set(values), f"{method}: two sources for one setting"


def test_every_source_is_used_and_the_default_methods_have_presets() -> None:
    used = {source for model in MODELS for parts in published(model).values() for source in parts}
    assert used == set(sources())
    for model in MODELS:
        assert configure(get_recipe(model), []).method.kind in published(model)


def test_what_the_user_says_goes_first() -> None:
    said = parse_overrides(["train.lr=0.5", "method.surrogate.low=0.25", "reward=incompressible", "lora=3"])
    config = configure(get_recipe("sd15"), [{"model": "FOLDER"}, said])
    assert (config.model, config.train.lr, config.lora, config.reward.kind) == ("FOLDER", 0.5, 3, "incompressible")
    assert config.method.options["surrogate"]["low"] == 0.25 and config.train.weight_decay == 1e-4


def test_a_method_without_a_preset_has_the_settings_of_every_method() -> None:
    config = configure(get_recipe("sd3"), [{"method": "rwr"}])
    assert config.lora == 32 and config.lora_alpha == 64 and config.method.options["grid"]["kind"] == "pipeline"
    assert settings_of("text-to-image", "nft") == {}


def test_the_page_shows_what_the_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import tables

    monkeypatch.setattr(tables, "TABLES", {k: v for k, v in tables.TABLES.items() if k.startswith("presets-")})
    assert len(tables.TABLES) == len(MODELS) and tables.main(check=True) == 0
    page = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    for model, method in PRESETS:
        section = page.partition(f"<!-- presets-{model}:")[2].partition("<!-- /presets-")[0]
        assert f"| `{method}` |" in section
    sys.modules.pop("tables", None)
