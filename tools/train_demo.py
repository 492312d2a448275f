"""Train, export, judge and sample the bundled fairy-tale model (development only: torch, tokenizers, gguf)."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

BOS, EOS = 0, 1
CONTROL = ["<s>", "</s>"]
Q8_0 = gguf.GGMLQuantizationType.Q8_0
DESCRIPTION = "A small llama model that writes fairy tales; it shows that ggrun works, and it knows nothing else."

# ---------------------------------------------------------------------------------------------- the corpus

HELD_OUT_EVERY, HELD_OUT_FIRST = 29, 16  # whole tales, so that no sentence of theirs is ever trained on
FRONT = re.compile(
    r"(?i:by various|edited\s+by|by anonymous|by the brothers|preparer|\*{5}|oyez|\*\*welcome)"
    r"|The Wonderful Wizard of Oz$|ALICE'S ADVENTURES IN WONDERLAND$"
)
CHAPTER = re.compile(r"(CHAPTER )?([IVXLC]+|\d+)\.?$|CHAPTER |\d+\. ")
SOURCE = re.compile(
    r"[\[(].*[\])]\.?$|\(\d+\)|(From|Translated|Adapted|Kletke|Grimm|Sicilianische|Bibliotheque|End of"
    r"|By the Comte|A Pushto)\b"
)
MARK = re.compile(r"\s?(\[[^\]]*\]|\(\d+\))|[_*]")  # footnote marks and the signs of italics
CAPITALS = re.compile(r"^([A-Z])([A-Z]+)(?= [a-z])")  # ONCE upon a time


def is_title(text: str) -> bool:
    """A short line in which all words of four letters or more begin with a capital."""
    if not text or "\n" in text or len(text) > 90 or not text[0].isupper() or text[-1] in ".,;:!?'\"-":
        return False
    return all(word[0].isupper() for word in re.findall(r"[A-Za-z']+", text) if len(word) > 3)


def read_tales(corpus: Path) -> list[str]:
    """The prose of a volume of tales: no prefaces, contents, headings, sources or notes; one string a tale."""
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
        elif is_title(text) and "\n" not in following and not CHAPTER.match(text):
            tales.append([])
        elif text and not (len(text) < 90 and (CHAPTER.match(text) or is_capitals(text))):
            tales[-1].append(CAPITALS.sub(lambda m: m[1] + m[2].lower(), text))
    joined = ["\n\n".join(tale) for tale in tales]
    return [tale for tale in joined if len(tale) > 400]


def is_capitals(text: str) -> bool:
    """A heading inside a tale; shouted speech stands in quotation marks and stays."""
    return text.upper() == text and text[0] not in "'\"("


def split_tales(tales: list[str]) -> tuple[list[str], list[str]]:
    """Tales to train on and whole tales held out, by a fixed rule."""
    held = [tale for i, tale in enumerate(tales) if i % HELD_OUT_EVERY == HELD_OUT_FIRST]
    return [tale for i, tale in enumerate(tales) if i % HELD_OUT_EVERY != HELD_OUT_FIRST], held


# ---------------------------------------------------------------------------------------------- the tokenizer


def byte_level(model: models.BPE) -> Tokenizer:
    """Byte-level BPE with the pre-tokenizer of GPT-2 (Radford et al. 2019), as llama.cpp's `gpt-2`."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(tales: list[str], vocab: int) -> Tokenizer:
    """Learn `vocab` tokens: two control tokens, 256 bytes, and merges (Sennrich et al. 2016)."""
    tokenizer = byte_level(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(tales, trainer)
    return tokenizer


def vocabulary(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Tokens in the order of their ids, and merges ("left right") in the order of their rank."""
    import json

    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def encode_tales(tokenizer: Tokenizer, tales: list[str]) -> tuple[Tensor, Tensor]:
    """All tales in one row of ids, each between BOS and EOS; and where each begins."""
    rows = [[BOS, *encoding.ids, EOS] for encoding in tokenizer.encode_batch(tales)]
    starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
    return torch.tensor([i for row in rows for i in row]), torch.from_numpy(starts)


# ---------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class Shape:
    """Sizes of a llama; every row of a matrix is a multiple of the 32 weights of a Q8_0 block."""

    vocab: int = 4096
    dim: int = 256
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 704
    context: int = 512
    rope_base: float = 10000.0
    eps: float = 1e-5
    dropout: float = 0.05

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE over the pairs (0,1), (2,3), ... of x (batch, heads, time, head_dim): Su et al. 2021."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    """Attention with grouped heads (Ainslie et al. 2023), then SwiGLU (Shazeer 2020); names as in GGUF."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.attn_norm = nn.RMSNorm(s.dim, s.eps)
        self.attn_q = nn.Linear(s.dim, s.heads * s.head_dim, bias=False)
        self.attn_k = nn.Linear(s.dim, s.kv_heads * s.head_dim, bias=False)
        self.attn_v = nn.Linear(s.dim, s.kv_heads * s.head_dim, bias=False)
        self.attn_output = nn.Linear(s.heads * s.head_dim, s.dim, bias=False)
        self.ffn_norm = nn.RMSNorm(s.dim, s.eps)
        self.ffn_gate = nn.Linear(s.dim, s.hidden, bias=False)
        self.ffn_up = nn.Linear(s.dim, s.hidden, bias=False)
        self.ffn_down = nn.Linear(s.hidden, s.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.attn_norm(x), cos, sin))
        h = self.ffn_norm(x)
        return x + self.drop(self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h)))

    def attention(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal attention; h is (batch, time, dim)."""
        s, (batch, time_, _) = self.shape, h.shape
        q = self.attn_q(h).view(batch, time_, s.heads, s.head_dim).transpose(1, 2)
        k = self.attn_k(h).view(batch, time_, s.kv_heads, s.head_dim).transpose(1, 2)
        v = self.attn_v(h).view(batch, time_, s.kv_heads, s.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        k, v = (t.repeat_interleave(s.heads // s.kv_heads, 1) for t in (k, v))
        q = q / math.sqrt(s.head_dim)
        future = torch.full((time_, time_), -1e9, dtype=q.dtype).triu(1)
        scores = q @ k.transpose(2, 3) + future
        mixed = scores.softmax(-1) @ v
        return self.attn_output(mixed.transpose(1, 2).reshape(batch, time_, -1))

    def drop(self, x: Tensor) -> Tensor:
        """One mask for all positions of a row (Gal & Ghahramani 2016): almost free, unlike one mask each."""
        return x * F.dropout(x.new_ones(len(x), 1, x.shape[2]), self.shape.dropout, self.training)


class Model(nn.Module):
    """A llama (Touvron et al. 2023) with RMSNorm (Zhang & Sennrich 2019) and tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.dim)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.dim, shape.eps)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                out = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.layers) if out else 0.02)
        rate = shape.rope_base ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angle = torch.outer(torch.arange(shape.context), rate)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """The normed last layer (batch, time, dim) of ids (batch, time), time at most `context`."""
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, self.cos[: ids.shape[1]], self.sin[: ids.shape[1]])  # type: ignore[index]
        return self.output_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """Scores of all tokens (..., vocab)."""
        return F.linear(x, self.token_embd.weight)


