"""One engine in a process of its own, for compare_llama_cpp.py: JSON commands in, answers out, a line each.

The only argument is a JSON object: the fields of Settings. The first line out, {"about", "vocab", "memory",
"load"} (seconds), comes when the model is loaded and has computed its first token. Then, from stdin:

    {"do": "pp", "n": 512}                the seconds that a prompt of 512 tokens takes
    {"do": "tg", "n": 64, "depth": 0}     the seconds of 64 tokens, one at a time, behind a filled context
    {"do": "logits", "n": 72, "single": 8, "path": "x.npy"}
                                          the logits of 72 tokens, the last 8 of them one at a time
    {"do": "memory"}                      MiB: rss, peak, anonymous

All engines are given the same tokens, drawn at random once: position i of a text always holds token i.
"""

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FIRST_PROMPT = 8
"""Tokens of the prompt before the first token."""
KIND_NAMES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
_FLASH = {"auto": -1, "off": 0, "on": 1}
_BF16 = 30  # ggml's number, which llama-cpp-python has no name for


@dataclass(frozen=True)
class Settings:
    """What to load, and how. engine: ggrun, repack or plain (llama.cpp with and without repacked weights)."""

    engine: str
    model: str
    threads: int
    n_ctx: int
    cache_k: str = "f16"
    cache_v: str = "f16"
    flash: str = "auto"
    rpc: str = ""  # the address of a worker, which has the last `layers`: see compare_rpc.py
    layers: int = 0
    library: str = ""


class Engine(Protocol):
    """What a session needs of an engine: one sequence that grows and steps back."""

    about: str
    vocab: int

    def feed(self, tokens: NDArray[np.int32]) -> None:
        """Append tokens; return when the logits after the last are there."""

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Append tokens; the logits after each: [n, vocab]."""

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""


class Ggrun:
    """ggrun's engine, below its sampling."""

    def __init__(self, s: Settings) -> None:
        from ggrun import LLM, __version__
        from ggrun.kernels import load_cpu

        where = {"rpc": s.rpc, "n_gpu_layers": s.layers, "devices": "cpu"} if s.rpc else {}
        llm = LLM(
            s.model, n_ctx=s.n_ctx, threads=s.threads, cache_type_k=s.cache_k, cache_type_v=s.cache_v, **where
        )
        self._engine = llm._engine
        self.vocab = llm.config.vocab
        self.about = f"{__version__}, instructions: {load_cpu('llvm_ir').ISA}"

    def feed(self, tokens: NDArray[np.int32]) -> None:
        self._engine.decode(tokens.tolist())

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        return self._engine.decode(tokens.tolist(), all_logits=True)

    def truncate(self, length: int) -> None:
        self._engine.cache.truncate(0, length)


