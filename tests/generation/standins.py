"""Small decoders written by hand, and the same models in numpy on a whole text at once."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdl.core import Decoder

V = 7


def tables(seed, vocabulary=V, scale=2.0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(vocabulary, vocabulary)).astype(np.float32) * scale for _ in range(2))


# Logits that depend on the last token and on the mean over all, from a cache with a place for each token.


def _init_cache(tables, batch_size, length):
    size = (batch_size, length, len(tables[0]))
    return {"keys": jnp.zeros(size), "lengths": jnp.zeros(batch_size, jnp.int32)}


def _extend(tables, cache, tokens_BT, lengths_B=None):
    last, mean = tables
    B, T = tokens_BT.shape
    lengths_B = jnp.full(B, T) if lengths_B is None else lengths_B
    at_BT = cache["lengths"][:, None] + jnp.arange(T)[None]
    is_real_BT = jnp.arange(T)[None] < lengths_B[:, None]
    place_BT = jnp.where(is_real_BT, at_BT, cache["keys"].shape[1])
    keys_BSV = cache["keys"].at[jnp.arange(B)[:, None], place_BT].set(mean[tokens_BT], mode="drop")
    is_seen_BTS = jnp.arange(keys_BSV.shape[1])[None, None] <= at_BT[..., None]
    seen_BTV = jnp.einsum("BTS,BSV->BTV", is_seen_BTS.astype(jnp.float32), keys_BSV)
    logits_BTV = last[tokens_BT] + seen_BTV / (at_BT[..., None] + 1)
    return logits_BTV, {"keys": keys_BSV, "lengths": cache["lengths"] + lengths_B}


def _rewind(cache, lengths_B):
    return {**cache, "lengths": lengths_B}


def attentive(seed=0, vocabulary=V, scale=2.0):
    """A decoder with a cache like a Transformer's."""
    made = jax.tree.map(jnp.asarray, tables(seed, vocabulary, scale))
    return Decoder(Partial(_init_cache, made), Partial(_extend, made), Partial(_rewind))


def attentive_logits(text, seed=0, vocabulary=V, scale=2.0):
    """Its logits after a whole text."""
    last, mean = (table.astype(np.float64) for table in tables(seed, vocabulary, scale))
    return last[text[-1]] + mean[list(text)].mean(0)


# Logits of a state that is changed by each token and cannot be changed back.


def _init_carry(tables, batch_size, length):
    return jnp.zeros((batch_size, len(tables[0])))


def _extend_carry(tables, carry_BV, tokens_BT, lengths_B=None):
    enter, leave = tables

    def step(carry_BV, x):
        token_B, t = x
        new_BV = jnp.tanh(0.5 * carry_BV + enter[token_B])
        is_real_B = True if lengths_B is None else (t < lengths_B)[:, None]
        carry_BV = jnp.where(is_real_B, new_BV, carry_BV)
        return carry_BV, carry_BV @ leave

    carry_BV, logits_TBV = jax.lax.scan(step, carry_BV, (tokens_BT.T, jnp.arange(tokens_BT.shape[1])))
    return logits_TBV.swapaxes(0, 1), carry_BV


def recurrent(seed=0):
    """A decoder that cannot forget."""
    made = jax.tree.map(jnp.asarray, tables(seed))
    return Decoder(Partial(_init_carry, made), Partial(_extend_carry, made))


def recurrent_logits(text, seed=0):
    enter, leave = (table.astype(np.float64) for table in tables(seed))
    carry = np.zeros(V)
    for token in text:
        carry = np.tanh(0.5 * carry + enter[token])
    return carry @ leave


def log_softmax(logits):
    shifted = np.asarray(logits, np.float64) - np.max(logits)
    return shifted - np.log(np.exp(shifted).sum())


def by_hand(logits_of, prompt, limit, stop=()):
    """The most likely continuation, token by token from whole texts; its log-probabilities; why it ended."""
    text, log_probs = list(prompt), []
    for _ in range(limit):
        logits = log_softmax(logits_of(text))
        text.append(int(logits.argmax()))
        log_probs.append(logits.max())
        written = text[len(prompt) :]
        for i, sequence in enumerate(stop):
            if len(written) >= len(sequence) and written[-len(sequence) :] == list(sequence):
                return written, log_probs, i
    return text[len(prompt) :], log_probs, -1
