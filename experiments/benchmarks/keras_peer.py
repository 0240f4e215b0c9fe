"""Keras on JAX: its own layers, optimiser and ``fit``, which compiles the step.

Only what is short to write as the same network: the MLP and LeNet-5. Keras's LSTM has one bias where the
others have two, and so other parameters.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from experiments.benchmarks.harness import Contender, first_losses, jax_memory
from experiments.benchmarks.workloads import BATCHES, LEARNING_RATE, Given


def keras(given: Given) -> Contender:
    """The workload in Keras."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    layers: list[Any] = [keras.Input(given.workload.shape)]
    weights: list[np.ndarray] = []
    *_, last = kernels = given.workload.kernels
    numbers = {4: 0, 2: 0}
    for shape in kernels:
        is_map, number = len(shape) == 4, numbers[len(shape)]
        numbers[len(shape)] += 1
        name = f"{'conv' if is_map else 'dense'}.{number}"
        kernel = given.weights[f"{name}.weight"]
        weights += [kernel.transpose(2, 3, 1, 0) if is_map else kernel.T, given.weights[f"{name}.bias"]]
        if is_map:
            layers += [keras.layers.Conv2D(shape[-1], shape[:2], activation="relu"), keras.layers.MaxPool2D()]
        else:
            layers += [keras.layers.Flatten()] if number == 0 else []
            layers.append(keras.layers.Dense(shape[-1], activation=None if shape is last else "relu"))
    model = keras.Sequential(layers)
    model.set_weights(weights)
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE, epsilon=1e-8),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    parameters = model.count_params()

    def first(i: int) -> list[float]:
        # Keras gives the mean since it was last reset.
        model.reset_metrics()
        return [float(np.ravel(model.train_on_batch(*given.batches[i]))[0])]

    losses, first_step = first_losses(first)
    inputs, labels = (np.concatenate(each) for each in zip(*given.batches, strict=True))

    def run(steps: int) -> float:
        """Whole rounds of the batches, since fit begins anew with each."""
        rounds = max(1, round(steps / BATCHES))
        start = time.perf_counter()
        model.fit(inputs, labels, given.workload.batch_size, epochs=rounds, shuffle=False, verbose=0)
        return (time.perf_counter() - start) / (rounds * BATCHES) * steps

    return Contender("Keras on JAX", parameters, losses, run, first_step, jax_memory())
