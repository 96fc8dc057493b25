#!/usr/bin/env bash
# From documents to a trained, evaluated and exported reranker, on the CPU or the GPUs of this machine.
#
#   bash launch/demo.sh                      about everything that the framework does, under runs/demo
#   bash launch/demo.sh train.max_steps=20   the same, with keys for the training
#   bash launch/demo.sh --quick              every step of it, to see that all of it works here, under runs/quick: a
#                                            sixth of the groups, a ninth of the passages to mine, 12 steps of training, a
#                                            quarter of the queries, of which all models read 64 tokens a pair
#
# What is done already is not done again; an interrupted training resumes.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"

quick=false run=runs/demo made=runs/demo/data source=runs/demo/data mined=() keys=() questions=(sample=200)
for word in "$@"; do
    case $word in
    --quick) quick=true ;;
    -*) fail "command line: found $word, expected --quick or keys of the training; see the head of launch/demo.sh" ;;
    run_dir=*) fail "run_dir: found a key, expected none, as the demo has a place of its own; copy or move runs/ instead" ;;
    *) keys+=("$word") ;;
    esac
done
if $quick; then
    run=runs/quick source=runs/quick/data questions=(sample=50 max_length=64)
    mined=(mine.corpus="$source/passages.jsonl" mine.dense.max_length=64)
    keys=(train.max_steps=12 data.max_length=64 data.shards="$run/shards" data.dev="$source/dev.jsonl" "${keys[@]}")
fi

step_name=start
tell_where() {
    local code=$?
    [ $code -eq 0 ] || $told || printf 'demo: stopped in step "%s" with exit code %s\n' "$step_name" "$code" >&2
}
trap tell_where EXIT

step() {
    step_name=$2
    say ""
    say "[$1/6] $2 ($(printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60))))"
}

step 1 "environment"
setup demo
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
# The demo's tracking stays on this machine unless there is a key or a wish.
if [ -z "${WANDB_API_KEY:-}" ]; then export WANDB_MODE=${WANDB_MODE:-offline}; fi

# For the model card. Not in the recipe, which others train on shards of their own: it is these documents'
# (reranker/demo/documents/NOTICE.md).
origin="Headings, first sentences and passages of the LibreOffice 7.4.7 help in Korean (Debian package libreoffice-help-ko), \
by LibreOffice contributors and the LibreOffice Korean translators, under MPL-2.0."

# nproc answers with OMP_NUM_THREADS where that is set: the cores are meant.
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
precision=auto
gpus=$(gpu_count)
if [ "$gpus" -gt 0 ]; then
    # The recipe's 32 groups divide by powers of two.
    ranks=1
    while [ $((ranks * 2)) -le "$gpus" ] && [ "$ranks" -lt 8 ]; do ranks=$((ranks * 2)); done
    hardware="$ranks GPU(s)"
else
    ranks=$((cores >= 2 ? 2 : 1))
    hardware="$ranks process(es) on $cores CPU core(s)"
    export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} # else DeepSpeed warns in every process that there is no GPU
    # Where the processor multiplies bfloat16 itself, that is 1.6 times as fast as float32.
    if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then
        precision=bf16
        hardware="$hardware in bf16, which this processor has"
    fi
fi

step 2 "documents, groups in English, and a base model"
reranker demo output=runs/demo

step 3 "from English groups to Korean shards"
if $quick; then
    # Every so many: headings come first, sentences behind them. Without the passages that name another one as the
    # same, which may not be among them.
    mkdir -p "$source"
    awk 'NR % 6 == 1' "$made/triplets.jsonl" >"$source/triplets.jsonl"
    awk 'NR % 6 == 1 && !/"same"/' "$made/passages.jsonl" >"$source/passages.jsonl"
    awk 'NR % 4 == 1' "$made/dev.jsonl" >"$source/dev.jsonl"
fi
reranker prepare recipe=demo source="$source/triplets.jsonl" output="$run" "${mined[@]}"

step 4 "training on $hardware"
port=$(free_port)
threads=${OMP_NUM_THREADS:-$((cores / ranks > 0 ? cores / ranks : 1))}
OMP_NUM_THREADS=$threads deepspeed --quiet --no_local_rank --num_gpus "$ranks" --master_port "$port" \
    --module reranker.train recipe=demo run_dir="$run" precision="$precision" "data.origin='$origin'" "${keys[@]}"

step 5 "evaluation"
reranker evaluate model="$run/model" base=runs/demo/base corpus=runs/demo/data/corpus.jsonl \
    queries=runs/demo/data/queries.jsonl output="$run/report" precision="$precision" "${questions[@]}"

step 6 "export, with the table in the model card"
reranker export run="$run"

step_name=table
say ""
cat "$run/report/table.md"
say ""
say "model        $run/model (README.md is its card; any Hugging Face server loads it)"
say "table        $run/report"
say "metrics      $run/metrics.jsonl"
say "checkpoints  $run/checkpoints"
say ""
say "Score passages with it:"
say "  . .venv/bin/activate"
say "  echo '{\"query\": \"파일 권한을 바꾸는 방법\", \"passages\": [\"chmod 명령은 파일의 권한을 바꾼다.\", \"달력을 출력한다.\"]}' |"
say "      reranker score model=$run/model"
say ""
say "done after $(printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)))"
