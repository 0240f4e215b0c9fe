"""Writing with a trained model of sequences: samplers, generation with a cache, beam search, speculation.

A `jdl.core.Decoder` is a model as pure functions, and `decoder` makes one of a module; a sampler is a pure
function on logits. `generate` writes after a batch of ragged prompts in one compiled loop, `stream` yields
the tokens as they come, `endless` goes on when the context is full, `beam_search` looks for the most likely
text, and `speculative` has a small model guess ahead for a large one. `sample_map` draws maps of symbols,
such as images, place by place.
"""

from jdl.generation.beam import Beams, beam_search, gnmt, per_token
from jdl.generation.decoder import decoder
from jdl.generation.generate import Generated, endless, generate, stream
from jdl.generation.maps import sample_map
from jdl.generation.penalties import (
    banned,
    frequency_penalty,
    logit_bias,
    max_length,
    min_length,
    no_repeat_ngram,
    presence_penalty,
    repetition_penalty,
)
from jdl.generation.samplers import chain, greedy, min_p, temperature, top_k, top_p, typical
from jdl.generation.sequences import History, Sampler
from jdl.generation.speculative import Speculated, speculative

__all__ = [
    "Beams",
    "Generated",
    "History",
    "Sampler",
    "Speculated",
    "banned",
    "beam_search",
    "chain",
    "decoder",
    "endless",
    "frequency_penalty",
    "generate",
    "gnmt",
    "greedy",
    "logit_bias",
    "max_length",
    "min_length",
    "min_p",
    "no_repeat_ngram",
    "per_token",
    "presence_penalty",
    "repetition_penalty",
    "sample_map",
    "speculative",
    "stream",
    "temperature",
    "top_k",
    "top_p",
    "typical",
]
