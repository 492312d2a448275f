"""Flags of llama.cpp's programs that are none of ggrun's: those that it needs not, and what is not built."""

from collections.abc import Mapping, Sequence

NEEDLESS: Mapping[str, tuple[str, ...]] = {
    "-no-cnv": (), "--no-conversation": (), "--no-jinja": (),  # a prompt is taken as it is
    "--mmap": (), "-lm": ("auto", "mmap"), "--load-mode": ("auto", "mmap"),
    "-fa": ("auto",), "--flash-attn": ("auto",),
    "--no-warmup": (), "--no-context-shift": (), "--offline": (), "--simple-io": (), "--perf": (),
}  # fmt: skip
"""Flags that ask for what ggrun run does anyway; of those that take a value, the values that do."""

_OTHERS = """
    -hf -hfr --hf-repo -hff --hf-file -hft --hf-token -mu --model-url -lm --load-mode --no-mmap
    --mlock -a --alias --check-tensors -fa --flash-attn -tb --threads-batch --numa --prio --poll -C
    --cpu-mask --no-host --no-repack --repack --override-kv -cnv --conversation -st --single-turn
    -sys --system-prompt -sysf --system-prompt-file -i --interactive -if --interactive-first -mli
    --multiline-input --in-prefix --in-suffix --chat-template --chat-template-file
    --chat-template-kwargs --jinja --reasoning-format --reasoning-budget -co --color -sp --special
    -bf --binary-file --prompt-cache --keep --context-shift --swa-full --warmup -np --parallel -cb
    --cont-batching --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx
    --yarn-ext-factor --lora --lora-scaled --control-vector -mm --mmproj --image --audio -md
    --model-draft -ngld -cd --draft --samplers --sampling-seq --sampler-seq --mirostat --mirostat-lr
    --mirostat-ent --dynatemp-range --dynatemp-exp --adaptive-target --adaptive-decay --no-perf -v
    --verbose --log-file --log-disable --host --port --api-key --ppl-stride --ppl-output-type
    --kl-divergence --kl-divergence-base --save-all-logits --hellaswag --winogrande
    --multiple-choice -embd --embeddings -nopo -mmp -nr --cpu-strict -lv --verbosity --log-verbosity
    --log-prefix --log-timestamps --log-colors --verbose-prompt -kvu --kv-unified -no-kvu
    --no-kv-unified -rea --reasoning -dt --defrag-thold --cache-prompt --no-cache-prompt
    --cache-reuse -cram --cache-ram -Cb --cpu-mask-batch -Cr --cpu-range -Crb --cpu-range-batch
    --prio-batch --poll-batch -ctkd --cache-type-k-draft -ctvd --cache-type-v-draft -gan
    --grp-attn-n -gaw --grp-attn-w
"""
NOT_BUILT = frozenset(_OTHERS.split()) | NEEDLESS.keys()
"""Flags that users of llama.cpp know and ggrun does not have (yet), or not with every value."""


def needless(args: Sequence[str]) -> int:
    """How many of these arguments, from the first on, ask for what ggrun run does anyway."""
    name, equals, value = args[0].partition("=")
    values = NEEDLESS.get(name)
    if values is None:
        return 0
    if equals:
        return int(value in values)
    if not values:
        return 1
    return 2 if args[1:2] and args[1] in values else 0
