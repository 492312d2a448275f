"""Where a worker's weights come from: its own files, its cache, or the client; and never twice."""

import os
import shutil
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from ggrun import LLM
from ggrun.bundled import demo_model
from ggrun.engine.hosts import HostLost
from ggrun.errors import GgrunError
from ggrun.gguf import FORMATS, GGUF
from ggrun.rpc import hashes as hashing
from ggrun.rpc.hashes import hashes
from ggrun.rpc.opening import Declared
from ggrun.rpc.placed import RpcOptions
from ggrun.rpc.store import Library, Store
from tests.rpc.conftest import Start
from tests.rpc.processes import plan_of
from tests.rpc.proxy import Proxy
from tests.tiny import Tiny

MODEL, HALVES = Path(demo_model()), 16
PROMPT = "The king ordered the"


@pytest.fixture(scope="module")
def want() -> str:
    with LLM(MODEL, n_ctx=256, threads=1) as llm:
        return "".join(llm.generate(PROMPT, temp=0.0, max_tokens=20))


def load(proxy: Proxy, want: str) -> None:
    """All layers on the worker; the text must be right."""
    plan = plan_of(MODEL, ("cpu", 0), (f"{proxy.address}/cpu:0:1GB", HALVES))
    with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=RpcOptions(proxy.address, insecure=1)) as llm:
        assert "".join(llm.generate(PROMPT, temp=0.0, max_tokens=20)) == want


def sent(port: int, want: str) -> int:
    """The bytes that a load and a short answer send."""
    with Proxy(port) as proxy:
        load(proxy, want)
        return proxy.up


def test_weights_are_sent_once(start: Start, want: str) -> None:
    worker = start("--insecure")
    first, second = sent(worker.port, want), sent(worker.port, want)
    assert first > 6 << 20
    assert second < 1_000_000


def test_weights_that_the_worker_has_are_not_sent(start: Start, want: str, tmp_path: Path) -> None:
    """By what is in the file, whatever its name is; other models and no models beside it do no harm."""
    (tmp_path / "models" / "deep").mkdir(parents=True)
    shutil.copy(MODEL, tmp_path / "models" / "deep" / "renamed.gguf")
    Tiny().write(tmp_path / "models" / "tiny.gguf")
    (tmp_path / "models" / "broken.gguf").write_bytes(b"GGUF")
    worker = start("--insecure", "--models", str(tmp_path / "models"))
    assert sent(worker.port, want) < 1_000_000
    assert "broken.gguf is left out" in worker.text
    assert not list((worker.folder / "cache").glob("??/*"))


def test_a_file_of_the_same_shape_is_not_taken_for_it(start: Start, tmp_path: Path) -> None:
    path = Tiny(seed=1).write(tmp_path / "model.gguf")
    (tmp_path / "models").mkdir()
    Tiny(seed=2).write(tmp_path / "models" / "model.gguf")
    worker = start("--insecure", "--models", str(tmp_path / "models"))
    plan = plan_of(path, (worker.device(), 4))
    with (
        LLM(path, threads=1, devices="cpu") as here,
        LLM(path, threads=1, plan=plan, rpc=RpcOptions(worker.address, insecure=1)) as there,
    ):
        assert np.array_equal(here.logits(range(20)), there.logits(range(20)))


def test_a_broken_load_goes_on_where_it_was(start: Start, want: str) -> None:
    worker = start("--insecure")
    with Proxy(worker.port, break_at=6 << 20, pace=0.005) as proxy:
        plan = plan_of(MODEL, (f"{proxy.address}/cpu:0:1GB", HALVES))
        told: list[str] = []
        rpc = RpcOptions(proxy.address, insecure=1, tell=told.append)
        with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc) as llm:
            assert "".join(llm.generate(PROMPT, temp=0.0, max_tokens=20)) == want
        assert len(told) == 1
        assert proxy.address not in llm.plan.to_json()
    worker.wait_for("has gone")
    assert sent(worker.port, want) < 6 << 20


def test_nothing_stays_without_a_cache(start: Start, want: str) -> None:
    worker = start("--insecure", "--no-cache")
    assert sent(worker.port, want) > 6 << 20
    assert not list((worker.folder / "cache").glob("??/*"))
    assert sent(worker.port, want) > 6 << 20


def test_three_clients_at_once_and_room(start: Start, want: str) -> None:
    """Each has its memory; who comes too late is told, and leaves the others as they are."""
    worker = start("--insecure", "--max-memory", "64MB", "--max-clients", "4")
    plan = plan_of(MODEL, ("cpu", 2), (worker.device(), HALVES))
    rpc = RpcOptions(worker.address, insecure=1)
    errors: list[BaseException] = []

    def client() -> None:
        try:
            with LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc) as llm:
                for _ in range(3):
                    assert "".join(llm.generate(PROMPT, temp=0.0, max_tokens=20)) == want
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with ExitStack() as stack:
        models = [stack.enter_context(LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc)) for _ in range(3)]
        with pytest.raises(GgrunError, match=f"does not fit: {worker.device()} needs 17 MiB"):
            LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc)
        with pytest.raises(GgrunError, match=r"1GB: 1\d MiB are needed, \d+ MiB are left"):
            LLM(MODEL, n_ctx=256, threads=1, plan=plan, rpc=rpc, fit=False)
        for model in models:
            assert "".join(model.generate(PROMPT, temp=0.0, max_tokens=20)) == want
    deadline = time.monotonic() + 10
    while worker.text.count("has gone") < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert worker.text.count("has gone") == worker.text.count("has come") == 8


