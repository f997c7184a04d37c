"""Chapters as a reader has them: JupyterLab in a real browser, controls moved by keyboard and mouse."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import sync_playwright

import chapter
import runner

pytestmark = pytest.mark.browser

SCREENSHOTS = runner.ROOT / "build" / "screenshots"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# No news, no update check, no extension manager: nothing outside the loopback interface is asked for.
LAB = {"news_url": None, "check_for_updates_class": "jupyterlab.NeverCheckForUpdate", "extension_manager": "readonly"}
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, seen or not
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
STARTED = "() => [...document.querySelectorAll('.jp-InputPrompt')].some(p => /[\\d*]/.test(p.textContent))"
FINISHED = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent);
    const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
    return failed || (/\\d/.test(prompts.at(-1)) && !prompts.some(text => text.includes('*')));
}"""
BYTES = """async image => {
    const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
    return Array.from(bytes).join(',');
}"""


@pytest.fixture(scope="module")
def place():
    """A folder of its own in build/, emptied first."""
    folder = runner.ROOT / "build" / "browser" / str(os.getpid())
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notebooks").mkdir(parents=True)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def browser(place):
    """System Chromium with an empty profile; skips where there is none."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        pytest.skip(f"no Chromium on this machine: looked for {', '.join(CHROMIUM)}")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            place / "profile",
            executable_path=executable,
            args=list(QUIET),
            viewport={"width": 1400, "height": 1000},
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def lab(place):
    """JupyterLab on a free loopback port; gives the address of a notebook and dies with the tests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    server = {"ip": "127.0.0.1", "port": port, "port_retries": 0, "open_browser": False, "allow_root": True}
    server["root_dir"] = str(place / "notebooks")
    config = {"ServerApp": server, "IdentityProvider": {"token": token}, "LabApp": LAB}
    runner.write_atomically(place / "config" / "jupyter_server_config.json", json.dumps(config))
    for name, values in SETTINGS.items():
        runner.write_atomically(place / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings", json.dumps(values))
    variables = {
        "JUPYTER_CONFIG_DIR": str(place / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(place / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(place / "workspaces"),
    }
    log = SCREENSHOTS.parent / "jupyterlab.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab"],
            env=runner.Workplace(place / "kernels").environment(2, **variables),
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", process, log)
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}?reset&token={token}"
    finally:
        stop(process)


def wait_for(address, process, log):
    """Returns when the server answers; fails with its log when it ended or took a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def stop(process):
    """Ends the server, which ends its kernels; what is left of its process group after that is killed."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def run_all(page, address):
    """Opens a notebook, chooses Run All Cells from the menu, and waits until every cell has run."""
    page.goto(address)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    page.get_by_text("Python 3 | Idle").wait_for(timeout=60_000)  # else JupyterLab asks which kernel to start
    for _ in range(3):  # a menu that is still being built may swallow the click
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with contextlib.suppress(PlaywrightTimeout):
            page.wait_for_function(STARTED, timeout=10_000)
            break
    try:
        page.wait_for_function(FINISHED, timeout=180_000)
    finally:
        page.screenshot(path=SCREENSHOTS / "run_all.png")
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
    assert errors == []


def move(page, explore, key="ArrowRight", times=3):
    """Focuses the first slider of a widget, presses a key, waits for another picture; returns both pictures."""
    image = explore.locator("img").first
    before = image.evaluate(BYTES)
    explore.locator(".noUi-handle").first.focus()
    for _ in range(times):
        page.keyboard.press(key)
    page.wait_for_function(
        "([image, before]) => image.src !== before", arg=[image.element_handle(), image.get_attribute("src")]
    )
    page.wait_for_timeout(1000)  # for the last of the keys
    return before, image.evaluate(BYTES)


def test_start_here_runs_and_its_picture_follows_the_slider(place, browser, lab):
    original = runner.ROOT / "notebooks" / "00_start_here.ipynb"
    node = nbformat.read(original, as_version=4)
    parameters = next(cell for cell in node.cells if "parameters" in chapter.tags(cell))
    parameters.source = parameters.source.replace('PROFILE: str = "lite"', 'PROFILE: str = "smoke"')
    assert '"smoke"' in parameters.source
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    nbformat.write(node, place / "notebooks" / original.name)
    names = chapter.check_patterns(chapter.Notebook.read(original))

    page = browser.new_page()
    run_all(page, lab(original.name))
    assert page.get_by_text(f"PASS {names[-1]}").count() > 0
    explore = page.locator(".reglib-explore", has=page.locator(".noUi-handle")).first
    explore.scroll_into_view_if_needed()
    page.screenshot(path=SCREENSHOTS / "00_before.png")
    before, after = move(page, explore)
    page.screenshot(path=SCREENSHOTS / "00_after.png")
    assert before != after
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    assert page.locator(".reglib-explore [role=alert]").count() == 0
    assert page.get_by_text("Error displaying widget").count() == 0


CLICK = """\
from matplotlib.figure import Figure

from reglib import workbook
from reglib.widgets import Click, Toggle


def render(state):
    if state["fail"]:
        raise ValueError("the state is <bad>")
    figure = Figure(figsize=(20, 5), dpi=100)
    axes = figure.add_axes((0.1, 0.2, 0.5, 0.6))
    axes.set(xlim=(0, 10), ylim=(8, 0))
    axes.plot(*state["point"], "o")
    return figure


workbook.explore(render, {"point": Click((0, 0), (10, 8), (1, 1)), "fail": Toggle()})"""


def test_a_click_lands_where_the_picture_says(place, browser, lab):
    path = place / "notebooks" / "click.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(CLICK)], metadata=chapter.METADATA), path)
    page = browser.new_page()
    run_all(page, lab(path.name))
    explore = page.locator(".reglib-explore")
    image = explore.locator("img")
    box = image.bounding_box()
    assert box["width"] < 1500  # shown smaller than its 2000 pixels, so that natural and shown pixels differ
    # Data (7, 2) lies at 0.1 + 0.5 * 7/10 of the width and, with y downwards, at 0.2 + 0.6 * 2/8 of the height.
    image.click(position={"x": box["width"] * 0.45, "y": box["height"] * 0.35})
    readout = explore.locator(".widget-readout")
    page.wait_for_function("readout => readout.textContent !== '1.0'", arg=readout.first.element_handle())
    page.wait_for_timeout(500)  # for the second number
    readouts = [float(text) for text in readout.all_inner_texts()]
    page.screenshot(path=SCREENSHOTS / "click.png")
    assert readouts == pytest.approx([7, 2], abs=0.1)
    explore.locator("input[type=checkbox]").check()
    explore.locator("[role=alert]").wait_for()
    assert explore.locator("[role=alert]").inner_text() == "ValueError: the state is <bad>"
    explore.locator("input[type=checkbox]").uncheck()
    explore.locator("[role=alert]").wait_for(state="detached")


def test_the_server_is_gone_when_the_tests_are_done():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    stop(child)
    assert child.poll() is not None
