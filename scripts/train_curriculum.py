#!/usr/bin/env python3
"""Train the curriculum; the same flags as `cad-mllm train`."""
import sys

from cad_mllm.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