# ---------------------------------------------------------------- the store


def tensor(name: str, data: bytes) -> Declared:
    return Declared(name, (len(data),), FORMATS["I8"], sha256(data).digest())


def put(store: Store, one: Declared, data: bytes) -> np.ndarray:
    incoming = store.begin(one)
    incoming.write(data[incoming.offset :])
    return incoming.finish()


def test_the_least_recently_used_goes(tmp_path: Path) -> None:
    store = Store(tmp_path, 250)
    tensors = [(tensor(str(i), bytes([i]) * 100), bytes([i]) * 100) for i in range(3)]
    for age, (one, data) in enumerate(tensors):
        put(store, one, data)
        path = next(p for p in tmp_path.glob("??/*") if p.name == one.sha256.hex())
        os.utime(path, (age + 1, age + 1))
    kept = store.find(tensors[0][0])  # and so it is the latest
    assert kept is not None
    store.trim()
    assert [store.find(one) is not None for one, _ in tensors] == [True, False, True]
    assert bytes(kept) == tensors[0][1]


def test_what_is_mapped_stays_for_who_maps_it(tmp_path: Path) -> None:
    store = Store(tmp_path, 0)
    data = bytes(range(100))
    mapped = put(store, tensor("a", data), data)
    store.trim()
    assert store.find(tensor("a", data)) is None
    assert bytes(mapped) == data


def test_what_has_another_hash_is_refused_and_forgotten(tmp_path: Path) -> None:
    store, right = Store(tmp_path, 1000), bytes(100)
    one = tensor("a", right)
    incoming = store.begin(one)
    incoming.write(bytes([1]) * 100)
    with pytest.raises(GgrunError, match=r"^tensor a: what came has another SHA-256"):
        incoming.finish()
    incoming.close()
    assert store.find(one) is None
    assert bytes(put(store, one, right)) == right


def test_a_part_is_gone_on_with(tmp_path: Path) -> None:
    store, data = Store(tmp_path, 1000), bytes(range(200))
    one = tensor("a", data)
    first = store.begin(one)
    first.write(data[:120])
    both = store.begin(one)  # another client's, at the same time
    assert both.offset == 0
    first.close()
    second = store.begin(one)
    assert second.offset == 120
    second.close()
    both.write(data)
    assert bytes(both.finish()) == data


def test_no_room_on_the_disk(tmp_path: Path) -> None:
    with pytest.raises(GgrunError, match="the worker's disk has no room for"):
        Store(tmp_path, 1000).check_room(1 << 60)


def test_hashes_are_kept_while_the_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGRUN_CACHE", str(tmp_path / "cache"))
    path = Tiny(seed=1).write(tmp_path / "model.gguf")
    told: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        told.append(what)

    model = GGUF(path)
    names = list(model.tensors)
    found = hashes(model, names[:3], progress)
    assert found == {name: sha256(model.tensors[name].data).digest() for name in names[:3]}
    assert len(told) == 3
    assert hashes(GGUF(path), names[:3], progress) == found
    assert len(told) == 3
    hashes(model, names[:4], progress)
    assert len(told) == 4
    Tiny(seed=2).write(path)
    other = GGUF(path)
    again = hashes(other, names[:3], progress)
    assert again["token_embd.weight"] != found["token_embd.weight"]
    file = next((tmp_path / "cache" / "hashes").iterdir())
    for text in ("{", "[" * 100_000):
        file.write_text(text)
        assert hashes(other, names[:3]) == again
    assert hashing.silent("", 0, 0) is None


def test_the_library_looks_at_shape_and_format_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGRUN_CACHE", str(tmp_path / "cache"))
    path = Tiny().write(tmp_path / "model.gguf")
    model = GGUF(path)
    one = model.tensors["output.weight"]
    declared = Declared(one.name, one.shape, one.format, sha256(one.data).digest())
    assert list(Library(tmp_path).find([declared])) == ["output.weight"]
    assert Library(tmp_path).find([replace(declared, shape=(1, 2))]) == {}
    assert Library(tmp_path).find([replace(declared, sha256=bytes(32))]) == {}
    assert Library(None).find([declared]) == {}


def test_lost(start: Start) -> None:
    with pytest.raises(HostLost, match="cannot be reached"):
        LLM(MODEL, rpc=RpcOptions("127.0.0.1:1", insecure=1))