# ---------------------------------------------------------------------------------------------- training


def windows(ids: Tensor, starts: Tensor, context: int, seed: int) -> Iterator[Tensor]:
    """Windows of context + 1 ids without end: every pass cuts elsewhere, and half the tales' beginnings join."""
    random = torch.Generator().manual_seed(seed)
    while True:
        shift = int(torch.randint(context, (1,), generator=random))
        begins = starts[starts < len(ids) - context - 1]
        begins = begins[torch.randperm(len(begins), generator=random)[: len(begins) // 2]]
        cuts = torch.cat([torch.arange(shift, len(ids) - context - 1, context), begins])
        for cut in cuts[torch.randperm(len(cuts), generator=random)].tolist():
            yield ids[cut : cut + context + 1]


def make_optimizers(model: Model, rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blk")]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": [model.token_embd.weight], "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95)),
    ]


def schedule(progress: float) -> float:
    """Share of the learning rate: warm-up over 2 % of the time, then straight to zero (Bergsma et al. 2025)."""
    return min(progress / 0.02, (1 - progress) / 0.98)


def span(progress: float, context: int) -> int:
    """Length of the windows: short ones first, for attention is a third of the work (Li et al. 2022)."""
    return context // 4 if progress < 0.35 else context // 2 if progress < 0.65 else context


def loss_of(model: Model, batch: Tensor, length: int) -> Tensor:
    """Mean cross-entropy in nats a token; the rows are cut to `length`."""
    goals = batch[:, 1:].flatten()
    with torch.autocast("cpu", torch.bfloat16):
        last = model(batch[:, :-1].reshape(-1, length)).flatten(0, 1)
        # in parts, so that the logits stay in the cache: half the time
        parts = zip(last.split(1024), goals.split(1024), strict=True)
        return sum((F.cross_entropy(model.logits(x).float(), y, reduction="sum") for x, y in parts), last.new_zeros(())) / len(goals)


class Run:
    """One training run: its state, its steps, its checkpoints."""

    def __init__(self, args: argparse.Namespace, tokenizer: Tokenizer, shape: Shape) -> None:
        torch.manual_seed(args.seed)
        self.args, self.tokenizer = args, tokenizer
        self.model = Model(shape)
        self.optimizers = make_optimizers(self.model, args.rate)
        self.checkpoint = Path(args.work) / "checkpoint.pt"
        self.elapsed, self.step, self.saved = 0.0, 0, 0.0

    def update(self, batch: Tensor) -> float:
        """One step of both optimizers; the loss before it."""
        progress = min(self.elapsed / (60 * self.args.minutes), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.args.rate * schedule(progress)
            optimizer.zero_grad()
        loss = loss_of(self.model, batch, span(progress, self.model.shape.context))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return loss.item()

    def save(self) -> None:
        """Write what is needed to go on; the old checkpoint stays until the new one is whole."""
        state = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}
        state |= {"elapsed": self.elapsed, "step": self.step, "shape": asdict(self.model.shape)}
        state |= {"tokenizer": self.tokenizer.to_str()}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.checkpoint.with_suffix(".new"))
        os.replace(self.checkpoint.with_suffix(".new"), self.checkpoint)
        self.saved = self.elapsed

    def resume(self) -> None:
        """Go on where the last checkpoint stands."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, old in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(old)
        self.elapsed, self.step, self.saved = state["elapsed"], state["step"], state["elapsed"]


def train(args: argparse.Namespace) -> None:
    """Train for `--minutes` of wall-clock time, then export."""
    tales, held = split_tales(read_tales(args.corpus))
    tokenizer = train_tokenizer(tales, Shape.vocab)
    ids, starts = encode_tales(tokenizer, tales)
    text = "\n\n".join(held)
    run = Run(args, tokenizer, Shape(dropout=args.dropout))
    if args.resume:
        run.resume()
    count = sum(p.numel() for p in run.model.parameters())
    print(f"{count} parameters, {len(tales)} tales of {len(ids)} tokens, {len(held)} tales held out", flush=True)
    source = windows(ids, starts, run.model.shape.context, args.seed + run.step)
    mean = math.nan
    while run.elapsed < 60 * args.minutes:
        begin = time.monotonic()
        loss = run.update(torch.stack([next(source) for _ in range(args.batch)]))
        run.elapsed += time.monotonic() - begin
        mean = loss if math.isnan(mean) else 0.98 * mean + 0.02 * loss
        if run.step % 50 == 0:
            report(run, mean)
        if run.elapsed - run.saved > 60 * args.save_minutes:
            run.save()
            nats, _, _ = perplexity(run.model, tokenizer, text[:60000])
            print(f"held out, the first 60000 characters: {nats:.4f} nats a token", flush=True)
    report(run, mean)
    run.save()
    export(run.model, tokenizer, args.out)


def report(run: Run, mean: float) -> None:
    """One line of the log."""
    tokens = run.step * run.args.batch * run.model.shape.context
    speed = tokens / max(run.elapsed, 1e-9)
    print(f"step {run.step} minute {run.elapsed / 60:.1f} tokens {tokens} loss {mean:.4f} {speed:.0f} t/s", flush=True)


# ---------------------------------------------------------------------------------------------- GGUF


def export(model: Model, tokenizer: Tokenizer, out: Path) -> None:
    """Write `out` as GGUF: matrices in Q8_0, norms in F32, the output layer shared with the embeddings."""
    s, writer = model.shape, gguf.GGUFWriter(str(out) + ".new", "llama")
    tokens, merges = vocabulary(tokenizer)
    writer.add_name("ggrun fairy tales")
    writer.add_description(DESCRIPTION)
    writer.add_license("MIT (weights); the texts are in the public domain")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(s.context)
    writer.add_embedding_length(s.dim)
    writer.add_block_count(s.layers)
    writer.add_feed_forward_length(s.hidden)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_layer_norm_rms_eps(s.eps)
    writer.add_rope_freq_base(s.rope_base)
    writer.add_rope_dimension_count(s.head_dim)
    writer.add_vocab_size(s.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in CONTROL else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)
    for name, weight in model.state_dict().items():
        data = weight.float().numpy()
        if data.ndim == 1:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, gguf.quants.quantize(data, Q8_0), raw_dtype=Q8_0)
    out.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(str(out) + ".new", out)  # a reader never sees half a file
    print(f"{out}: {out.stat().st_size} bytes")


def load(path: Path) -> tuple[Model, Tokenizer]:
    """Model and tokenizer from nothing but a file that `export` wrote, weights dequantized to float32."""
    reader = gguf.GGUFReader(path)
    state = {
        t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32))
        for t in reader.tensors
    }

    def field(key: str) -> Any:
        return reader.fields[key].contents()

    layers, heads, kv = (field(f"llama.{k}") for k in ("block_count", "attention.head_count", "attention.head_count_kv"))
    (vocab, dim), hidden = state["token_embd.weight"].shape, state["blk.0.ffn_up.weight"].shape[0]
    model = Model(Shape(vocab, dim, layers, heads, kv, hidden, field("llama.context_length")))
    model.load_state_dict(state)
    tokens = {token: i for i, token in enumerate(field("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    return model.eval(), byte_level(models.BPE(tokens, merges))


# ---------------------------------------------------------------------------------------------- judging, writing


@torch.no_grad()
def perplexity(model: Model, tokenizer: Tokenizer, text: str) -> tuple[float, int, int]:
    """As llama.cpp: windows of `context` ids, the first replaced by BOS, the second half of each is scored.

    Returns nats a token, the number of tokens scored and the number of bytes they stand for.
    """
    training, context = model.training, model.shape.context
    model.eval()
    ids = torch.tensor([BOS, *tokenizer.encode(text).ids])
    rows = ids[: len(ids) // context * context].view(-1, context)
    goals = rows[:, context // 2 + 1 :]
    total = 0.0
    for row in rows:
        seen = torch.cat([torch.tensor([BOS]), row[1:-1]])
        logits = model.logits(model(seen[None])[0, context // 2 :])
        total += F.cross_entropy(logits, row[context // 2 + 1 :], reduction="sum").item()
    model.train(training)
    size = sum(len(tokenizer.decode(goal).encode()) for goal in goals.tolist())
    return total / goals.numel(), goals.numel(), size


@torch.no_grad()
def write(model: Model, ids: list[int], args: argparse.Namespace) -> Iterator[int]:
    """Sample ids one by one until EOS, from the `--top-p` most likely (Holtzman et al. 2020); greedy at 0."""
    random = torch.Generator().manual_seed(args.seed)
    for _ in range(args.n):
        logits = model.logits(model(torch.tensor([ids[-model.shape.context :]]))[0, -1])
        if args.temp == 0:
            token = int(logits.argmax())
        else:
            chance, order = (logits / args.temp).softmax(-1).sort(descending=True)
            chance[chance.cumsum(-1) - chance > args.top_p] = 0
            token = int(order[torch.multinomial(chance, 1, generator=random)])
        if token == EOS:
            return
        ids = [*ids, token]
        yield token


def run_sample(args: argparse.Namespace) -> None:
    """Write on from a prompt."""
    model, tokenizer = load(args.model)
    ids = tokenizer.encode(args.prompt).ids
    print(tokenizer.decode([*ids, *write(model, [BOS, *ids], args)]))


def run_perplexity(args: argparse.Namespace) -> None:
    """Print how well a model foretells a text."""
    model, tokenizer = load(args.model)
    nats, tokens, size = perplexity(model, tokenizer, args.text.read_text(encoding="utf-8"))
    print(f"{nats:.4f} nats a token over {tokens} tokens: perplexity {math.exp(nats):.3f} a token, ", end="")
    print(f"{math.exp(nats * tokens / size):.4f} a byte ({nats * tokens / size / math.log(2):.4f} bits)")


def run_heldout(args: argparse.Namespace) -> None:
    """Write the held-out tales to a file."""
    _, held = split_tales(read_tales(args.corpus))
    args.out.write_text("\n\n".join(held), encoding="utf-8")
    print(f"{len(held)} tales, {args.out.stat().st_size} bytes")


def run_export(args: argparse.Namespace) -> None:
    """Export a checkpoint."""
    state = torch.load(args.checkpoint, weights_only=True)
    model = Model(Shape(**state["shape"]))
    model.load_state_dict(state["model"])
    export(model, Tokenizer.from_str(state["tokenizer"]), args.out)


def parser() -> argparse.ArgumentParser:
    """The command line: one sub-command a job."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, job: Any, *paths: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=job.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(job=job)
        for path in paths:
            sub.add_argument(path, type=Path)
        return sub

    sub = command("train", train)
    sub.add_argument("--corpus", type=Path, required=True, help="plain text of the tales")
    sub.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    sub.add_argument("--minutes", type=float, default=75, help="time to train for; the schedule follows it")
    sub.add_argument("--work", type=Path, default=Path("build/train-demo"), help="folder of the checkpoint")
    sub.add_argument("--save-minutes", type=float, default=5, help="time between checkpoints")
    sub.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    sub.add_argument("--batch", type=int, default=8, help="windows a step")
    sub.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    sub.add_argument("--dropout", type=float, default=0.05, help="share of activations dropped")
    sub.add_argument("--seed", type=int, default=1, help="of the weights and of the order of the windows")
    command("export", run_export, "checkpoint", "out")
    command("heldout", run_heldout, "corpus", "out")
    command("perplexity", run_perplexity, "model", "text")
    sub = command("sample", run_sample, "model")
    sub.add_argument("-p", "--prompt", default="Once upon a time", help="the beginning of the tale")
    sub.add_argument("-n", type=int, default=200, help="tokens to write")
    sub.add_argument("--temp", type=float, default=0.7, help="temperature; 0 is greedy")
    sub.add_argument("--top-p", type=float, default=0.9, help="mass of the tokens to choose from")
    sub.add_argument("--seed", type=int, default=1, help="of the sampling")
    return top


def main() -> None:
    """Run one sub-command; a wrong file is one line, not a traceback."""
    args = parser().parse_args()
    try:
        args.job(args)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"train_demo: {error}")


if __name__ == "__main__":
    main()
