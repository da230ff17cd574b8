"""The colours of the page: those that carry meaning differ for every kind of colour vision; text is readable.

LEAST = 15 in CIEDE2000: a difference of 2 is noticed at a close look and one of 10 at a glance, of large
areas side by side; dots and words are small and stand apart, so half as much again is asked for.
"""

import re
from importlib import resources
from itertools import combinations

import numpy as np
import pytest
from colour_vision import VISION, blended, contrast, difference, seen

LEAST = 15
THEMES = ("light", "dark")
FILES = resources.files("torch_rnn.page")
CSS, NAMES, READING = (
    (FILES / name).read_text(encoding="utf-8")
    for name in ("page.css", "script/document.js", "script/panels/reading.js")
)
STRONGEST = 0.62
"""The largest opacity of the colour behind a word, which stands in script/panels/reading.js."""


def colours(theme):
    """Returns the colours that page.css names in a theme, as (r, g, b)."""
    selector = r":root \{" if theme == "light" else r':root\[data-theme="dark"\] \{'
    (block,) = re.findall(selector + r"(.*?)\}", CSS, re.DOTALL)
    found = {name: rgb(code) for name, code in re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)}
    triples = re.findall(r"--([\w-]+): (\d+) (\d+) (\d+);", block)
    return found | {name: tuple(map(int, triple)) for name, *triple in triples}


def rgb(code):
    return tuple(int(code[i : i + 2], 16) for i in (1, 3, 5))


def class_colours(theme):
    """Returns the colours of classes and kinds that document.js names."""
    (row,) = re.findall(rf'^  {theme}: \[("#.*")\],$', NAMES, re.MULTILINE)
    return [rgb(code) for code in re.findall(r"#[0-9A-F]{6}", row)]


def apart(first, second, vision):
    return difference(seen(first, vision), seen(second, vision))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [  # of the test data of Sharma, Wu and Dalal (2005)
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1, 2), (50, 0, 0), 2.3669),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
        ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
    ],
)
def test_the_difference_is_ciede2000(first, second, expected):
    assert difference(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-4)


def test_the_simulation_confuses_what_each_kind_of_vision_confuses():
    red, green, blue, yellow = (200, 60, 0), (110, 120, 0), (0, 110, 190), (200, 180, 0)
    for vision in ("protanopia", "deuteranopia"):
        assert apart(red, green, vision) < 0.6 * apart(red, green, "all cones")
        assert apart(blue, yellow, vision) > 40
    assert apart((0, 150, 160), (0, 140, 200), "tritanopia") < LEAST
    for vision in VISION:  # greys stay grey
        assert np.abs(seen((128, 128, 128), vision)[1:]).max() < 0.1


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", THEMES)
def test_what_pushes_up_and_what_pushes_down_differ(theme, vision):
    named = colours(theme)
    for first, second in combinations(("up", "down", "middle"), 2):
        assert apart(named[first], named[second], vision) > LEAST, (first, second)
    for alpha in (0.2, 0.4, STRONGEST):  # behind a word
        tones = [blended(named[name], alpha, named["card"]) for name in ("up-rgb", "down-rgb")]
        assert apart(*tones, vision) > LEAST, alpha
    for name in ("up-rgb", "down-rgb"):  # and a word that moves nothing
        assert apart(blended(named[name], STRONGEST, named["card"]), named["card"], vision) > LEAST


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", THEMES)
def test_classes_and_kinds_differ(theme, vision):
    found = class_colours(theme)
    assert len(found) == 8
    for first, second in combinations(found, 2):
        assert apart(first, second, vision) > LEAST, (first, second)


@pytest.mark.parametrize("theme", THEMES)
def test_text_and_marks_have_the_contrast_that_wcag_asks_for(theme):
    named = colours(theme)
    for text in ("text", "soft", "up", "down"):
        for under in ("card", "background", "field"):
            assert contrast(named[text], named[under]) >= 4.5, (text, under)
    for mark in [*class_colours(theme), named["middle"]]:
        assert contrast(mark, named["card"]) >= 3
    assert f"({STRONGEST} * strength)" in READING
    for name in ("up-rgb", "down-rgb"):
        assert contrast(named["text"], blended(named[name], STRONGEST, named["card"])) >= 4.5, name
