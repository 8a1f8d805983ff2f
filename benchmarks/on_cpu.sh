#!/usr/bin/env bash
# What each phase costs on this machine's CPUs, beside what people would use instead and beside the limit, in under fifteen minutes.
#   PYTHON=.venv/bin/python benchmarks/on_cpu.sh FOLDER
out=${1:?usage: benchmarks/on_cpu.sh FOLDER}
source "$(dirname "$0")/parts.sh"
ways() {  # those that leave the views to the device for one size only: nine ways for each would pass fifteen minutes
  test "$1" = 256x128 && echo decode,views,loader,loader_late,kept,kept_late,stream,stream_late,dataloader || echo decode,views,loader,kept,stream,dataloader
}
for size in 256x128 128x64; do
  height=${size%x*} width=${size#*x}
  part "world_$size" 120 "$python" pipelines/synthesize.py out="$world/$size" train_objects=120 test_objects=20 cameras=4 shots=4 height="$height" width="$width"
  part "shards_$size" 120 "$python" pipelines/ingest.py layout=market1501 raw="$world/$size" out="$world/shards/$size"
  shown "views_$size" 300 "$python" -m benchmarks.bench_views out="$out/views_$size.json" root="$world/shards/$size" height="$height" width="$width" seconds=4 steps=50 ways="$(ways $size)"
done
shown views_64to128 300 "$python" -m benchmarks.bench_views out="$out/views_64to128.json" root="$world/shards/128x64" height=256 width=128 seconds=4 steps=50 ways=views,loader,stream,dataloader
shown step 150 "$python" -m benchmarks.bench_step out="$out/step.json" seconds=1 pipelines/presets/demo.yaml data.root=unused scale.workers=1
shown similarity 120 "$python" -m benchmarks.bench_similarity "$out/similarity.json" rows=6000 dim=512 k=30 threads="$threads"
shown epoch 400 "$python" -m benchmarks.bench_epoch "$out/epoch.json" pipelines/presets/demo.yaml data.root="$world/shards/128x64" \
  sampling.steps=44 epochs=3 eval_every=3 eval_untrained=false scale.workers=1 scale.relation_threads=1
shown extract 240 "$python" -m benchmarks.bench_extract root="$world/shards/256x128" split=gallery backbone=resnet18 out="$out/extract.json"
exit $failed
