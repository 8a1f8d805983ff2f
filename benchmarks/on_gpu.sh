#!/usr/bin/env bash
# What there is to see on one GPU, meant to take less than nine minutes (no card has run it as a whole yet): tests, the relations at a million images, the step, a training on Ray.
#   PYTHON=.venv/bin/python benchmarks/on_gpu.sh FOLDER
out=${1:?usage: benchmarks/on_gpu.sh FOLDER}
source "$(dirname "$0")/parts.sh"
part tests 90 "$python" -m pytest -m gpu tests/unit
part world 60 "$python" pipelines/synthesize.py pipelines/presets/demo_world.yaml out="$world/raw"
part shards 60 "$python" pipelines/ingest.py layout=market1501 raw="$world/raw" out="$world/shards"
part training 150 "$python" pipelines/train.py pipelines/presets/demo.yaml data.root="$world/shards" runs="$out/runs" name=gpu \
  scale.workers=1 scale.worker_cpus=2 scale.worker_gpus=0.5 scale.relation_cpus=2 scale.relation_gpus=0.5
for rows in 32621 100000 1000000; do
  part "relate_$rows" 120 "$python" -m benchmarks.bench_relate do=gpu rows=$rows dim=2048 threads="$threads" out="$out/relate_$rows.json"
done
part step 120 "$python" -m benchmarks.bench_step out="$out/step.json" seconds=1 pipelines/presets/market1501.yaml \
  data.root=unused scale.workers=1 scale.worker_gpus=1
part step_compiled 150 "$python" -m benchmarks.bench_step out="$out/step_compiled.json" seconds=1 variants=1 pipelines/presets/market1501.yaml \
  data.root=unused scale.workers=1 scale.worker_gpus=1 scale.compile=true
exit $failed
