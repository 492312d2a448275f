"""Train, export, judge and sample the bundled fairy-tale model (development only; needs torch)."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional

BOS, EOS = 0, 1
CONTROL = ["<s>", "</s>"]
# Every row of a matrix is a multiple of the 32 weights of a Q8_0 block.
VOCAB, CONTEXT, LAYERS, DIM, HIDDEN = 4096, 512, 8, 256, 704
HEADS, KV_HEADS, HEAD_DIM, ROPE_BASE, EPS = 8, 4, 32, 10000.0, 1e-5
BATCH, RATE, DROPOUT = 8, 4e-3, 0.05  # windows a step, highest learning rate, share of what is dropped
HELD_OUT_EVERY, HELD_OUT_FIRST = 29, 16  # whole tales, so that no sentence of theirs is ever trained on
DESCRIPTION = "A small llama trained on old fairy tales in the public domain; it writes new ones."

FRONT = re.compile(
    r"(?i:by various|edited\s+by|by anonymous|by the brothers|preparer|\*{5}|oyez|\*\*welcome)"
    r"|The Wonderful Wizard of Oz$|ALICE'S ADVENTURES IN WONDERLAND$"
)
CHAPTER = re.compile(r"(CHAPTER )?[IVXLC]+\.?$|CHAPTER ")
HEADING = re.compile(r"CHAPTER |\d+\. |[^a-z'\"(\n][^a-z]*$")  # what is shouted stands in quotes and stays
SOURCE = re.compile(
    r"[\[(].*[\])]\.?$|\(\d+\)|(From|Translated|Adapted|Kletke|Grimm|Sicilianische|Bibliotheque|End of"
    r"|By the Comte|A Pushto)\b"
)
MARK = re.compile(r"\s?(\[[^\]]*\]|\(\d+\))|[_*]")  # footnote marks and the signs of italics
CAPITALS = re.compile(r"^([A-Z])([A-Z]+)(?= [a-z])")  # ONCE upon a time


def is_title(text: str) -> bool:
    """A short line in which all words of four letters or more begin with a capital."""
    if not re.match(r"[A-Z].{0,88}[^.,;:!?'\"-]$", text) or CHAPTER.match(text):
        return False
    return all(word[0].isupper() for word in re.findall(r"[A-Za-z']+", text) if len(word) > 3)


def read_tales(corpus: Path) -> tuple[list[str], list[str]]:
    """Tales to train on and tales held out, without prefaces, contents, headings, sources and notes."""
    tales: list[list[str]] = []
    front, contents = True, False
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", corpus.read_text(encoding="utf-8"))]
    for paragraph, following in zip(paragraphs, [*paragraphs[1:], ""], strict=True):
        if FRONT.match(paragraph) and len(paragraph) < 90:
            front, contents = True, False
        if len(paragraph) < 110 and SOURCE.match(paragraph):
            continue
        text = MARK.sub("", paragraph).replace("`", "'").strip()
        if front:
            contents = contents or text.lower().rstrip(":") == "contents"
            named = contents and is_title(text) and text.lower() not in ("contents", "introduction")
            front = not (named or text.startswith("CHAPTER I."))
            tales += [] if front else [[]]
        elif is_title(text) and "\n" not in following:
            tales.append([])
        elif text and not (len(text) < 90 and HEADING.match(text)):
            tales[-1].append(CAPITALS.sub(lambda m: m[1] + m[2].lower(), text))
    long = [tale for tale in map("\n\n".join, tales) if len(tale) > 400]
    if not long:
        raise ValueError(f"{corpus}: no tale found")
    held = long[HELD_OUT_FIRST::HELD_OUT_EVERY]
    return [tale for tale in long if tale not in held], held


def byte_level(model: models.BPE) -> Tokenizer:
    """Byte-level BPE with the pre-tokenizer of GPT-2 (Radford et al. 2019): llama.cpp's `gpt-2`."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(tales: list[str]) -> Tokenizer:
    """Learn the tokens: two control tokens, 256 bytes, and merges (Sennrich et al. 2016)."""
    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=CONTROL, show_progress=False)
    trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(tales, trainer)
    return tokenizer


