"A Jupyter server on a free port and a headless Chromium page for the browser tests; both end with the `with` block."
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import limits

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update "
    "--disable-sync --disable-dev-shm-usage"
).split()
CHROME = next(
    (
        p
        for p in (
            os.environ.get("CHROMIUM"), shutil.which("chromium"), shutil.which("chromium-browser"),
            shutil.which("google-chrome")
        )
        if p
    ),
    None
)
PACKAGES = {"playwright": "playwright", "jupyterlab": "jupyterlab", "voila": "voila"}


def missing():
    "Why browser tests cannot run here, or an empty string."
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking: return f"browser tests need {' and '.join(lacking)}: pip install {' '.join(lacking)}"
    return "" if CHROME else "browser tests need Chromium: apt-get install chromium, or set CHROMIUM to its path"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def write_notebook(path, *cells):
    "A notebook of code cells; the package is found without being installed."
    cells = [f"import sys; sys.path.insert(0, {str(ROOT)!r})", *cells]
    made = [
        dict(cell_type="code", id=f"c{i}", metadata={}, execution_count=None, outputs=[], source=text)
        for i, text in enumerate(cells)
    ]
    kernel = dict(display_name="python3", language="python", name="python3")
    Path(path).write_text(json.dumps(dict(cells=made, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))
    return Path(path)


def _settings(folder, dark):
    "JupyterLab without windowing (all cells exist in the page), news and dialogs."
    settings = {
        "notebook-extension/tracker": dict(windowingMode="none"),
        "apputils-extension/themes": dict(theme="JupyterLab Dark" if dark else "JupyterLab Light"),
        "apputils-extension/notification": dict(fetchNews="false", checkForUpdates=False, doNotDisturbMode=True)
    }
    for name, value in settings.items():
        file = Path(folder, "@jupyterlab", f"{name}.jupyterlab-settings")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))


def _command(kind, notebook, port, token, dark):
    if kind == "notebook6":
        return [
            "-m", "notebook", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
            f"--NotebookApp.token={token}", f"--NotebookApp.notebook_dir={Path(notebook).parent}"
        ]
    if kind == "notebook7":
        return [
            "-m", "notebook", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
            f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={Path(notebook).parent}",
            "--JupyterNotebookApp.expose_app_in_browser=True"
        ]
    if kind == "voila":
        return [
            "-m", "voila", str(notebook), "--no-browser", "--Voila.ip=127.0.0.1", f"--port={port}",
            f"--theme={'dark' if dark else 'light'}"
        ]
    return [
        "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={Path(notebook).parent}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.collaborative=False"
    ]


@contextlib.contextmanager
def server(kind, notebook, dark=False, timeout=120, python=sys.executable):
    """Serve a notebook with "lab" (JupyterLab 4), "voila", "notebook7" or "notebook6"; yields a function that opens
    it in a page and runs it."""
    port, token, home = free_port(), "token", Path(tempfile.mkdtemp(prefix="jupyter-"))
    folders = dict(
        JUPYTER_CONFIG_DIR="config", JUPYTER_RUNTIME_DIR="runtime", JUPYTERLAB_SETTINGS_DIR="settings",
        JUPYTERLAB_WORKSPACES_DIR="workspaces", JUPYTER_DATA_DIR="data", IPYTHONDIR="ipython"
    )
    _settings(home/"settings", dark)
    # it serves many tests, and is ended below
    env = {**os.environ, **{k: str(home/v) for k, v in folders.items()}, limits.SECONDS: "0"}
    with open(home/"server.log", "wb") as log:
        process = subprocess.Popen(
            [python, *_command(kind, notebook, port, token, dark)], env=env, cwd=home, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for_port(process, port, home/"server.log", timeout)
        url = f"http://127.0.0.1:{port}"
        try:
            yield lambda page: dict(
                lab=open_lab, voila=open_voila, notebook7=open_notebook7, notebook6=open_notebook6
            )[kind](page, url, token, Path(notebook).name)
        except BaseException:
            print(
                f"{kind} server, {'still there' if process.poll() is None else f'ended with {process.returncode}'}; "
                f"its last lines:\n{(home/'server.log').read_text(errors='replace')[-3000:]}"
            )
            raise
    finally:
        process.terminate()
        try: process.wait(20)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


def wait_for_port(process, port, log, timeout):
    until = time.time() + timeout
    while True:
        if process.poll() is not None or time.time() > until:
            raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
        try:
            with socket.create_connection(("127.0.0.1", port), 1): return
        except OSError: time.sleep(.1)


@contextlib.contextmanager
def browser_page(width=1300, height=1250):
    "A page in a fresh profile; `page.errors` collects what its scripts threw."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROME, headless=True, args=FLAGS, viewport=dict(width=width, height=height),
            accept_downloads=True
        )
        page = context.pages[0] if context.pages else context.new_page()
        page.errors = []
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        try: yield page
        finally: context.close()


def open_voila(page, url, token, notebook):
    page.goto(url, wait_until="domcontentloaded", timeout=120_000)


def open_notebook7(page, url, token, notebook): open_lab(page, url, token, notebook, "notebooks")


def open_lab(page, url, token, notebook, where="doc/tree"):
    "Open the notebook, wait until the kernel answers (the idle icon lies), run all cells."
    page.goto(f"{url}/{where}/{notebook}?token={token}&reset", wait_until="domcontentloaded", timeout=120_000)
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext", timeout=120_000)
    page.evaluate("""async () => { const app = window.jupyterapp, w = app.shell.currentWidget;
        await w.context.ready; await w.sessionContext.ready; await w.sessionContext.session.kernel.info;
        await app.commands.execute('notebook:run-all-cells') }""")


def open_notebook6(page, url, token, notebook):
    "Open the notebook and run all cells, after the widget extension had time to load."
    page.goto(f"{url}/notebooks/{notebook}?token={token}", wait_until="domcontentloaded", timeout=120_000)
    page.wait_for_function("() => window.Jupyter?.notebook?.kernel?.is_connected()", timeout=120_000)
    page.wait_for_timeout(6000)
    page.evaluate("() => Jupyter.notebook.execute_all_cells()")


def kill_kernel(page):
    "Shut the kernel of the open JupyterLab notebook down."
    page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.shutdown() }")
