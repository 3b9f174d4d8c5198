import math
from pathlib import Path

import pytest

from chipgen.errors import Refusal
from chipgen.recipe import SHIPPED, digest
from chipgen.run import load_recipe


def write(folder: Path, text: str, name: str = "r.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_shipped_sniper_is_the_papers_pyramid_and_the_default():
    recipe = load_recipe("sniper")
    assert recipe == type(recipe)()
    assert [level.range for level in recipe.chips.levels] == [(0, 80), (32, 150), (120, math.inf)]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads(path):
    assert load_recipe(path.stem).chips.levels


def test_extends_merges_key_by_key(tmp_path):
    write(tmp_path, "[chips]\nsize = 128\nstride = 8\n", "base.toml")
    recipe = load_recipe(write(tmp_path, 'extends = "base.toml"\n[chips]\nstride = 4\n'))
    assert (recipe.chips.size, recipe.chips.stride) == (128, 4)


def test_set_overrides_a_key_and_bare_words_are_strings(tmp_path):
    path = write(tmp_path, "")
    recipe = load_recipe(path, ["chips.size=64", "shards.store=canvas"])
    assert (recipe.chips.size, recipe.shards.store) == (64, "canvas")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[chips]\nstirde = 32\n", "did you mean 'stride'"),
        ("[chpis]\nstride = 32\n", "did you mean 'chips'"),
        ("[chips]\nstride = 32.5\n", "chips.stride: expected int, got 32.5"),
        ('[chips]\nstride = "32"\n', "expected int"),
        ("[chips]\nstride = true\n", "expected int"),
        ('[chips]\nstrategy = "snipper"\n', "none of sniper, snip, whole"),
        ("[chips]\nlevels = [{ factor = 1.0, range = [0, 1, 2] }]\n", "expected 2 values"),
        ("[chips]\nlevels = [{ factor = 1.0, range = [9, 3] }]\n", "low < high"),
        ("[chips]\nlevels = [{ factor = 1.0, long = 3 }]\n", "either"),
        ("[chips]\nlevels = [{ short = 3 }]\n", "limit"),
        ("[chips]\nlevels = []\n", "at least one level"),
        ("[chips]\nsize = 16\n", "wider than a chip"),
        ("[shards]\nquality = 0\n", "quality = 0 must be from 1 to 100"),
        ("[chips\n", "not valid TOML"),
        ("chips = 3\n", "expected a table"),
        ('extends = "nowhere.toml"\n', "does not exist"),
    ],
)
def test_what_is_wrong_is_refused_with_place_and_remedy(tmp_path, text, told):
    with pytest.raises(Refusal, match=r"r\.toml") as refusal:
        load_recipe(write(tmp_path, text))
    assert told in str(refusal.value)


def test_extending_twice_is_refused(tmp_path):
    write(tmp_path, 'extends = "c.toml"\n', "b.toml")
    write(tmp_path, "", "c.toml")
    with pytest.raises(Refusal, match="one level"):
        load_recipe(write(tmp_path, 'extends = "b.toml"\n'))


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(Refusal, match="sniper"):
        load_recipe("snipre")


@pytest.mark.parametrize("override", ["chips.size", "=3", "chips.sise=3"])
def test_a_bad_override_is_refused(tmp_path, override):
    with pytest.raises(Refusal):
        load_recipe(write(tmp_path, ""), [override])


def test_an_override_that_is_meant_as_toml_is_refused_as_toml(tmp_path):
    with pytest.raises(Refusal, match="not valid TOML"):  # a number needs its 0 before the point
        load_recipe(write(tmp_path, ""), ["chips.levels=[{factor=.5}]"])


def test_digest_depends_on_content_and_not_on_spelling(tmp_path):
    one = load_recipe(write(tmp_path, "[chips]\nsize = 512\n"))
    two = load_recipe(write(tmp_path, ""))
    other = load_recipe(write(tmp_path, "[chips]\nsize = 256\n"))
    assert digest(one.chips) == digest(two.chips) != digest(other.chips)
