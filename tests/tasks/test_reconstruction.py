"""Autoencoders' objectives equal what PyTorch and hand-made sums give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import tasks
from jdl.core import FAULTS
from jdl.models import VQVAE, Autoencoder, MaskedAutoencoder
from jdl.nn import bernoulli, gaussian
from tests.compiling import jit

RNG = np.random.default_rng(0)
X = RNG.random((4, 5)).astype(np.float32)
BATCH = {"inputs": X, "weights": np.array([1, 0.5, 2, 0], np.float32)}
MODEL = Autoencoder((5,), (4, 3), activation=jnp.tanh, code_activation=jax.nn.sigmoid)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def variables():
    variables = jit(tasks.reconstruction(MODEL).init)(KEY, BATCH)
    return jax.tree.map(lambda x: x + 0.3 * RNG.normal(size=x.shape).astype(np.float32), variables)


def by_hand(torch, variables, x):
    """The code and the outputs of `MODEL` in PyTorch."""

    def dense(part, i, h):
        layer = variables["params"][part][f"Dense_{i}"]
        return h @ torch.tensor(np.asarray(layer["kernel"])) + torch.tensor(np.asarray(layer["bias"]))

    code = dense("encoder", 1, dense("encoder", 0, x).tanh()).sigmoid()
    return code, dense("decoder", 1, dense("decoder", 0, code).tanh())


def test_equals_pytorch_under_each_likelihood(torch, variables):
    x = torch.tensor(X)
    _, outputs = by_hand(torch, variables, x)
    weights = torch.tensor(BATCH["weights"])
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    constant = 0.5 * np.log(2 * np.pi)
    expected = {
        bernoulli: cross_entropy(outputs, x, reduction="none"),
        gaussian: 0.5 * (x - outputs) ** 2 + constant,
    }
    for likelihood, losses in expected.items():
        total, (weight, changed, _) = jit(tasks.reconstruction(MODEL, likelihood()).loss)(
            variables, BATCH, KEY
        )
        np.testing.assert_allclose(total, (losses.sum(1) * weights).sum(), rtol=1e-5)
        assert (float(weight), changed) == (3.5, {})


def penalty_of(penalty, variables, batch=BATCH):
    _, (_, _, metrics) = jit(tasks.reconstruction(MODEL, penalty=penalty).loss)(variables, batch, KEY)
    return float(metrics["penalty"].total)


def test_sparsity_equals_the_sums_of_its_definition(torch, variables):
    code = by_hand(torch, variables, torch.tensor(X))[0].numpy().astype(np.float64)
    weights = BATCH["weights"]
    assert penalty_of(tasks.l1_sparsity(0.3), variables) == pytest.approx(
        0.3 * (np.abs(code).sum(1) * weights).sum(), rel=1e-5
    )
    mean = (code * weights[:, None]).sum(0) / weights.sum()
    kl = (0.1 * np.log(0.1 / mean) + 0.9 * np.log(0.9 / (1 - mean))).sum()
    assert penalty_of(tasks.kl_sparsity(0.3, 0.1), variables) == pytest.approx(
        0.3 * weights.sum() * kl, rel=1e-5
    )


def test_contraction_is_the_norm_of_pytorchs_jacobian(torch, variables):
    norms = []
    for row in X:
        jacobian = torch.autograd.functional.jacobian(
            lambda x: by_hand(torch, variables, x[None])[0][0], torch.tensor(row)
        )
        norms.append(float((jacobian**2).sum()))
    expected = 0.7 * (np.array(norms) * BATCH["weights"]).sum()
    assert penalty_of(tasks.contraction(0.7), variables) == pytest.approx(expected, rel=1e-4)


def test_denoising_hides_from_the_encoder_alone(variables):
    """With everything hidden the code is that of zeros, and the error still that of the inputs."""
    all_hidden = tasks.reconstruction(MODEL, corrupt=tasks.masking_noise(1.0))
    plain = tasks.reconstruction(MODEL)
    total, _ = jit(all_hidden.loss)(variables, BATCH, KEY)
    outputs = plain.predict(variables, np.zeros_like(X))
    losses = (0.5 * (X - outputs) ** 2 + 0.5 * np.log(2 * np.pi)).sum(1)
    np.testing.assert_allclose(total, (losses * BATCH["weights"]).sum(), rtol=1e-5)
    evaluated = jit(all_hidden.evaluate)(variables, BATCH, KEY)
    assert evaluated["loss"] == jit(plain.evaluate)(variables, BATCH, KEY)["loss"]


@pytest.mark.parametrize(
    ("corrupt", "mean", "changed"),
    [
        (tasks.masking_noise(0.3), 0.35, 0.3),
        (tasks.salt_and_pepper(0.4), 0.5, 0.4),
        (tasks.gaussian_noise(0.2), 0.5, 1.0),
    ],
)
def test_noise_has_its_rate(corrupt, mean, changed):
    x = jnp.full((20_000,), 0.5)
    noisy = corrupt(KEY, x)
    assert float(noisy.mean()) == pytest.approx(mean, abs=0.015)
    assert float((noisy != x).mean()) == pytest.approx(changed, abs=0.015)


VQ_X = RNG.normal(size=(4, 4, 4, 1)).astype(np.float32)


def test_vector_quantisation_has_three_terms_and_a_straight_gradient():
    """Against the loss written out, with the codebook as a parameter."""
    model = VQVAE((4, 4, 1), 4, 0, 1, entries=3, size=2, decay=None)
    task = tasks.vector_quantized(model, gaussian(), commitment=0.4)
    batch = {"inputs": VQ_X, "weights": BATCH["weights"]}
    variables = jit(task.init)(KEY, batch)

    def written_out(params):
        z = model.apply({"params": params}, VQ_X, method="encode")
        e = params["codebook"]["entries"]
        codes = ((z[..., None, :] - e.reshape(1, 1, 1, 3, 2)) ** 2).sum(-1).argmin(-1)
        stop = jax.lax.stop_gradient
        outputs = model.apply({"params": params}, z + stop(e[codes] - z), method="decode")
        each = [(0.5 * (VQ_X - outputs) ** 2 + 0.5 * np.log(2 * np.pi)).reshape(4, -1).sum(1)]
        each += [((stop(z) - e[codes]) ** 2).reshape(4, -1).sum(1)]
        each += [0.4 * ((z - stop(e[codes])) ** 2).reshape(4, -1).sum(1)]
        return (sum(each) * batch["weights"]).sum(), codes

    def ours(params):
        total, (_, _, metrics) = task.loss({"params": params}, batch, KEY)
        return total, metrics

    (expected, codes), gradient = jit(jax.value_and_grad(written_out, has_aux=True))(variables["params"])
    (actual, metrics), found = jit(jax.value_and_grad(ours, has_aux=True))(variables["params"])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, gradient)
    p = np.bincount(np.asarray(codes).ravel(), np.repeat(batch["weights"], 4), 3) / (4 * 3.5)
    entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
    assert float(metrics["perplexity"].value()) == pytest.approx(np.exp(entropy), rel=1e-4)


MAE = MaskedAutoencoder(2, 8, 1, 2, 4, 1, 2, visible=0.5)


def test_masked_reconstruction_counts_what_is_hidden_and_sees_nothing_of_it():
    task = tasks.masked_reconstruction(MAE, normalized=False)
    order = np.array([[2, 0, 3, 1], [0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
    batch = {"inputs": {"data": VQ_X, "order": order}, "weights": BATCH["weights"]}
    variables = jit(task.init)(KEY, batch)
    loss, predict = jit(task.loss), jit(task.predict)
    total, (weight, _, _) = loss(variables, batch, KEY)
    made = np.asarray(predict(variables, batch["inputs"]))
    hidden = np.zeros((4, 4, 4, 1))
    for i, row in enumerate(order):
        for patch in row[2:]:
            top, left = patch // 2 * 2, patch % 2 * 2
            hidden[i, top : top + 2, left : left + 2] = 1
    weights = batch["weights"].reshape(4, 1, 1, 1)
    np.testing.assert_allclose(total, ((made - VQ_X) ** 2 * hidden * weights).sum() / 4, rtol=1e-5)
    assert float(weight) == 2 * 3.5
    blinded = {"data": np.where(hidden == 1, 9.0, VQ_X).astype(np.float32), "order": order}
    np.testing.assert_array_equal(predict(variables, blinded), made)


def test_a_key_draws_the_order_and_patches_are_normalised():
    task = tasks.masked_reconstruction(MAE)
    batch = {"inputs": VQ_X}
    variables = jit(task.init)(KEY, batch)
    evaluate = jit(task.evaluate)
    first, again, other = (evaluate(variables, batch, jax.random.key(i))["loss"] for i in (0, 0, 1))
    assert first.total == again.total != other.total
    # Targets have mean 0 and deviation 1 in each patch: shifted and stretched images give the same ones.
    brighter = {"inputs": {"data": 3 * VQ_X + 7, "order": np.tile(np.arange(4), (4, 1))}}
    blind = jax.tree.map(jnp.zeros_like, variables)
    assert float(evaluate(blind, brighter, KEY)["loss"].value()) == pytest.approx(1, abs=1e-3)


def test_says_what_is_wrong(variables):
    task = tasks.reconstruction(MODEL, bernoulli())
    with pytest.raises(ValueError, match=r"2 values are data outside 0..1.*the largest 3"):
        task.check({"inputs": np.array([[3.0, 0, -1, 0, 1]])})
    with pytest.raises(ValueError, match='needs a batch with "inputs"'):
        task.check({"labels": X})
    with pytest.raises(ValueError, match="weights are of examples"):
        task.check({"inputs": X, "weights": X})
    metrics = jit(task.evaluate)(variables, {**BATCH, "inputs": X + 9}, KEY)
    assert metrics[FAULTS] == {"data outside 0..1": 15}, "a row of weight 0 does not count"
    for make in (lambda: tasks.masking_noise(1.5), lambda: tasks.salt_and_pepper(-0.1)):
        with pytest.raises(ValueError, match="share of the values must lie in 0..1"):
            make()
    with pytest.raises(ValueError, match="deviation must be at least 0"):
        tasks.gaussian_noise(-1)
    with pytest.raises(ValueError, match="rate must lie between 0 and 1"):
        tasks.kl_sparsity(1.0, 0.0)
    with pytest.raises(ValueError, match="1 values of the data are not finite"):
        tasks.reconstruction(MODEL).check({"inputs": np.array([[np.nan, 0, 1, 0, 1]])})
    with pytest.raises(ValueError, match=r"need \"data\" among them; they have \['condition'\]"):
        task.check({"inputs": {"condition": np.zeros(3, int)}})
    with pytest.raises(ValueError, match="commitment must be at least 0; got -1"):
        tasks.vector_quantized(MODEL, commitment=-1)
    for make in (tasks.l1_sparsity, tasks.kl_sparsity, tasks.contraction):
        with pytest.raises(ValueError, match="strength of a penalty must be at least 0; got nan"):
            make(float("nan"))
    with pytest.raises(ValueError, match="added to floats; the data are uint8"):
        tasks.gaussian_noise(1.0)(KEY, jnp.ones(3, jnp.uint8))
    with pytest.raises(ValueError, match="codes of floats have a derivative; the data are bool"):
        tasks.contraction(1.0)(lambda x: x, jnp.ones((2, 3), bool), jnp.ones((2, 3)), jnp.ones(2))
    outside = tasks.kl_sparsity(1.0)(None, None, jnp.array([[1.5], [1.0]]), jnp.ones(2))
    assert np.isnan(outside), "no mean of shares, and no gradient back to them"


def test_an_order_of_patches_has_each_of_them_once():
    task = tasks.masked_reconstruction(MAE)
    images = np.zeros((2, 8, 8, 1), np.float32)
    T = (8 // MAE.patch) ** 2
    task.check({"inputs": {"data": images, "order": np.tile(np.arange(T)[::-1], (2, 1))}})
    for order in (np.zeros((2, T), int), np.tile(np.arange(T) + 1, (2, 1)), np.zeros((2, T + 1), int)):
        with pytest.raises(ValueError, match=f"each of the {T} patches once"):
            task.check({"inputs": {"data": images, "order": order}})
    with pytest.raises(ValueError, match='needs a batch with "inputs"'):
        task.check({"images": images})


def test_a_contraction_is_of_the_data_and_not_of_the_condition():
    matrix = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    inputs = {"data": jnp.ones((5, 2)), "condition": jnp.zeros(5, jnp.int32)}
    encode = lambda inputs: inputs["data"] @ matrix + inputs["condition"][:, None]
    assert tasks.contraction(1.0)(encode, inputs, encode(inputs), jnp.ones(5)) == 5 * 14
