"""Grids of values: parsing, and the configs that they make."""

import doctest

import pytest

from uld_jax.errors import UserError
from uld_jax.studies import grid

SPEC = "zeroshot:k=4,preset=tiny"


def refused(*grids, spec=SPEC, **options):
    with pytest.raises(UserError) as caught:
        grid.cells(spec, grids, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_examples():
    result = doctest.testmod(grid)
    assert result.attempted >= 3
    assert result.failed == 0


def test_cells_are_the_product_of_the_grids():
    found = grid.cells(SPEC, ["detector.learning_rate=0.1,1e-3", "seed=0,1"], ["detector.steps=7"])
    assert [c.name for c in found] == [f"detector.learning_rate={r},seed={s}" for r in ("0.1", "1e-3") for s in (0, 1)]
    assert [(c.config.detector.optimizer.learning_rate, c.config.seed) for c in found] == [
        (0.1, 0),
        (0.1, 1),
        (1e-3, 0),
        (1e-3, 1),
    ]
    assert {c.config.detector.steps for c in found} == {7}
    assert all(c.config.is_locked for c in found)


def test_values_take_the_type_of_their_key():
    (one, two) = grid.cells(SPEC, ["stages=('zeroshot','detector'),('zeroshot',)"])
    assert one.config.stages == ("zeroshot", "detector")
    assert two.config.stages == ("zeroshot",)
    assert [one.name, two.name] == ["stages=zeroshot+detector", "stages=zeroshot"]
    (one, two) = grid.cells(SPEC, ["data.rows=(4, 2),(6, 3)"])
    assert (one.config.data.rows, two.config.data.rows) == ((4, 2), (6, 3))
    (one, two, three) = grid.cells(SPEC, ["data.normaliser='3,5',\"box\",''"])
    assert [c.config.data.normaliser for c in (one, two, three)] == ["3,5", "box", ""]
    assert [c.name.partition("=")[2] for c in (one, two, three)] == ["3+5", "box", "none"]
    (one, two) = grid.cells(SPEC, ["data.partner=true,False"])
    assert (one.config.data.partner, two.config.data.partner) == (True, False)


def test_arguments_build_the_config_anew(tmp_path):
    (one, two) = grid.cells(SPEC, ["k=4,6"])
    assert [c.config.k for c in (one, two)] == [4, 6]
    assert [c.config.zeroshot.candidates for c in (one, two)] == [12, 18]  # which the file makes of k
    (one, two) = grid.cells(SPEC, ["preset=tiny,small"])
    assert [c.config.data.frame_size for c in (one, two)] == [40, 80]
    path = tmp_path / "mine.py"
    path.write_text(
        "from uld_jax.configs import zeroshot, common\n\n\n"
        "def get_config(arg=None):\n"
        "    arg = common.parse(arg, size=3)\n"
        "    config = zeroshot.get_config(f'preset={arg.preset}').unlock()\n"
        "    config.seed = 10 * arg.size\n"
        "    return config.lock()\n"
    )
    assert [c.config.seed for c in grid.cells(f"{path}:preset=tiny", ["size=3,5"])] == [30, 50]
    path.write_text(path.read_text().replace("common.parse(arg, size=3)", "common.parse('preset=tiny', size=3)"))
    # This one takes any argument, and uses none: only what the config has can be varied.
    assert [c.config.seed for c in grid.cells(str(path), ["seed=3,5"])] == [3, 5]
    assert "takes no argument of that name" in refused("size=3,5", spec=str(path))


def test_grids_that_cannot_be_used_are_refused():
    assert "a sweep needs --grid=KEY=VALUE" in refused()
    assert "write --grid=KEY=VALUE" in refused("seed")
    assert "--grid=seed= has no value; " in refused("seed=")
    assert "has no value beside one of its commas" in refused("seed=0,,1")
    assert "--grid=seed is given twice" in refused("seed=0,1", "k=4,5", "seed=2")
    assert "has the value 1 twice" in refused("seed=1,0,1")
    assert "the config has no key 'sead' and takes no argument" in refused("sead=0,1")
    assert "wdith" in refused("detector.wdith=8,16")
    assert "preset is 'huge'" in refused("preset=huge,tiny")
    assert "seed=one: " in (said := refused("seed=one,2"))
    assert "invalid literal" in said
    assert "leave one of them out" in refused("seed=0,1", overrides=["seed=3"])
    assert "quotes and brackets come in pairs" in refused("stages=('a','b'")
    assert "quotes and brackets come in pairs" in refused("stages=a],b")
    assert "leave out the comma" in refused("dataset=(a,b),c")
    assert "would share the folder" in refused("stages=('zeroshot','detector'),['zeroshot','detector']")
    assert "there is no config 'nothing'" in refused("seed=0", spec="nothing")
