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

import absent  # noqa: E402   (beside this file)
import limits  # noqa: E402

limits.for_every_child()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Where even the interruption after ten minutes does not come through, as in a deadlock around the interpreter's
    lock: stacks, and the end."""
    limits.arm(720, item.config.stash.get(fault_handler_stderr_fd_key, 2))
    try: return (yield)
    finally: limits.disarm()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    "What fails for want of OpenCascade is skipped with the remedy; a skip that CAD_TESTS_REQUIRE forbids is a failure."
    report = yield
    if report.failed and (reason := absent.reason_to_skip(report.longreprtext)):
        report.outcome, report.longrepr = "skipped", (str(item.path), item.location[1], f"Skipped: {reason}")
    elif report.skipped and isinstance(report.longrepr, tuple) and absent.forbidden_skip(report.longrepr[2]):
        report.outcome, report.longrepr = "failed", f"CAD_TESTS_REQUIRE forbids to skip: {report.longrepr[2]}"
    return report


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
