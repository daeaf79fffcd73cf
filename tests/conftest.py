"Shared by all tests: offline, one thread, and where the real histories are."
import os
import sys
import tempfile
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CAD_MLLM_LOCAL", tempfile.mkdtemp(prefix="cad-mllm-"))   # what tests could not deliver
sys.path.insert(0, str(Path(__file__).parent))

import limits  # noqa: E402   (beside this file)

limits.for_every_child()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    "Where even the interruption after ten minutes does not come through, as in a deadlock around the interpreter's lock: stacks, and the end."
    limits.arm(720, item.config.stash.get(fault_handler_stderr_fd_key, 2))
    try: return (yield)
    finally: limits.disarm()


@pytest.fixture(scope="session")
def real_root():
    "The folder with real histories, from OMNI_CAD_ROOT."
    root = os.environ.get("OMNI_CAD_ROOT", "")
    if not Path(root, "json").is_dir():
        pytest.skip("set OMNI_CAD_ROOT to a folder in the Omni-CAD layout (with json/ in it) to test on real histories")
    return Path(root)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    "A data set of 30 synthetic parts with captions, truncations, points and pictures."
    from small_data import make
    return make(tmp_path_factory.mktemp("data"), 30)
