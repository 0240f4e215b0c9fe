r"""English into German on Multi30k: descriptions of photos, by a small Transformer or an LSTM with attention.

The defaults are the "tiny" Transformer of Wu et al. (2021), who report BLEU 41.02, 33.36 and 29.88 on the
test sets of 2016, 2017 and MSCOCO: four blocks each way, width 128, post-norm, one vocabulary of 10,000
subwords for both languages and for what comes out, dropout 0.3, label smoothing 0.1, Adam whose rate rises
for 2,000 steps to 0.005 and falls with the root of the step, 8,000 steps, averaged weights, five beams. Their
steps are of up to 8,192 tokens (two devices with 4,096 each), and the texts theirs were prepared from are
split into words before; here a tokenizer of bytes reads them as they are. BLEU is sacreBLEU's, of whole
sentences; of theirs, which is of words, it differs by how words are told apart (its references have 12,106
words on the set of 2016, theirs 12,103). Dropout is of attention's weights too, which theirs keeps.

That takes hours on a processor. Shorter, and the LSTM with the attention of Luong et al. (2015):

    python -m experiments.translation --steps 1500 --warmup 500 --batch-tokens 4096 --buckets 4
    python -m experiments.translation --model lstm --width 256 --hidden 512 --depth 1 --schedule cosine \
        --learning-rate 0.002 --warmup 200 --steps 2000 --batch-tokens 2048 --buckets 4

Scores are in ``scores.json`` in the run's folder, translations beside it, ``tokenizer.json`` too.

Wu, Kong, Bi, Li and Kao, "Good for misconceived reasons: an empirical revisiting on the need for visual
context in multimodal machine translation", 2021, and the README of their code; Vaswani et al., "Attention is
all you need", 2017; Elliott et al., "Multi30K", 2016.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from experiments import cli, running, study
from jdl import data, generation, learners, models, tasks
from jdl.core import Learner, Variables

PUBLISHED = "BLEU 41.02, 33.36, 29.88 on test2016, test2017, mscoco2017 (Wu et al. 2021; the first verified)"

PAD, BEGIN, END = "<pad>", "<bos>", "<eos>"


@dataclass(frozen=True)
class Config:
    """Settings of a translator's training."""

    dataset: Literal["multi30k"] = "multi30k"
    """Sentences to learn from, English and German."""
    model: Literal["transformer", "lstm"] = "transformer"
    """A Transformer, or an LSTM whose decoder attends to the encoder's states."""
    vocab_size: int = 10_000
    """Subwords, of both languages together."""
    lower: bool = False
    """Make all texts lower-case first."""
    width: int = 128
    """Features of a token."""
    hidden: int = 256
    """Features within a block's feed-forward part, or of the LSTM's state."""
    depth: int = 4
    """Blocks, or layers of the LSTM, each way."""
    num_heads: int = 4
    """Heads of the Transformer's attention."""
    dropout: float = 0.3
    """Share of values dropped."""
    label_smoothing: float = 0.1
    """Share of each label's probability spread over the vocabulary."""
    steps: int = 8000
    """Training steps, each on one batch."""
    batch_tokens: int = 8192
    """Positions of a batch, padding included, each way."""
    buckets: int = 6
    """Lengths that sentences are padded to."""
    schedule: Literal["root", "cosine"] = "root"
    """How the rate falls after the warm-up: with the root of the step (Noam), or along a cosine to 0."""
    learning_rate: float = 5e-3
    """Peak of the learning rate."""
    warmup: int = 2000
    """Steps in which the rate rises in a straight line from 0."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 leaves it as it is."""
    averaging: float = 0.998
    """Decay of the moving average of the weights that translate; 0 takes the latest."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the model computes in; parameters are float32."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the Transformer's blocks compute again for the gradient rather than keep: nothing, all but the
    results of matrix products, or all."""
    beams: int = 5
    """Beams of the search; 1 is greedy."""
    length_penalty: float = 1.0
    """Power of the length that a translation's log-probability is divided by."""
    evaluate_every: int = 0
    """Steps between two evaluations on the validation set; a fortieth of all when 0."""
    seed: int = 0
    """Seed of the initial weights, the noise and the order of the sentences."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the experiment is run."""


LSTM = Config(
    model="lstm",
    width=256,
    hidden=512,
    depth=1,
    schedule="cosine",
    learning_rate=0.002,
    warmup=200,
    steps=2000,
    batch_tokens=2048,
    buckets=4,
)
"""The LSTM with attention, for a CPU."""


