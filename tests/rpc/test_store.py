"""A worker's weights on its disk: what is there is right, belongs to it, and keeps to its size."""

import os
import re
import shutil
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ggrun.devices.base import Limits
from ggrun.engine.runner import CacheSpec
from ggrun.errors import GgrunError, Interrupted
from ggrun.gguf import FORMATS, GGUF
from ggrun.plan.facts import ModelFacts
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc import hashes as hashing
from ggrun.rpc.hashes import hashes
from ggrun.rpc.intake import Intake
from ggrun.rpc.opening import Declared, Opening, opening, read, wanted
from ggrun.rpc.store import Library, Store
from ggrun.rpc.wire import ProtocolError
from tests.rpc.processes import plan_of
from tests.tiny import Tiny
from tests.waiting import PATIENCE, ended, in_time


def tensor(name: str, data: bytes) -> Declared:
    return Declared(name, (len(data),), FORMATS["I8"], sha256(data).digest())


def put(store: Store, one: Declared, data: bytes) -> np.ndarray:
    incoming = store.begin(one)
    incoming.write(data[incoming.offset :])
    found = incoming.finish()
    assert found is not None
    return found


def place(folder: Path, one: Declared, ending: str = "") -> Path:
    """Where the file of a tensor belongs, in a folder that is there."""
    name = one.sha256.hex()
    (folder / name[:2]).mkdir(exist_ok=True)
    return folder / name[:2] / (name + ending)


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


def test_files_of_others_stay(tmp_path: Path) -> None:
    """Whatever folder --cache-dir is."""
    store, digest = Store(tmp_path, 0), "ab" + "0" * 62
    others = [f"hf/{name}" for name in ("README", "model.gguf", "model.part", digest)]
    others += [f"ab/{digest}.gguf", f"abc/{digest}", digest]
    ours = [f"ab/{digest}", f"ab/{digest}.part"]
    for name in others + ours:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
    (tmp_path / "ab" / ("ab" + "1" * 62)).mkdir()
    store.trim()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(others)


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


def test_clients_that_send_the_same_do_not_meet(tmp_path: Path) -> None:
    """Who gives a tensor up does not open the file of another; who is late takes what is there."""
    store, data = Store(tmp_path, 1000), bytes(range(200))
    one = tensor("a", data)
    honest = store.begin(one)
    honest.write(data[:50])
    store.begin(one).close()
    hostile = store.begin(one)
    assert hostile.offset == 0
    honest.write(data[50:150])
    hostile.write(bytes([1]) * 150)
    late = store.begin(one)
    late.write(data)
    honest.write(data[150:])
    assert bytes(honest.finish()) == data
    hostile.write(bytes([1]) * 50)
    with pytest.raises(GgrunError, match="another SHA-256"):
        hostile.finish()
    hostile.close()
    assert bytes(late.finish()) == data
    found = store.find(one)
    assert found is not None
    assert bytes(found) == data
    assert [path.name for path in tmp_path.glob("??/*")] == [one.sha256.hex()]


def test_a_wrong_beginning_does_no_harm(tmp_path: Path) -> None:
    """Another client's garbage, or a torn write: all of the tensor is taken in, and that has to be right."""
    store, data = Store(tmp_path, 1000), bytes(range(200))
    one = tensor("a", data)
    for right in (True, False):
        place(tmp_path, one, ".part").write_bytes(bytes([1]) * 120)
        incoming = store.begin(one)
        assert incoming.offset == 120
        incoming.write(data[120:])
        assert incoming.finish() is None
        assert (incoming.offset, incoming.left) == (0, 200)
        if right:
            incoming.write(data)
            assert bytes(incoming.finish()) == data
            place(tmp_path, one).unlink()
    incoming.write(data[::-1])
    with pytest.raises(GgrunError, match=r"^tensor a: what came has another SHA-256"):
        incoming.finish()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_is_neither_followed_nor_served(kind: str, tmp_path: Path) -> None:
    """Others may write where --cache-dir is."""
    folder, data, other = tmp_path / "store", bytes(range(200)), tmp_path / "other"
    store, one = Store(folder, 0), tensor("a", data)
    other.write_bytes(data)

    def plant(ending: str) -> Path:
        path = place(folder, one, ending)
        if kind == "link":
            path.symlink_to(other)
        else:
            os.mkfifo(path)
        return path

    def work() -> None:
        plant("")
        store.trim()
        assert place(folder, one).lstat()  # no file of the store's
        assert store.find(one) is None
        other.write_bytes(data[:50])
        part = plant(".part")
        incoming = store.begin(one)
        assert (incoming.offset, part.is_symlink()) == (0, False)
        incoming.part.symlink_to(other)
        with pytest.raises(GgrunError, match=r"^the worker's cache, "):
            incoming.write(data)
        incoming.part.unlink()
        incoming.write(data)
        assert bytes(incoming.finish()) == data
        assert place(folder, one).lstat().st_size == 200
        assert other.read_bytes() == data[:50]

    in_time(work)


def test_an_empty_file_is_no_tensor(tmp_path: Path) -> None:
    store, one = Store(tmp_path, 1000), tensor("a", bytes(10))
    place(tmp_path, one).touch()
    assert store.find(one) is None


def test_what_is_hashed_is_the_file(tmp_path: Path) -> None:
    store, data = Store(tmp_path, 1000), bytes(range(200))
    one = tensor("a", data)
    incoming = store.begin(one)
    incoming.write(data)
    (file,) = tmp_path.glob("??/*")
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(data[::-1])
    with pytest.raises(GgrunError, match="another SHA-256"):
        incoming.finish()
    assert store.find(one) is None


