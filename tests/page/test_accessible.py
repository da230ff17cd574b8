"""The page for those who use a keyboard, a screen reader or a phone."""

import pytest
from made_runs import Letters, Moods, make_run
from test_browser import check_nothing_went_wrong, open_page

from torch_rnn.data.addition import Addition
from torch_rnn.page import write_page

pytestmark = pytest.mark.browser

KINDS = {
    "texts": {},
    "three classes": {"data": Moods},
    "sequences": {"data": lambda: Addition(4, 40, 10, {6: 12}, 8, 1), "readout": "every"},
    "writing": {"data": Letters, "readout": "every", "num_layers": 2},
}


@pytest.fixture(params=KINDS)
def path(request, tmp_path):
    settings = dict(KINDS[request.param])
    data = settings.pop("data", None)
    made = make_run(tmp_path, data and data(), **settings)
    return write_page(tmp_path, made.data)


def test_every_control_has_a_name_and_every_id_is_one_of_a_kind(browser, path):
    open_page(browser, path)
    controls = browser.find_elements(
        "css selector", "button, input, select, textarea, [tabindex], [role=img], section, nav"
    )
    assert len(controls) > 10
    nameless = [
        control.get_attribute("outerHTML")[:80] for control in controls if not control.accessible_name
    ]
    shown = [html for html in nameless if "hidden" not in html]
    assert shown == []
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3')].map((h) => h.tagName)"
    )
    assert levels[0] == "H1"
    assert set(levels[1:]) == {"H2"}
    check_nothing_went_wrong(browser, path)


def test_what_can_be_pointed_at_can_be_reached_with_the_tabulator(browser, path):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, path)
    wanted = browser.execute_script("""
        return ["theme", "text", "texts", "words", "prompt", "temperature", "length", "generate", "generated"]
          .concat(document.querySelector("#slow-point:not([hidden])") ? ["slow-point"] : [])
          .filter((id) => document.getElementById(id));
    """)
    reached = []
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        element = browser.switch_to.active_element
        reached.append(element.get_attribute("id"))
        outline = element.value_of_css_property("outline-style")
        assert outline != "none", element.get_attribute("outerHTML")[:80]
        if set(wanted) <= set(reached):
            break
    assert set(wanted) <= set(reached)
    check_nothing_went_wrong(browser, path)


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, path):
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        open_page(browser, path)
        browser.execute_script("for (const [element, plot] of PLOTS) paint(element, plot)")
        widths = browser.execute_script("""
            const wide = [...document.querySelectorAll("main *, header *")].filter(
              (element) => element.getBoundingClientRect().right > innerWidth + 1
                && !element.closest(".scroll, .command, nav, .js-plotly-plot"));
            const named = wide.map((element) => element.outerHTML.slice(0, 80));
            return [document.documentElement.scrollWidth, named];
        """)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert widths == [360, []]
