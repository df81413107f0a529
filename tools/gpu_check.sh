#!/usr/bin/env bash
# Everything that only a GPU can show, in five stages of under nine minutes each. Needs a CUDA torch and
# nothing from the network; what is not installed (pytest, peers, compute-sanitizer) is said and left out.
#
#   tools/gpu_check.sh [--out FOLDER] [--only STAGE] [--device cpu]
#
#   build+tests  ceilings, attention's real drop rate, five steps as on the CPU, waits of the CPU in a step; the
#                kernels built and compared at odd shapes, under compute-sanitizer too; the tests
#   kernels      every kernel: GB/s, beside eager, torch.compile, apex and Liger
#   training     training steps of 3.5B, 1.3B and 124M parameters, with --kernels cuda, compile, reference; a trace
#   peers        the same beside transformers and megatron-core
#   suite        the whole test suite with its models on CUDA, a folder of tests at a time: start it until it ends
#                with 0 or 1. Where there are fewer GPUs than ranks they share them, or the test says why not
#
# Started again it goes on where it was: FOLDER (runs/gpu_check) keeps what is measured, a log and the status of each
# step. FOLDER/performance.md is the result as text. PYTHON names the interpreter (python3). Ends with 0, with
# 1 if a step failed, with 75 if work is left: then start it again. --device cpu tries it all at tiny sizes.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
benchmark=$root/tools/benchmark
stages=(build+tests kernels training peers suite)
out=runs/gpu_check only= device=cuda
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=${2:?--out needs a folder} ;;
        --only) only=${2:?--only needs a stage} ;;
        --device) device=${2:?--device needs cuda or cpu} ;;
        *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
    esac
    shift 2
done
case " ${stages[*]} " in
    *" ${only:-kernels} "*) ;;
    *) echo "error: no stage $only; they are: ${stages[*]}" >&2; exit 2 ;;
esac
mkdir -p "$out/status" || exit 2
out=$(cd "$out" && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
worst=0

# step NAME SECONDS COMMAND...: run it unless it has succeeded before; keep its output and its status. Out of time, a
# step that keeps its rows is to be started again; another, named in $whole, needs more time than it may have.
whole=" parity memcheck racecheck tests "
step() {
    local name=$1 seconds=$2 status
    shift 2
    if [ "$(cat "$out/status/$name" 2>/dev/null)" = 0 ]; then
        echo "  $name: done before"
        return
    fi
    echo "  $name: at most $seconds s, log in $out/$name.log"
    timeout --kill-after=10 "$seconds" "$@" >>"$out/$name.log" 2>&1
    status=$?
    if [ $status = 124 ]; then
        case "$whole" in
            *" $name "*) echo "  $name: not finished in $seconds s" ;;
            *) status=75 ;; # what is measured is kept
        esac
    fi
    echo $status >"$out/status/$name"
    case $status in
        0) ;;
        75) echo "  $name: not finished, start again" ;;
        *) echo "  $name: FAILED with status $status"; tail -n 5 "$out/$name.log" ;;
    esac
    if [ $status = 75 ]; then [ $worst = 0 ] && worst=75; elif [ $status != 0 ]; then worst=1; fi
}

has_module() { "$python" -c "import $1" >/dev/null 2>&1; }

build_and_tests() {
    step machine 130 "$python" "$benchmark/machine_gpu.py" --out "$out" --device "$device" --seconds 80
    step parity 100 "$python" "$benchmark/kernels_gpu.py" --device "$device" \
        --contenders "$([ "$device" = cuda ] && echo cuda || echo reference)"
    if [ "$device" = cpu ] || ! command -v compute-sanitizer >/dev/null; then
        echo "  memcheck, racecheck: left out, there is no compute-sanitizer for $device here"
    elif ! timeout 60 compute-sanitizer "$python" -c \
        'import torch; torch.ones(1, device="cuda")' >"$out/sanitizer.log" 2>&1; then
        echo "  memcheck, racecheck: left out, compute-sanitizer cannot attach here, see $out/sanitizer.log"
    else
        for tool in memcheck racecheck; do # each tensor in memory of its own, past whose end nothing may be written
            step $tool 70 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool --error-exitcode 9 \
                "$python" "$benchmark/kernels_gpu.py" --contenders cuda
        done
    fi
    tests tests 160 "$root/tests/kernels" "$root/tests/model" "$root/tests/tools/test_gpu_check.py" \
        "$root/tests/train/test_host_reads.py"
}

# tests NAME SECONDS PATH...: these tests, those of the .cu files and of commands on the CPU.
tests() {
    local name=$1 seconds=$2 parallel=()
    shift 2
    if ! has_module pytest; then
        echo "  $name: left out, there is no pytest here"
        return
    fi
    has_module xdist && parallel=(-n 8 --dist loadscope)
    step "$name" "$seconds" "$python" -m pytest -q -m "not slow" -p no:cacheprovider -c "$root/pyproject.toml" \
        --device "$device" --junitxml "$out/$name.xml" "${parallel[@]}" "$@"
}

stage_kernels() {
    step kernels 520 "$python" "$benchmark/kernels_gpu.py" --out "$out" --device "$device" --seconds 440
}

stage_training() {
    step training 520 "$python" "$benchmark/training_gpu.py" --out "$out" --device "$device" \
        --rows ours --profile --seconds 430
}

stage_peers() {
    step peers 520 "$python" "$benchmark/training_gpu.py" --out "$out" --device "$device" \
        --rows peers --seconds 430
}

# SUITE_SECONDS: of a call. A folder gets what is left of the stage's time; one that began late and did not finish goes first next time.
folders=(parallel train checkpoint kernels model evaluate)
for folder in "$root"/tests/*/; do
    folder=$(basename "$folder")
    [ -z "$(find "$root/tests/$folder" -name 'test_*.py')" ] || [[ " ${folders[*]} " = *" $folder "* ]] || folders+=("$folder")
done
folders+=(.)
suite_seconds=${SUITE_SECONDS:-520}
stage_suite() {
    local begun=$SECONDS folder name left
    for folder in "${folders[@]}"; do
        name=suite-${folder/./root} left=$((suite_seconds - SECONDS + begun))
        if [ $left -lt 60 ] && [ "$(cat "$out/status/$name" 2>/dev/null)" != 0 ]; then
            echo "  $name: no time left, start again"
            [ $worst = 0 ] && worst=75
            continue
        fi
        [ $left -gt $((suite_seconds - 20)) ] && whole+="$name "
        if [ "$folder" = . ]; then
            tests "$name" $left "$root"/tests/test_*.py
        else
            tests "$name" $left "$root/tests/$folder"
        fi
    done
}

for stage in "${stages[@]}"; do
    if [ -z "$only" ] || [ "$only" = "$stage" ]; then
        echo "$stage"
        case $stage in
            build+tests) build_and_tests ;;
            *) "stage_$stage" ;;
        esac
    fi
done
"$python" "$benchmark/gpu_report.py" "$out" >"$out/performance.md"
exit $worst
