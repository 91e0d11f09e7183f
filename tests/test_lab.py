"""Notebooks opened in JupyterLab with a real browser, as a reader does it. Marked `browser`: run by `make browser` only."""

import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from .forked import ROOT, script

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
MISSING += [name for name in ("selenium", "jupyterlab") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.browser

STATE = """
const panel = window.jupyterapp.shell.currentWidget;
if (!panel || !panel.content || !panel.content.model) return null;
const cells = [...panel.content.model.cells].filter(cell => cell.type === 'code' && cell.sharedModel.source.trim());
const outputs = cells.flatMap(cell => cell.outputs.toJSON());
return {
    path: panel.context.path,
    ready: panel.context.isReady && Boolean(panel.sessionContext.session && panel.sessionContext.session.kernel),
    status: panel.sessionContext.kernelDisplayStatus,
    cells: cells.length,
    run: cells.filter(cell => cell.executionCount !== null).length,
    outputs: outputs.length,
    errors: outputs.filter(output => output.output_type === 'error').map(output => output.ename + ': ' + output.evalue),
};
"""


def wait_for(get, holds, what, seconds=300):
    "The first state that holds; a failed test with the last one after so many seconds."
    end, state = time.monotonic() + seconds, None
    while time.monotonic() < end:
        state = get()
        if state and holds(state):
            return state
        time.sleep(0.2)
    pytest.fail(f"{what}: not within {seconds} seconds; last seen {state}")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    "A clean copy of the repository's files: running a notebook leaves the reader's own as they are."
    if MISSING:
        pytest.fail(f"{' and '.join(MISSING)} are missing: `make browser` installs them")
    return script("check").copied(ROOT, tmp_path_factory.mktemp("checkout") / "maga")


@pytest.fixture(scope="module")
def lab(checkout, tmp_path_factory):
    "The address of a JupyterLab on loopback that serves the notebooks, and its token."
    home, token = tmp_path_factory.mktemp("home"), secrets.token_hex(16)
    places = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    places |= {"IPYTHONDIR": str(home / "ipython"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "spaces")}
    environment = {**os.environ, **places, "JUPYTER_TOKEN": token, "PYTHONPATH": str(checkout)}
    options = ["--no-browser", "--expose-app-in-browser", "--ip=127.0.0.1", "--port=0", "--ServerApp.allow_root=True", f"--ServerApp.root_dir={checkout / 'nbs'}"]
    log = home / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=checkout, env=environment, stdout=out, stderr=out)
    try:
        found = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()), bool, "JupyterLab starts", 60)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{found[0]}api/contents")  # nobody without the token
        yield found[0], token
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser(lab):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    address, token = lab
    driver.get(f"{address}lab?token={token}&reset")
    yield driver
    driver.quit()


@pytest.mark.parametrize(
    "notebook",
    ["300_contract.ipynb", "experiments/paper/table5.ipynb", "experiments/paper/figure3.ipynb"],
)
def test_run_all_cells_shows_outputs_and_no_error(browser, lab, notebook):
    from selenium.webdriver.common.by import By

    def state():
        return browser.execute_script(f"if (!window.jupyterapp) return null; {STATE}")

    browser.get(f"{lab[0]}lab/tree/{notebook}?reset")
    wait_for(state, lambda s: s["path"] == notebook and s["ready"] and s["status"] == "idle", f"{notebook} opens with a kernel", 120)
    browser.execute_script("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    wait_for(state, lambda s: s["outputs"] == 0 and s["run"] == 0, "the kept outputs are cleared", 20)

    def press(css, words):
        def visible():
            return [e for e in browser.find_elements(By.CSS_SELECTOR, css) if e.is_displayed() and words in e.text]

        wait_for(visible, bool, f"{words!r} is in the menu", 20)[0].click()

    press(".lm-MenuBar-itemLabel", "Run")
    press(".lm-Menu-itemLabel", "Run All Cells")
    end = wait_for(state, lambda s: s["errors"] or (s["run"] == s["cells"] and s["status"] == "idle"), f"{notebook} runs to its end", 300)
    assert end["errors"] == []
    assert end["outputs"] > 0
    shown = browser.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-OutputArea-output")
    assert any(e.is_displayed() and e.size["height"] > 0 for e in shown)


def test_results_of_a_notebook_opened_in_its_own_folder_are_the_repositorys(checkout):
    assert (checkout / "results" / "figure3" / "table.csv").is_file()
    assert not (checkout / "nbs" / "experiments" / "paper" / "results").exists()
