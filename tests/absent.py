"""What a machine may lack, and the one line that says what to install.

A test that fails because OpenCascade cannot be loaded here is reported as skipped, with the sentence that names the
remedy. `CAD_TESTS_REQUIRE="kernel browser"` (CI sets it) makes a failure of each such skip.
"""
import os

KERNEL = ("OpenCascade cannot be loaded", "OpenCascade is not installed")
BROWSER = "browser tests need"


def required(name):
    "Whether CAD_TESTS_REQUIRE names this."
    return name in os.environ.get("CAD_TESTS_REQUIRE", "").split()


def kernel_problem():
    "Why OpenCascade cannot be loaded on this machine, with the remedy; empty where it can."
    from cad_mllm.geometry import GeometryError, load_occ
    try: load_occ()
    except GeometryError as e: return str(e)
    return ""


def reason_to_skip(text):
    "Why a failure with this text counts as skipped, or an empty string."
    if required("kernel") or not any(sentence in text for sentence in KERNEL): return ""
    return kernel_problem()


def forbidden_skip(reason):
    "Whether a skip with this reason is a failure here."
    return (
        required("browser") and BROWSER in reason or required("kernel")
        and any(sentence in reason for sentence in KERNEL)
    )
