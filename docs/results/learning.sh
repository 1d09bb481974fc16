#!/usr/bin/env bash
# The tables of learning.md on a GPU: every method on every task, three learning rates with the first seed, the best by validation with two more.
#   bash docs/results/learning.sh MINILM DATA OUT [AT_ONCE]
# MINILM is the model's folder; DATA holds GLUE's .tsv files and LLM-Adapters' .json files. OUT gets a report a task and method, one a task, and
# pictures. AT_ONCE processes share the GPU, 8 by default: best under CUDA MPS (nvidia-cuda-mps-control -d). Run again, it goes on where it ended.
# Other tasks: TASKS="mrpc rte". Smaller: MORE="--rows 64 --tries 1 --seed 1".
set -euo pipefail
export minilm=$1 data=$2 out=$3 OMP_NUM_THREADS=1
mkdir -p "$out"

options() { # of a task
  local glue="glue --model $minilm --set batch_size=32 --set task=$1 --tries 3"
  local arc="$data/ARC-Easy" bool="$data/boolq" book="$data/openbookqa"
  case $1 in
    cola) echo "$glue --set epochs=5 --data train=$data/CoLA_train.tsv --data dev=$data/CoLA_dev.tsv" ;;
    mrpc) echo "$glue --set epochs=5 --data train=$data/MRPC_train.tsv --data dev=$data/MRPC_dev.tsv" ;;
    rte) echo "$glue --set epochs=10 --data train=$data/RTE_train.tsv --data dev=$data/RTE_dev.tsv" ;;
    stsb) echo "$glue --set epochs=5 --data train=$data/STS-B_train.tsv --data dev=$data/STS-B_dev.tsv" ;;
    sst2) echo "$glue --set epochs=3 --rows 8000 --data train=$data/SST-2_train.tsv --data dev=$data/SST-2_dev.tsv" ;;
    questions) echo "cloze --tries 3 --rows 768 --set scored_rows=500 --data train.arc_e=${arc}_train.json --data train.boolq=${bool}_train.json \
      --data train.obqa=${book}_train.json --data test.arc_e=${arc}_test.json --data test.arc_c=$data/ARC-Challenge_test.json \
      --data test.boolq=${bool}_test.json --data test.obqa=${book}_test.json" ;;
    arithmetic) echo "arithmetic --model gemma-3-270m --set epochs=2 --set batch_size=16 --set max_new_tokens=192 --set scored_rows=200 \
      --data train=$data/math_data.json --data test.mawps=$data/mawps_test.json --data test.svamp=$data/SVAMP_test.json" ;;
  esac
}

methods() { # of a task
  local few="road_1 lora_8 ia3 full road_4 loreft_4"
  case $1 in
    arithmetic) echo "$few" ;;
    questions) echo "$few road_2 road_1+lora_4 dora_8 oft" ;;
    *) echo "$few road_2 road_1+lora_4 dora_8 oft bitfit head" ;;
  esac
}

one() { # the runs of a task and a method
  roadint bench learn $(options "$1") --method "$2" ${MORE:-} --resume --out "$out/$1-$2.json" > "$out/$1-$2.log" 2>&1 || echo "failed: $out/$1-$2.log"
}
export -f options one
tasks=${TASKS:-questions arithmetic cola mrpc rte stsb sst2}
for task in $tasks; do for method in $(methods "$task"); do echo "$task $method"; done; done | xargs -P "${4:-8}" -L 1 bash -c 'one "$@"' one

for task in $tasks; do # all methods of a task in one report, printed and drawn
  python3 - "$out/$task.json" $(for method in $(methods "$task"); do echo "$out/$task-$method.json"; done) << 'PYTHON'
import json, sys
from pathlib import Path

out, *parts = sys.argv[1:]
reports = [json.loads(Path(part).read_text()) for part in parts]
joined = {**reports[0], **{name: sum((each[name] for each in reports), []) for name in ("runs", "cases")}}
Path(out).write_text(json.dumps(joined))
PYTHON
  roadint bench learn $(options "$task") $(methods "$task" | sed -E 's/(\S+)/--method \1/g') ${MORE:-} --resume --out "$out/$task.json" --plot "$out/$task.png"
done