def network(config: Config, vocab_size: int) -> Any:
    """The module that the configuration describes."""
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
    if config.model == "lstm":
        if config.remat != "none":
            raise ValueError("remat is of the Transformer's blocks; an LSTM has none")
        return models.Seq2Seq(
            vocab_size,
            vocab_size,
            config.width,
            config.hidden,
            config.depth,
            attention="general",
            dropout=config.dropout,
            dtype=dtype,
        )
    return models.transformer(
        vocab_size=vocab_size,
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        hidden=config.hidden,
        dropout=config.dropout,
        dtype=dtype,
        remat=None if config.remat == "none" else config.remat,
    )


def learning_rate(config: Config) -> optax.Schedule:
    """The learning rate by step."""
    peak, warmup, steps = config.learning_rate, max(1, config.warmup), config.steps
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(warmup + 1, steps))

    def rate(step: Any) -> Any:
        done = jnp.maximum(step, 1) / warmup
        return peak * jnp.minimum(done, done**-0.5)

    return rate


def recipe(config: Config, model: Any) -> Learner:
    """How the configuration trains a model."""
    task = tasks.seq2seq(model, label_smoothing=config.label_smoothing)
    tx = optax.adam(learning_rate(config), 0.9, 0.98, eps=1e-9)
    if config.clip:
        tx = optax.chain(optax.clip_by_global_norm(config.clip), tx)
    learner = learners.gradient(task, tx)
    return learners.averaged(learner, config.averaging) if config.averaging else learner