class LlamaCpp:
    """llama.cpp by its C interface."""

    def __init__(self, s: Settings) -> None:
        self._api = api = _llama_api()
        api.llama_backend_init()
        params = _model_params(api, s)
        if s.rpc:
            params.n_gpu_layers, params.devices = s.layers, llama_rpc(s.library).devices(s.rpc)
        self._model = api.llama_model_load_from_file(os.fsencode(s.model), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {s.model}")
        params = _context_params(api, s)
        self._most = params.n_batch
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._memory = api.llama_get_memory(self._context)
        self._length = 0
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        version = importlib.metadata.version("llama-cpp-python")
        self.about = f"of llama-cpp-python {version}, {api.llama_print_system_info().decode().strip()}"

    def feed(self, tokens: NDArray[np.int32]) -> None:
        for part in self._parts(tokens):
            pointer = part.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            self._decode(self._api.llama_batch_get_one(pointer, len(part)), len(part))
        # decode may return before all is computed: this waits, and finds the logits.
        self._api.llama_get_logits_ith(self._context, -1)

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        return np.concatenate([self._all_logits(part) for part in self._parts(tokens)])

    def truncate(self, length: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, 0, length, -1)
        self._length = min(length, self._length)

    def _parts(self, tokens: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        return [np.ascontiguousarray(tokens[i : i + self._most]) for i in range(0, len(tokens), self._most)]

    def _all_logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        n, api = len(tokens), self._api
        batch = api.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i, token in enumerate(tokens.tolist()):
            batch.token[i], batch.pos[i] = token, self._length + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, True
        self._decode(batch, n)
        api.llama_batch_free(batch)
        return np.ctypeslib.as_array(api.llama_get_logits(self._context), (n, self.vocab)).copy()

    def _decode(self, batch: Any, n: int) -> None:
        if status := self._api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode: status {status}")
        self._length += n


@cache
def _llama_api() -> ModuleType:
    """The ctypes half of llama-cpp-python; importing the package whole would cost its start some 100 ms."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        raise RuntimeError("llama-cpp-python is not installed: pip install llama-cpp-python")
    package = ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


class LlamaRpc:
    """llama.cpp's RPC, client and server: ggml's own C interface, of a library that is loaded beside it."""

    def __init__(self, library: str) -> None:
        _llama_api().llama_backend_init()
        folder = Path(sys.modules["llama_cpp"].__path__[0]) / "lib"
        self._ggml = ctypes.CDLL(str(folder / "libggml.so"))
        self._base = ctypes.CDLL(str(folder / "libggml-base.so"))
        for api, name in ((self._ggml, "ggml_backend_load"), (self._ggml, "ggml_backend_dev_by_type")):
            getattr(api, name).restype = ctypes.c_void_p
        if not self._ggml.ggml_backend_load(os.fsencode(library)):
            raise RuntimeError(f"{library}: llama.cpp cannot load it")
        self._rpc = ctypes.CDLL(library)
        self._rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p

    def devices(self, address: str) -> Any:
        """The devices of a server, as llama_model_params has them."""
        registry = ctypes.c_void_p(self._rpc.ggml_backend_rpc_add_server(address.encode()))
        self._base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
        self._list = (ctypes.c_void_p * 2)(
            self._base.ggml_backend_reg_dev_get(registry, ctypes.c_size_t(0)), None
        )
        return ctypes.cast(self._list, ctypes.c_void_p)

    def serve(self, address: str, threads: int, cache: str) -> None:
        """Serve this machine's CPU, without end."""
        cpu = (ctypes.c_void_p * 1)(self._ggml.ggml_backend_dev_by_type(0))
        size = ctypes.c_size_t
        self._rpc.ggml_backend_rpc_start_server(address.encode(), cache.encode(), size(threads), size(1), cpu)


@cache
def llama_rpc(library: str) -> LlamaRpc:
    """One is enough: what it gives must stay."""
    return LlamaRpc(library)


def _model_params(api: ModuleType, s: Settings) -> Any:
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = s.engine == "repack"
    return params


def _context_params(api: ModuleType, s: Settings) -> Any:
    """llama-cli's defaults, written down: they decide the figures."""
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = s.n_ctx, 2048, 512
    params.n_threads = params.n_threads_batch = s.threads
    params.flash_attn_type = _FLASH[s.flash]
    kinds = [getattr(api, f"GGML_TYPE_{KIND_NAMES[k]}", _BF16) for k in (s.cache_k, s.cache_v)]
    params.type_k, params.type_v = kinds
    params.offload_kqv = params.op_offload = params.swa_full = False
    return params


ENGINES: dict[str, type[Ggrun] | type[LlamaCpp]] = {"ggrun": Ggrun, "repack": LlamaCpp, "plain": LlamaCpp}


class Session:
    """Answers commands with an engine."""

    def __init__(self, engine: Engine, n_ctx: int) -> None:
        self._engine, self._length = engine, 0
        self._tokens = np.random.default_rng(7).integers(engine.vocab, size=n_ctx).astype(np.int32)

    def pp(self, n: int) -> float:
        """Seconds of a prompt."""
        self._fill(0)
        begin = time.perf_counter()
        self._fill(n)
        return time.perf_counter() - begin

    def tg(self, n: int, depth: int) -> float:
        """Seconds of n tokens, one at a time, after `depth` others."""
        self._fill(depth)
        begin = time.perf_counter()
        for i in range(depth + 1, depth + n + 1):
            self._fill(i)
        return time.perf_counter() - begin

    def logits(self, n: int, single: int, path: str) -> str:
        """Save the logits of n tokens, of which the last `single` come one at a time."""
        self._fill(0)
        cuts = [0, *range(n - single, n + 1)]
        parts = [self._engine.logits(self._tokens[a:b]) for a, b in pairwise(cuts) if a < b]
        self._length = n
        np.save(path, np.concatenate(parts))
        return path

    def memory(self) -> dict[str, float]:
        """The process's resident set in MiB: now, at its largest, and what is no file's."""
        lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
        status = {name: value.split()[0] for name, _, value in lines if value.strip()}
        names = {"rss": "VmRSS", "peak": "VmHWM", "anonymous": "RssAnon"}
        return {name: int(status[key]) / 1024 for name, key in names.items()}

    def _fill(self, length: int) -> None:
        """Make the text `length` tokens long."""
        if length < self._length:
            self._engine.truncate(length)
        elif length > self._length:
            self._engine.feed(self._tokens[self._length : length])
        self._length = length


def serve(settings: Settings) -> None:
    """Answer commands until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints must not come between the answers

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        begin = time.perf_counter()
        engine: Engine = ENGINES[settings.engine](settings)
        load = time.perf_counter() - begin
        session = Session(engine, settings.n_ctx)
        session.pp(FIRST_PROMPT)
        answer({"about": engine.about, "vocab": engine.vocab, "memory": session.memory(), "load": load})
        for line in sys.stdin:
            command = json.loads(line)
            answer({"value": getattr(session, command.pop("do"))(**command)})
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
        sys.exit(1)


if __name__ == "__main__":
    serve(Settings(**json.loads(sys.argv[1])))
