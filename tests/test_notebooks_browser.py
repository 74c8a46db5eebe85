"""A notebook in a real JupyterLab, in a real Chromium: all cells run, the heat map is seen."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from notebooks import FOLDER, ROOT, kernel_environment

pytestmark = pytest.mark.slow

NAME = "1-first-look.ipynb"
TOKEN = "of-this-test"
MINUTE = 60_000  # milliseconds, playwright's unit


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab on a copy, which it may save, with settings of its own."""
    pytest.importorskip("jupyterlab", reason="pip install 'rankscope[notebooks]'")
    (tmp_path / "notebooks").mkdir()
    shutil.copy(FOLDER / NAME, tmp_path / "notebooks")
    (tmp_path / "data").symlink_to(ROOT / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "jupyterlab", str(tmp_path / "notebooks"), "--no-browser"),
        *("--allow-root", f"--port={port}", "--ServerApp.port_retries=0"),
        *("--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}"),
    ]
    settings = ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    own = dict.fromkeys((*settings, "JUPYTER_RUNTIME_DIR"), str(tmp_path / "jupyter"))
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            env=kernel_environment() | own,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/api/status?token={TOKEN}", server, tmp_path / "log")
        yield address
    finally:
        # The group holds the kernels too; a server that waits for one to end need not be asked.
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(url, server, log, seconds=120):
    """Return when the server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
    raise AssertionError(f"JupyterLab does not answer: {log.read_text()}")


@pytest.fixture
def page(chromium):
    # High enough for every cell: JupyterLab takes out of the page what is out of sight.
    opened = chromium.new_page(viewport={"width": 1200, "height": 6000})
    opened.set_default_timeout(2 * MINUTE)
    yield opened
    opened.close()


def menu(page, *items):
    """Choose an entry of a menu."""
    page.locator(".lm-MenuBar-itemLabel", has_text=items[0]).click()
    page.locator(".lm-Menu-itemLabel", has_text=items[1]).first.click()


def test_all_cells_run_and_the_heat_map_is_seen(page, lab):
    page.goto(f"{lab}/lab/tree/{NAME}?token={TOKEN}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for()
    pictures = page.locator(".jp-OutputArea-output :is(img, svg)")
    menu(page, "Edit", "Clear Outputs of All Cells")
    pictures.first.wait_for(state="detached")

    menu(page, "Run", "Run All Cells")
    last = page.locator(".jp-Notebook .jp-CodeCell").last
    last.locator(".jp-OutputArea-output", has_text="of random directions").wait_for()

    assert pictures.count() == 1
    seen = pictures.first.evaluate("(i) => i.complete && i.naturalWidth > 0 && i.clientWidth")
    assert seen > 500
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert page.locator(".jp-OutputArea-output table").count() >= 3
