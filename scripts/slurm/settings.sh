# What the scripts of this folder read. Another value comes from the environment (`DATA=/scratch/parts bash submit.sh`;
# sbatch hands it on) or is written here.
: "${DATA:=$HOME/parts}"              # histories in the Omni-CAD layout (DATA/json/...), on a disk that every machine sees
: "${DATA_FROM:=}"                    # where fetch.sh copies DATA from (folder or host:folder); empty where DATA is there
: "${PREPARED:=$DATA-prepared}"       # what prepare.sh writes: beginnings, points, pictures, captions
: "${PARTS:=16}"                      # tasks of the array that prepares: each does one part in PARTS
: "${SHARDS:=$DATA-shards}"           # what shards.sh writes and train.sh reads: a few large files
: "${MODEL:=Qwen/Qwen3-0.6B}"         # the language model that fetch.sh fetches; the recipe's
: "${RECIPE:=qwen3_0_6b}"             # settings of the training (`cad-mllm train --help`)
: "${HF_HOME:=$HOME/huggingface}"     # where fetched weights lie, on a disk that every machine sees
: "${LOCAL_DISK:=${TMPDIR:-/tmp}}"    # a disk of each machine's own: shards are copied there before they are read
: "${OUT:=$HOME/cad-mllm-run}"        # the run's folder: checkpoints, log, status
: "${GPUS:=8}"                        # of each machine; as in --gpus-per-node of train.sh
: "${PORT:=29500}"                    # a free port of the first machine, where the processes meet
: "${FLAGS:=}"                        # more flags of `cad-mllm train`, such as --fsdp
export HF_HOME
