"""The peer in PyTorch computes what jdl's GPT does, and writes the same tokens."""

import jax
import numpy as np
import pytest

from experiments import torch_gpt
from experiments.benchmarks import decoding
from jdl import interop, train
from jdl.models import gpt


def test_computes_the_same_with_a_cache_and_without(torch):
    model = gpt(vocab_size=7, context=6, width=8, depth=2, num_heads=2)
    tokens = np.random.default_rng(0).integers(0, 7, (3, 6)).astype(np.int32)
    variables = jax.tree.map(lambda x: 5 * x, model.init(jax.random.key(0), tokens))
    peer = torch_gpt.gpt(7, 6, 8, 2, 2)
    weights = interop.export_weights(variables, torch_gpt.NAMES)
    peer.load_state_dict({name: torch.tensor(np.array(x)) for name, x in weights.items()})
    expected = np.asarray(model.apply(variables, tokens))
    given = torch.tensor(tokens).long()
    with torch.inference_mode():
        np.testing.assert_allclose(peer(given), expected, rtol=0, atol=1e-4)
        caches = peer.caches(3, 6)
        for start, stop in ((0, 4), (4, 5), (5, 6)):
            logits = peer.extend(given[:, start:stop], caches, start)
            np.testing.assert_allclose(logits, expected[:, stop - 1], rtol=0, atol=1e-4)


@pytest.mark.parity
def test_contenders_write_the_same_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "prepare", lambda: None)
    small = {"VOCABULARY": 7, "CONTEXT": 8, "WIDTH": 8, "DEPTH": 1, "HEADS": 2, "PROMPT": 3, "NEW": 4}
    for name, value in small.items():
        monkeypatch.setattr(decoding, name, value)
    decoding.write(2, tmp_path)
    contenders = [make(tmp_path) for make in decoding.CONTENDERS.values()]
    assert len({contender.label for contender in contenders}) == 3
    assert {len(contender.losses) for contender in contenders} == {2 * 4}, "every token is compared"
    decoding.check_same(contenders)
    assert contenders[0].run(1) > 0
