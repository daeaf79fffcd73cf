"Python runs this at the start of each process that has this folder on its path: the children of tests get their limit."
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
import limits  # noqa: E402

sys.path.pop()
limits.arm()