def encode_tales(tokenizer: Tokenizer, tales: list[str]) -> tuple[Tensor, Tensor]:
    """All tales in one row of ids, each between BOS and EOS; and where each begins."""
    rows = [[BOS, *encoding.ids, EOS] for encoding in tokenizer.encode_batch(tales)]
    starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
    return torch.tensor([i for row in rows for i in row]), torch.from_numpy(starts)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE over the pairs (0,1), (2,3), ... of x (batch, heads, time, head_dim): Su et al. 2021."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    """Attention with grouped heads (Ainslie et al. 2023), then SwiGLU (Shazeer 2020); named as in GGUF."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(DIM, EPS)
        self.attn_q = nn.Linear(DIM, HEADS * HEAD_DIM, bias=False)
        self.attn_k = nn.Linear(DIM, KV_HEADS * HEAD_DIM, bias=False)
        self.attn_v = nn.Linear(DIM, KV_HEADS * HEAD_DIM, bias=False)
        self.attn_output = nn.Linear(HEADS * HEAD_DIM, DIM, bias=False)
        self.ffn_norm = nn.RMSNorm(DIM, EPS)
        self.ffn_gate = nn.Linear(DIM, HIDDEN, bias=False)
        self.ffn_up = nn.Linear(DIM, HIDDEN, bias=False)
        self.ffn_down = nn.Linear(HIDDEN, DIM, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Both halves on the residual stream x (batch, time, dim); cos and sin are (time, head_dim / 2)."""
        x = x + self.drop(self.attention(self.attn_norm(x), cos, sin))
        h = self.ffn_norm(x)
        return x + self.drop(self.ffn_down(functional.silu(self.ffn_gate(h)) * self.ffn_up(h)))

    def attention(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal attention; h is (batch, time, dim). Written out: on a CPU no slower than the fused one."""
        batch, length, _ = h.shape
        maps = (self.attn_q, self.attn_k, self.attn_v)
        q, k, v = (linear(h).view(batch, length, -1, HEAD_DIM).transpose(1, 2) for linear in maps)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
        future = torch.full((length, length), -1e9, dtype=q.dtype).triu(1)
        scores = q / math.sqrt(HEAD_DIM) @ k.transpose(2, 3) + future
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)
        return self.attn_output(mixed)  # type: ignore[no-any-return]

    def drop(self, x: Tensor) -> Tensor:
        """One mask for all positions of a row (Gal & Ghahramani 2016): almost free, unlike one mask each."""
        return x * functional.dropout(x.new_ones(len(x), 1, x.shape[2]), DROPOUT, self.training)


