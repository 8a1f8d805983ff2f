# Sourced by on_cpu.sh and on_gpu.sh. Each part has a time limit of its own, and one that fails does not keep the others from running; `failed` says
# whether one did.
set -uo pipefail
python=${PYTHON:-python3}; threads=$(nproc); failed=0
mkdir -p "$out"; export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD
part() {  # NAME SECONDS COMMAND...: its output in FOLDER/NAME.log
  local name=$1 limit=$2 began=$SECONDS; shift 2
  if timeout "$limit" "$@" > "$out/$name.log" 2>&1; then echo "$name: $((SECONDS - began)) s"
  else failed=1; echo "$name: FAILED after $((SECONDS - began)) s, see $out/$name.log"; tail -n 3 "$out/$name.log"; fi
}
shown() {  # NAME SECONDS COMMAND...: the same, and what it says on the screen, too
  part "$@"; grep -E '^[{a-z]' "$out/$1.log" | grep -v -E '^(note|describe|epoch [0-9])' || true
}
world=$(mktemp -d); trap 'rm -rf "$world"' EXIT
