"`python -m cad_mllm VERB`: the same as `cad-mllm COMMAND`."
from cad_mllm.cli import main

main()
