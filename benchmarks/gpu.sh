#!/usr/bin/env bash
# All that is to be measured on one GPU, in at most nine minutes: bash benchmarks/gpu.sh [FOLDER]
# Prints one JSON; a benchmark that fails or takes too long is null there, and FOLDER has its log.
set -u
cd "$(dirname "$0")/.."
folder=${1:-runs/gpu}
mkdir -p "$folder"

measure() {  # NAME SECONDS BENCHMARK FLAGS...
  local name=$1 seconds=$2
  shift 2
  timeout "$seconds" python "$@" --out "$folder/$name.json" > "$folder/$name.log" 2>&1 || rm -f "$folder/$name.json"
}

measure layers 90 benchmarks/train_step.py --parts wide-layer block --dtypes bfloat16 --tokens 8192 --rounds 40
measure model 60 benchmarks/train_step.py --parts model --tokens 4096 --rounds 100
measure training 110 benchmarks/train_e2e.py --rounds 3
measure keepers 110 benchmarks/keep.py --rounds 3
measure serving 160 benchmarks/serving.py --rounds 5

python - "$folder" layers model training keepers serving << 'END'
import json
import sys
from pathlib import Path

folder, *names = sys.argv[1:]
files = {name: Path(folder, f"{name}.json") for name in names}
print(json.dumps({name: json.loads(file.read_text()) if file.exists() else None for name, file in files.items()}))
END