class Model(nn.Module):
    """A llama (Touvron et al. 2023) with RMSNorm (Zhang & Sennrich 2019) and tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(VOCAB, DIM)
        self.blk = nn.ModuleList(Block() for _ in range(LAYERS))
        self.output_norm = nn.RMSNorm(DIM, EPS)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                last = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * LAYERS) if last else 0.02)
        rate = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        self.angles = torch.outer(torch.arange(CONTEXT), rate)

    def forward(self, ids: Tensor) -> Tensor:
        """The normed last layer (batch, time, dim) of ids (batch, time), time at most `CONTEXT`."""
        x, angles = self.token_embd(ids), self.angles[: ids.shape[1]]
        for block in self.blk:
            x = block(x, angles.cos(), angles.sin())
        return self.output_norm(x)  # type: ignore[no-any-return]


def windows(ids: Tensor, starts: Tensor, seed: int) -> Iterator[Tensor]:
    """Windows of `CONTEXT` + 1 ids without end; every pass cuts elsewhere and adds half the beginnings."""
    random = torch.Generator().manual_seed(seed)
    while True:
        shift = int(torch.randint(CONTEXT, (1,), generator=random))
        begins = starts[starts < len(ids) - CONTEXT - 1]
        begins = begins[torch.randperm(len(begins), generator=random)[: len(begins) // 2]]
        cuts = torch.cat([torch.arange(shift, len(ids) - CONTEXT - 1, CONTEXT), begins])
        for cut in cuts[torch.randperm(len(cuts), generator=random)].tolist():
            yield ids[cut : cut + CONTEXT + 1]


def make_optimizers(model: Model) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [p for p in model.blk.parameters() if p.ndim == 2]
    norms = {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}
    embeddings = {"params": [model.token_embd.weight], "weight_decay": 0.01}
    return [
        torch.optim.Muon(matrices, lr=RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([embeddings, norms], lr=RATE, betas=(0.9, 0.95)),
    ]


def schedule(progress: float) -> float:
    """Share of the learning rate: warm-up, then straight to zero (Bergsma et al. 2025)."""
    return min(progress / 0.02, (1 - progress) / 0.98)


def loss_of(model: Model, batch: Tensor, length: int) -> Tensor:
    """Mean cross-entropy in nats a token; the rows of `batch` are cut to `length`."""
    goals, total = batch[:, 1:].flatten(), torch.zeros(())
    with torch.autocast("cpu", torch.bfloat16):
        last: Tensor = model(batch[:, :-1].reshape(-1, length)).flatten(0, 1)
        # In parts, so that the logits stay in the cache: half the time.
        for x, goal in zip(last.chunk(4), goals.chunk(4), strict=True):
            logits = functional.linear(x, model.token_embd.weight)
            total = total + functional.cross_entropy(logits.float(), goal, reduction="sum")
    return total / len(goals)


def save(path: Path, parts: list[Any], step: int, elapsed: float) -> None:
    """Write a checkpoint; the old one stays until the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(([part.state_dict() for part in parts], step, elapsed), path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def restore(path: Path, parts: list[Any]) -> tuple[int, float]:
    """Fill model and optimizers from a checkpoint; returns its step and the seconds trained so far."""
    states, step, elapsed = torch.load(path, weights_only=True)
    for part, state in zip(parts, states, strict=True):
        part.load_state_dict(state)
    return step, elapsed


def train(args: argparse.Namespace) -> None:
    """Train for some minutes of wall-clock time, then export."""
    torch.manual_seed(args.seed)
    tales, held = read_tales(args.corpus)
    tokenizer, checkpoint = train_tokenizer(tales), args.work / "checkpoint.pt"
    ids, starts = encode_tales(tokenizer, tales)
    text, model = "\n\n".join(held), Model()
    optimizers = make_optimizers(model)
    step, elapsed = restore(checkpoint, [model, *optimizers]) if args.resume else (0, 0.0)
    source, saved, mean = windows(ids, starts, args.seed + step), elapsed, math.nan
    print(sum(p.numel() for p in model.parameters()), "parameters,", len(ids), "tokens", flush=True)
    while (progress := elapsed / (60 * args.minutes)) < 1:
        begin = time.monotonic()
        batch = torch.stack([next(source) for _ in range(BATCH)])
        # Short windows come first, for attention is a third of the work (Li et al. 2022).
        parts = 4 if progress < 0.35 else 2 if progress < 0.65 else 1
        loss = loss_of(model, batch, CONTEXT // parts)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = RATE * schedule(progress)
            optimizer.step()
        step, elapsed = step + 1, elapsed + time.monotonic() - begin
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            tokens = step * BATCH * CONTEXT
            print(f"step {step} minute {elapsed / 60:.1f} tokens {tokens} loss {mean:.4f}", flush=True)
        if elapsed - saved > 300:
            saved = elapsed
            save(checkpoint, [model, *optimizers], step, elapsed)
            print(f"held out {score(model, tokenizer, text[:60000])[0]:.4f}", flush=True)
    save(checkpoint, [model, *optimizers], step, elapsed)
    print(f"step {step} held out {score(model, tokenizer, text)[0]:.4f}")
    export(model, tokenizer, args.out)


def export(model: Model, tokenizer: Tokenizer, out: Path) -> None:
    """Write `out` as GGUF: matrices in Q8_0, norms in F32, the output layer shared with the embeddings."""
    writer = gguf.GGUFWriter(str(out) + ".new", "llama")
    bpe = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    field: dict[str, Any] = {"name": "ggrun fairy tales", "description": DESCRIPTION, "license": "MIT"}
    field |= {"file_type": gguf.LlamaFileType.MOSTLY_Q8_0, "quantization_version": gguf.GGML_QUANT_VERSION}
    field |= {"vocab_size": VOCAB, "context_length": CONTEXT, "embedding_length": DIM}
    field |= {"block_count": LAYERS, "feed_forward_length": HIDDEN}
    field |= {"head_count": HEADS, "head_count_kv": KV_HEADS, "layer_norm_rms_eps": EPS}
    field |= {"rope_freq_base": ROPE_BASE, "rope_dimension_count": HEAD_DIM}
    field |= {"tokenizer_model": "gpt2", "tokenizer_pre": "gpt-2", "token_list": tokens}
    field |= {"token_types": [3 if token in CONTROL else 1 for token in tokens]}
    field |= {"token_merges": [" ".join(merge) for merge in bpe["merges"]]}
    field |= {"bos_token_id": BOS, "eos_token_id": EOS, "add_bos_token": True}
    for name, value in field.items():
        getattr(writer, f"add_{name}")(value)
    for name, weight in model.state_dict().items():
        kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
    out.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(str(out) + ".new", out)  # a reader never sees half a file
    print(f"{out}: {out.stat().st_size} bytes")


def load(path: Path) -> tuple[Model, Tokenizer]:
    """Model and tokenizer from nothing but a file that `export` wrote, its weights made float32 again."""
    reader = gguf.GGUFReader(path)
    state = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    field = {name: value.contents() for name, value in reader.fields.items()}
    model = Model()
    model.load_state_dict(state)
    vocabulary = {token: i for i, token in enumerate(field["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in field["tokenizer.ggml.merges"]]
    return model.eval(), byte_level(models.BPE(vocabulary, merges))


@torch.no_grad()
def score(model: Model, tokenizer: Tokenizer, text: str) -> tuple[float, int, int]:
    """Nats a token, tokens and bytes scored: of each window from BOS the second half, as llama.cpp does."""
    half = CONTEXT // 2
    ids = torch.tensor([BOS, *tokenizer.encode(text).ids])
    rows, nats, size = ids[: len(ids) // (2 * half) * 2 * half].view(-1, 2 * half), 0.0, 0
    model.eval()
    for row in rows:
        seen, goals = torch.cat([torch.tensor([BOS]), row[1:-1]]), row[half + 1 :]
        logits = functional.linear(model(seen[None])[0, half:], model.token_embd.weight)
        nats += functional.cross_entropy(logits, goals, reduction="sum").item()
        size += len(tokenizer.decode(goals.tolist()).encode())
    model.train()
    count = len(rows) * (half - 1)
    return nats / max(count, 1), count, size


def heldout(args: argparse.Namespace) -> None:
    """Write the held-out tales to a file."""
    args.out.write_text("\n\n".join(read_tales(args.corpus)[1]), encoding="utf-8")


def perplexity(args: argparse.Namespace) -> None:
    """Print how well a model foretells a text."""
    model, tokenizer = load(args.model)
    nats, tokens, size = score(model, tokenizer, args.text.read_text(encoding="utf-8"))
    a_byte = nats * tokens / max(size, 1)
    print(f"{tokens} tokens, {size} bytes: {nats:.4f} nats a token, {a_byte / math.log(2):.4f} bits a byte;")
    print(f"perplexity {math.exp(nats):.3f} a token, {math.exp(a_byte):.4f} a byte")


@torch.no_grad()
def sample(args: argparse.Namespace) -> None:
    """Go on from a prompt till EOS with the `--top-p` likeliest tokens (Holtzman et al. 2020)."""
    model, tokenizer = load(args.model)
    ids, random = [BOS, *tokenizer.encode(args.prompt).ids], torch.Generator().manual_seed(args.seed)
    for _ in range(args.n):
        last = model(torch.tensor([ids[-CONTEXT:]]))[0, -1]
        logits = functional.linear(last, model.token_embd.weight) / max(args.temp, 1e-6)
        chance, order = logits.softmax(-1).sort(descending=True)
        chance[chance.cumsum(-1) - chance > args.top_p] = 0
        if (token := int(order[torch.multinomial(chance, 1, generator=random)])) == EOS:
            break
        ids.append(token)
    print(tokenizer.decode(ids[1:]))


# Flags and positions of every sub-command: its default (a type where there is none) and its help.
COMMANDS: dict[Callable[[argparse.Namespace], None], dict[str, tuple[Any, str]]] = {
    train: {
        "--corpus": (Path("fairy-tales.txt"), "plain text of the tales"),
        "--out": (Path("models/fairy-tales-q8_0.gguf"), "the GGUF file to write"),
        "--minutes": (75.0, "time to train for; the schedule follows it"),
        "--work": (Path("build/train-demo"), "folder of the checkpoint"),
        "--resume": (False, "go on from the checkpoint"),
        "--seed": (1, "of the weights and of the order of the windows"),
    },
    heldout: {"corpus": (Path, "plain text of the tales"), "out": (Path, "the text file to write")},
    perplexity: {"model": (Path, "a file that train wrote"), "text": (Path, "text to judge it by")},
    sample: {
        "model": (Path, "a file that train wrote"),
        "--prompt": ("Once upon a time", "the beginning of the tale"),
        "--n": (200, "tokens to write at most"),
        "--temp": (0.7, "temperature; 0 is greedy"),
        "--top-p": (0.9, "mass of the tokens to choose from"),
        "--seed": (1, "of the choices"),
    },
}


def main() -> None:
    """Run one sub-command; a wrong file is one line, not a traceback."""
    commands = (top := argparse.ArgumentParser(description=__doc__)).add_subparsers(required=True)
    for job, options in COMMANDS.items():
        command = commands.add_parser(job.__name__, help=job.__doc__)
        command.set_defaults(job=job)
        for flag, (default, text) in options.items():
            if default is False:
                command.add_argument(flag, action="store_true", help=text)
            else:
                kind = default if flag[0] != "-" else type(default)
                command.add_argument(flag, type=kind, default=default, help=f"{text} (default: {default})")
    args = top.parse_args()
    try:
        args.job(args)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"train_demo: {error}")


if __name__ == "__main__":
    main()
