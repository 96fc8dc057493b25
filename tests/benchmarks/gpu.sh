#!/usr/bin/env bash
# All that waits for a GPU, in one command, each part within a time of its own (half an hour in all):
#
#   bash tests/benchmarks/gpu.sh OUT groups=FILE tokenizer=DIR [minutes=30]
#
# `groups` are real pairs (runs/demo/4-check/groups.jsonl), `tokenizer` a directory with a tokenizer.json (runs/demo/base);
# weights are random ones of XLM-RoBERTa-large's shape. In the environment that runs it: this package, and for the peers
# FlagEmbedding and sentence-transformers. Into OUT: tests.txt, a log for each part, and the records, also of what was
# done when a part's time was over.
#
#   tests      tests/gpu: ZeRO 0 to 3 in fp32, fp16, bf16 and autocast, the packed kernel, no read in a micro-step
#   training   pairs a second and memory, ours packed and padded, ZeRO 1 to 3, in fp16 and bf16, beside the peers
#   overhead   a step of the engine beside plain PyTorch
#   embedding  what the gradient of 250,002 embeddings costs
#   compile    torch.compile beside none

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=$1 minutes=30
shift
for word in "$@"; do
    case "$word" in
        groups=* | tokenizer=* | minutes=*) declare "${word%%=*}=${word#*=}" ;;
        *) echo "gpu.sh: found $word, expected groups=, tokenizer= or minutes=" >&2; exit 2 ;;
    esac
done
: "${groups:?gpu.sh: say groups=FILE}" "${tokenizer:?gpu.sh: say tokenizer=DIR}"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# part NAME TENTHS COMMAND...: within so many tenths of the time
part() {
    local name=$1 seconds=$((minutes * 6 * $2))
    shift 2
    echo "gpu.sh: $name, at most $seconds s"
    timeout --kill-after=60 "$seconds" "$@" >"$out/$name.txt" 2>&1
    echo "gpu.sh: $name ended with $?" | tee -a "$out/$name.txt"
    cp -p tests/benchmarks/records/*-"$(date +%Y-%m-%d)".* "$out" 2>/dev/null
}

# In the shell's place, so that it is Python that is told when the time is over: it leaves its record then.
training() {
    exec python tests/benchmarks/training.py groups="$groups" model=xlm-roberta-large-random tokenizer="$tokenizer" \
        work="$work/training" device=cuda steps=6 rounds=3 "$@"
}
export -f training
export groups tokenizer work

nvidia-smi >"$out/gpu.txt" 2>&1
part tests 3 python -m pytest -q -n 4 tests/gpu
part training 4 bash -c "training parts=contestants \
    contestants='ours:tokens-*-packed:*,ours:zero*:*,flagembedding:1x32:*,sentence-transformers:1x32:*,ours:1x32-padded:bf16'"
part overhead 1 bash -c "training parts=overhead"
part embedding 1 python tests/benchmarks/embedding_gradient.py model="$work/training/model" device=cuda precision=bf16
part compile 1 bash -c "training parts=compile"
