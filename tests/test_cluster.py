"""The job scripts of scripts/slurm, with Slurm's commands played by stand-ins that do on this machine what Slurm
does."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SLURM = Path(__file__).parent.parent/"scripts"/"slurm"
SCRIPTS = sorted(SLURM.glob("*.sh"))

STAND_INS = {
    "sbatch": '''#!/bin/bash
echo "sbatch $*" >> "$CALLS"
tasks=1-1
for word in "$@"; do case $word in --array=*) tasks=${word#--array=} ;; *.sh) script=$word ;; esac; done
echo "4711;cluster"
[ "$script" = train.sh ] && exit
export SLURM_SUBMIT_DIR=$PWD SLURM_CPUS_PER_TASK=2 SLURM_ARRAY_TASK_COUNT=1
for n in $(seq "${tasks%-*}" "${tasks#*-}"); do
    (cp "$script" "$SPOOL/job"; cd /; SLURM_ARRAY_TASK_ID=$n bash "$SPOOL/job" >&2) || exit 1
done
''',
    "srun": '#!/bin/bash\necho "srun $*" >> "$CALLS"\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "hf": '#!/bin/bash\necho "hf $* into $HF_HOME" >> "$CALLS"\n',
    "rsync": '#!/bin/bash\necho "rsync $*" >> "$CALLS"\nmkdir -p "$3"\ncp -r "$2." "$3"\n',
    "cad-mllm": f'#!/bin/bash\nexec "{sys.executable}" -m cad_mllm.cli "$@"\n',
}


def play(folder, script, **settings):
    "(how the script ended, what the stand-ins were asked for)."
    for name, text in STAND_INS.items():
        (folder/"bin").mkdir(exist_ok=True)
        (folder/"bin"/name).write_text(text)
        (folder/"bin"/name).chmod(0o755)
    calls = folder/"calls.txt"
    calls.write_text("")
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    env |= dict(HOME=str(folder), CALLS=str(calls), SPOOL=str(folder), PATH=f"{folder/'bin'}:{env['PATH']}")
    env |= {name: str(value) for name, value in settings.items()}
    done = subprocess.run(["bash", str(SLURM/script)], env=env, capture_output=True, text=True, timeout=300)
    return done, calls.read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_can_be_read_by_bash(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_variable_has_a_default_and_says_what_it_is_for():
    settings = (SLURM/"settings.sh").read_text()
    explained = set(re.findall(r'^: "\$\{(\w+):=.*\}" +# \w', settings, re.M))
    assigned = set(re.findall(r"^: \"\$\{(\w+):=", settings, re.M))
    assert explained == assigned
    used = {name for path in SCRIPTS for name in re.findall(r"\$\{?([A-Z_]+)", path.read_text())}
    own = {"FIRST", "HOME", "TMPDIR"}
    assert {name for name in used if not name.startswith("SLURM_")} - own <= assigned
    assert assigned <= used


def test_every_job_asks_for_processors_and_hands_them_on():
    "Since Slurm 22.05 `srun` no longer takes --cpus-per-task from the job."
    for name in ("prepare.sh", "shards.sh", "train.sh"):
        text = (SLURM/name).read_text()
        assert re.search(r"^#SBATCH .*--cpus-per-task=\d+", text, re.M), name
        assert text.count("srun ") == text.count('srun --cpus-per-task="$SLURM_CPUS_PER_TASK"') == 1, name


def test_one_command_fetches_prepares_and_packs_and_asks_for_the_training(tmp_path):
    made = subprocess.run([sys.executable, "-m", "cad_mllm.cli", "synth", str(tmp_path/"far"), "--num_parts", "5"])
    assert made.returncode == 0
    settings = dict(DATA=tmp_path/"parts", DATA_FROM=tmp_path/"far", PARTS=2, MODEL="some/model")
    done, calls = play(tmp_path, "submit.sh", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"hf download some/model into {tmp_path}/huggingface" in calls
    lines = [line for line in calls.splitlines() if line.startswith("sbatch")]
    assert lines == [
        "sbatch --parsable --array=1-2 prepare.sh", "sbatch --parsable --dependency=afterok:4711 shards.sh",
        "sbatch --parsable --dependency=afterok:4711 train.sh"
    ]
    reports = [json.loads(p.read_text()) for p in sorted((tmp_path/"parts-prepared").glob("prepare_report*.json"))]
    assert [r["shard"] for r in reports] == ["1/2", "2/2"]
    assert sum(r["products"]["points"]["done"] for r in reports) == 5
    assert calls.count("srun --cpus-per-task=2 cad-mllm prepare") == 2
    from cad_mllm.data import MultimodalAutocompleteDataset
    shards = MultimodalAutocompleteDataset(tmp_path/"parts-shards")
    assert len({shards.sample(0, i).id for i in range(len(shards))}) > 1

    # one that was lost: again, what is missing is done
    (tmp_path/"parts-prepared/pointcloud").rename(tmp_path/"away")
    done, _ = play(tmp_path, "submit.sh", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path/"parts-prepared/pointcloud").rglob("*.npz"))) == 5


def test_data_that_are_not_there_end_it_before_a_job_is_asked_for(tmp_path):
    done, calls = play(tmp_path, "submit.sh", DATA=tmp_path/"nowhere")
    assert done.returncode == 1 and "set DATA, or DATA_FROM" in done.stdout
    assert "sbatch" not in calls
