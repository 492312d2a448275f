"""Real files: the same metadata and the same bytes as gguf-py reads, and soon enough."""

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.constants import GGUFValueType

from ggrun.gguf import GGUF
from tests.shared import peer, vocab


def contents(field):
    if field.types[-1] is GGUFValueType.STRING:  # contents() does not decode odd bytes
        texts = [bytes(field.parts[i]).decode("utf-8", "surrogateescape") for i in field.data]
        return texts if field.types[0] is GGUFValueType.ARRAY else texts[0]
    return field.contents()


def agree(path):
    ours, theirs = GGUF(path), GGUFReader(path)
    assert ours.version == theirs.fields["GGUF.version"].contents()
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in ours.metadata.items()}
    assert plain == {k: contents(f) for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        tensor = ours.tensors[t.name]
        assert (tensor.format.name, tensor.shape) == (t.tensor_type.name, tuple(t.shape.tolist()))
        assert np.array_equal(tensor.data, t.data.reshape(-1).view(np.uint8))
        assert tensor.rows * tensor.row_bytes == tensor.nbytes == t.n_bytes


def test_every_architecture():
    for path in sorted((peer() / "archs").glob("*.gguf")):
        agree(path)


def test_every_weight_format():
    for path in sorted((peer() / "quants").glob("*.gguf")):
        agree(path)


@pytest.mark.parametrize("name", ["llama-spm", "gpt-2", "phi-3"])
def test_vocabularies(name):
    agree(vocab() / f"ggml-vocab-{name}.gguf")


def test_a_vocabulary_of_262144_tokens():
    """How fast it opens is measured by benchmarks/open_vocabulary.py."""
    assert len(GGUF(vocab() / "ggml-vocab-gemma-4.gguf").strings("tokenizer.ggml.tokens")) == 262144