def announced(path: Path, **hashes: bytes) -> Opening:
    """The second of two layers of a Tiny model, and the output; hashes: more than these need."""
    model, plan = GGUF(path), plan_of(path, ("cpu", 2), ("w/cpu", 4))
    names = wanted(ModelFacts.from_outline(model), plan, [1]) & model.tensors.keys()
    digests = {name: sha256(model.tensors[name].data).digest() for name in names} | hashes
    limits, cache = Limits(8, 8, 2, 2), CacheSpec(2)
    return read(opening("w", plan, [range(1, 2)], model, digests, cache, limits, 128, 3, pb.F32), ["cpu"])


def test_only_what_stages_need_is_taken(tmp_path: Path) -> None:
    path, store = Tiny(layers=2).write(tmp_path / "model.gguf"), Store(tmp_path / "store", 1 << 30)
    assert len(Intake(announced(path), Library(None), store).look()) > 5
    more = announced(path, **{"blk.0.attn_q.weight": bytes(32)})
    with pytest.raises(ProtocolError, match=r"^tensor blk\.0\.attn_q\.weight: these stages do not need it"):
        Intake(more, Library(None), store)


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.glob("??/*")]


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_the_limit_holds_for_what_was_broken_off(tmp_path: Path, limit: int) -> None:
    path, store = Tiny(layers=2).write(tmp_path / "model.gguf"), Store(tmp_path / "store", limit)
    intake = Intake(announced(path), Library(None), store)
    want = intake.look()[0]
    chunk = pb.Chunk(tensor=want.tensor, data=bytes(3))
    assert not intake.take(chunk)
    store.trim()  # another client's
    assert sizes(tmp_path / "store") == [3]
    intake.close()
    assert sizes(tmp_path / "store") == ([3] if limit else [])
    with pytest.raises(ProtocolError, match="is not what comes next"):
        intake.take(chunk)
    Store(tmp_path / "store", 0)
    assert sizes(tmp_path / "store") == []


def test_no_room_on_the_disk(tmp_path: Path) -> None:
    store, free = Store(tmp_path, 1000), shutil.disk_usage(tmp_path).free >> 20
    with pytest.raises(GgrunError) as caught, store.room((1 << 60) + 1):
        pass
    found = re.fullmatch(
        rf"the worker has no room for {(1 << 40) + 1} MiB of weights in {tmp_path}: (\d+) MiB are free, of "
        "which 1024 are left to others; start it with --cache-dir on another disk, or with a smaller "
        "--cache-size or -nc, which clear this one",
        str(caught.value),
    )
    assert found
    assert abs(int(found[1]) - free) < 1024


def test_loads_at_the_same_time_share_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still to come to one, the other cannot have."""
    path, folder = Tiny(layers=2).write(tmp_path / "model.gguf"), tmp_path / "store"
    first, second = (Intake(announced(path), Library(None), Store(folder, 1 << 30)) for _ in range(2))
    second._store = store = first._store
    free = 1 << 40

    def disk_usage(_: Path) -> SimpleNamespace:
        return SimpleNamespace(free=free - sum(sizes(folder)))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    want = first.look()[0]
    free = (1 << 30) + first.total * 3 // 2
    with pytest.raises(
        GgrunError, match=r"^the worker has no room for 1 MiB .*, of which 1025 are left to oth"
    ):
        second.look()
    first.take(pb.Chunk(tensor=want.tensor, data=bytes(3)))
    with store.room(first.total // 2):  # what has come is counted once
        pass
    first.close()
    assert len(second.look()) > 5


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    store, one = Store(tmp_path, 1000), tensor("a", bytes(10))
    (tmp_path / one.sha256.hex()[:2]).touch()  # where a folder belongs
    with pytest.raises(GgrunError, match=f"^the worker's cache, {tmp_path}: File exists$"):
        store.begin(one)


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


def test_hashing_is_stopped_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "physical_cores", lambda: 1)
    model = GGUF(Tiny().write(tmp_path / "model.gguf"))
    tensors = list(model.tensors.values())[:5]
    found = {tensor.name: sha256(tensor.data).digest() for tensor in tensors}
    looks = iter([False] * 3)  # one at the file, one at each tensor: they fit into a block
    with pytest.raises(Interrupted):
        Library(tmp_path).find(
            [Declared(t.name, t.shape, t.format, found[t.name]) for t in tensors], lambda: next(looks, True)
        )
    told: list[int] = []
    assert hashes(model, found, lambda what, done, total: told.append(done)) == found
    assert len(told) == 3


def test_a_file_is_hashed_once_for_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for another can be stopped too."""
    monkeypatch.setenv("GGRUN_CACHE", str(tmp_path / "cache"))
    path = Tiny().write(tmp_path / "model.gguf")
    names = list(GGUF(path).tensors)
    begun, waits = threading.Event(), threading.Event()
    told: list[int] = []

    def first(what: str, done: int, total: int) -> None:
        begun.set()
        assert waits.wait(PATIENCE)

    def look() -> bool:
        waits.set()
        return False

    def second() -> None:
        hashes(GGUF(path), names, lambda what, done, total: told.append(done), look)

    threads = [threading.Thread(target=hashes, args=(GGUF(path), names, first))]
    threads[0].start()
    assert begun.wait(PATIENCE)
    with pytest.raises(Interrupted):
        hashes(GGUF(path), names, stop=lambda: True)
    threads.append(threading.Thread(target=second))
    threads[1].start()
    ended(threads)
    assert waits.is_set()
    assert told == []


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
