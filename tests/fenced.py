"""`python -m fenced train ...`: the command line, of which process 1 waits before the step after $FENCE, so that a
test that is slow to act finds it alive."""
import os

from cad_mllm import cli
from train_runs import _fence

if __name__ == "__main__":
    if os.environ.get("RANK") == "1": _fence(int(os.environ["FENCE"]))
    cli.main()