class Encoded:
    """Sentences and their translations as ids: what `jdl.data.bucketed` makes batches of."""

    def __init__(self, pairs: data.Pairs, tokenizer: data.Tokenizer) -> None:
        """Encodes them all."""
        begin, end = tokenizer.specials[BEGIN], tokenizer.specials[END]
        self.source = [np.append(ids, end) for ids in tokenizer.encode_batch(pairs.source)]
        self.target = [np.concatenate([[begin], ids, [end]]) for ids in tokenizer.encode_batch(pairs.target)]
        self.lengths = [
            max(len(source), len(target) - 1) for source, target in zip(self.source, self.target, strict=True)
        ]

    def __call__(self, rows: np.ndarray, length: int) -> dict[str, Any]:
        """A batch of rows: the decoder reads all but the last token, and is to write all but the first."""

        def sequence(ids: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
            tokens, lengths = data.padded(ids, length)
            return {"tokens": tokens, "lengths": lengths}

        target = [self.target[row] for row in rows]
        return {
            "inputs": {
                "source": sequence([self.source[row] for row in rows]),
                "target": sequence([ids[:-1] for ids in target]),
            },
            "labels": data.padded([ids[1:] for ids in target], length)[0],
        }


def batches(encoded: Encoded, config: Config, seed: int | None, multiple: int = 8) -> data.BucketedBatches:
    """Batches by length, of about as many tokens each; their sizes are multiples of ``multiple``."""
    bounds = data.bucket_boundaries(encoded.lengths, config.buckets, multiple=4)
    sizes = [max(1, config.batch_tokens // bound // multiple) * multiple for bound in bounds]
    shard = jax.process_index(), jax.process_count()
    return data.bucketed(encoded, encoded.lengths, sizes, bounds, seed, shard=shard)


def translate(
    model: Any, variables: Variables, sentences: Sequence[str], tokenizer: data.Tokenizer, config: Config
) -> list[str]:
    """The likeliest translations that the beam search finds, in the order of the sentences."""
    begin, end = tokenizer.specials[BEGIN], tokenizer.specials[END]
    encoded = Encoded(data.Pairs(tuple(sentences), tuple(sentences)), tokenizer)
    # The decoder of one bucket after another, each compiled once.
    make = jax.jit(lambda variables, source: generation.decoder(model, variables, source))
    search = data.bucketed(
        lambda rows, length: {"rows": rows, "source": encoded(rows, length)["inputs"]["source"]},
        encoded.lengths,
        64,
        data.bucket_boundaries(encoded.lengths, min(4, config.buckets), multiple=8),
        seed=None,
    )
    found = [""] * len(sentences)
    for i in range(len(search)):
        batch = search(i)
        source = batch["source"]
        rows = len(batch["rows"])
        beams = generation.beam_search(
            make(variables, source),
            np.full((rows, 1), begin, np.int32),
            num_beams=config.beams,
            max_new_tokens=source["tokens"].shape[1] * 3 // 2 + 10,
            penalty=generation.per_token(config.length_penalty),
            stop=[end],
        )
        for row, weight, texts in zip(batch["rows"], batch["weights"], beams.rows(), strict=True):
            if weight:
                if not texts:
                    raise ValueError(f"sentence {row}: the model gives no probabilities, but not a number")
                found[row] = tokenizer.decode(texts[0]).strip()
    return found


def scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU as it is and without regard to case, and chrF, in per cent."""
    sacrebleu = scorer()
    return {
        "bleu": sacrebleu.corpus_bleu(hypotheses, [references]).score,
        "bleu_lower": sacrebleu.corpus_bleu(hypotheses, [references], lowercase=True).score,
        "chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
    }


def scorer() -> Any:
    """The package sacrebleu.

    Raises:
        ImportError: naming the extra to install, if it is missing.
    """
    try:
        import sacrebleu
    except ImportError:
        raise ImportError('scoring translations needs sacrebleu: pip install -e ".[text]"') from None
    return sacrebleu


def prepared(config: Config) -> tuple[data.Parallel, data.Tokenizer]:
    """The sentences, and the tokenizer that both languages' training sentences give."""
    parallel = data.load_parallel(config.dataset)
    if config.lower:
        lower = functools.partial(map, str.lower)

        def lowered(pairs: data.Pairs) -> data.Pairs:
            return data.Pairs(tuple(lower(pairs.source)), tuple(lower(pairs.target)))

        tests = {name: lowered(pairs) for name, pairs in parallel.tests.items()}
        parallel = parallel._replace(
            train=lowered(parallel.train), validation=lowered(parallel.validation), tests=tests
        )
    texts = (sentence for side in parallel.train for sentence in side)
    return parallel, data.train_bpe(texts, config.vocab_size, [PAD, BEGIN, END])


def main(config: Config) -> running.Outcome:
    """Trains a translator as the configuration says, and scores it on the test sets once."""
    scorer()  # what is missing for it is missed now, not after the training
    parallel, tokenizer = prepared(config)
    model = network(config, tokenizer.vocab_size)
    folder = running.folder_of("translation", config)
    train, validation = (Encoded(pairs, tokenizer) for pairs in (parallel.train, parallel.validation))
    outcome = running.run(
        "translation",
        config,
        folder,
        recipe(config, model),
        batches(train, config, config.seed),
        {"validation": batches(validation, config, None)},
        steps=config.steps,
        evaluate_every=config.evaluate_every,
        fingerprint=hashlib.sha256(f"{parallel.fingerprint} {tokenizer.fingerprint}".encode()).hexdigest(),
        about=f"{len(train.source)} pairs of sentences, {tokenizer.vocab_size} subwords",
    )
    variables = outcome.fitted.variables
    if jax.process_count() > 1:
        # One process translates, with weights of its own.
        variables = multihost_utils.process_allgather(variables, tiled=True)
    if jax.process_index():
        return outcome
    data.save_tokenizer(tokenizer, folder / "tokenizer.json")
    test = scored(config, folder, model, variables, parallel.tests, tokenizer)
    outcome = outcome._replace(test={**outcome.test, **test})
    if not config.execution.quiet:
        print(running.report(told(test), outcome, "translation"))
    return outcome


def scored(
    config: Config,
    folder: Path,
    model: Any,
    variables: Variables,
    tests: Mapping[str, data.Pairs],
    tokenizer: data.Tokenizer,
) -> dict[str, float]:
    """Scores by the name of the set and of the measure, kept in the folder with the translations."""

    def measure() -> dict[str, float]:
        found = {}
        for name, pairs in tests.items():
            hypotheses = translate(model, variables, pairs.source, tokenizer, config)
            (folder / f"{name}.de").write_text("\n".join(hypotheses) + "\n", encoding="utf-8")
            for measure, value in scores(hypotheses, pairs.target).items():
                found[f"{name}_{measure}"] = value
        return found

    return study.once(folder / "scores.json", measure)


def told(test: Mapping[str, float]) -> str:
    """The scores in words."""
    names = [name.removesuffix("_bleu") for name in test if name.endswith("_bleu")]
    return "BLEU " + ", ".join(
        f"{test[f'{name}_bleu']:.2f} on {name} ({test[f'{name}_bleu_lower']:.2f} without case)"
        for name in names
    )


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
