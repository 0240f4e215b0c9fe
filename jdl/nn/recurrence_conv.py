"""The LSTM of images: its products are convolutions.

Axes: B batch, T time, H height, W width, C channels, F features.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax

from jdl.core import Array
from jdl.nn.convolution import Conv, convolve
from jdl.nn.dropout import Dropout, require_rate
from jdl.nn.linear import as_float
from jdl.nn.recurrence import Initializer, fitting_carry, open_forget_gate, require_lengths
from jdl.nn.recurrence_cells import Carry


class ConvLSTM(linen.Module):
    """Long short-term memory whose states are maps, and whose products are convolutions.

    The inputs of all steps are convolved at once, then a loop over time does the rest. Gates are in the order
    i, f, g, o. Submodule ``input`` has kernel [k, k, C, 4 F] and bias [4 F]; parameters are ``kernel``
    [k, k, F, 4 F] and, where asked for, ``peephole`` [3, H, W, F], for the gates i, f and o.

    Attributes:
        features: F.
        kernel: k, side of both square kernels, odd.
        peephole: the gates see the cell's state too, through a weight for each place, which fixes the image's
            size.
        reverse: from the last real step of each row to the first.
        recurrent_dropout: probability of dropping an entry of the state, the same ones at all steps, on its
            way into the gates (variational dropout).
        kernel_init: of both kernels.
        bias_init: of the bias.
        dtype: of convolutions and outputs; the state and what is computed elementwise are float32.

    Raises:
        ValueError: for inputs that are not [B, T, H, W, C], an even kernel, lengths or a carry that do not
            fit, or a rate out of range.

    Example:
        >>> init = ConvLSTM(4).init_with_output
        >>> (y, (h, c)), _ = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, 3, 8, 8, 1)))
        >>> y.shape, c.shape
        ((2, 3, 8, 8, 4), (2, 8, 8, 4))

    Reference:
        Shi et al., "Convolutional LSTM network: a machine learning approach for precipitation nowcasting",
        2015, equation 3.
    """

    features: int
    kernel: int = 3
    peephole: bool = False
    reverse: bool = False
    recurrent_dropout: float = 0.0
    kernel_init: Initializer = linen.initializers.lecun_normal()
    bias_init: Initializer = open_forget_gate
    dtype: Any = None

    @linen.compact
    def __call__(
        self,
        x_BTHWC: Array,
        lengths: Array | None = None,
        carry: Carry | None = None,
        train: bool = False,
    ) -> tuple[Array, Carry]:
        """Runs over sequences of images.

        Args:
            x_BTHWC: the inputs.
            lengths: int32 [B], how many steps of each row are real, the first ones; what comes after them
                reaches nothing. None for all.
            carry: (h, c) before the first step, each [B, H, W, F]; zeros when None.
            train: drop what is to be dropped.

        Returns:
            Outputs [B, T, H, W, F], zero where a step is not real, and the carry after the last real step.
        """
        if x_BTHWC.ndim != 5 or self.kernel % 2 == 0:
            raise ValueError(
                "ConvLSTM takes images [batch, time, height, width, channels] and an odd kernel; got shape "
                f"{tuple(x_BTHWC.shape)} and {self.kernel}"
            )
        require_rate("recurrent_dropout", self.recurrent_dropout)
        require_lengths(lengths, x_BTHWC)
        x_BTHWC = as_float(x_BTHWC, self.dtype)
        B, T, H, W, C = x_BTHWC.shape
        F, k = self.features, self.kernel
        if carry is None:
            carry = (jnp.zeros((B, H, W, F)),) * 2
        carry = fitting_carry(carry, "ConvLSTM", 2, (B, H, W, F))
        real_TB = None if lengths is None else jnp.arange(T)[:, None] < lengths[None]
        x = x_BTHWC.swapaxes(0, 1)
        if real_TB is not None:
            x = jnp.where(real_TB[..., None, None, None], x, 0)
        x = Conv(
            4 * F,
            (k, k),
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="input",
        )(x.reshape(T * B, H, W, C)).reshape(T, B, H, W, 4 * F)
        kernel = self.param("kernel", self.kernel_init, (k, k, F, 4 * F)).astype(x.dtype)
        drop = None
        if train and self.recurrent_dropout:
            drop = Dropout(self.recurrent_dropout, deterministic=False)(jnp.ones((B, H, W, F)))
        seen = None
        if self.peephole:
            seen = self.param("peephole", linen.initializers.zeros, (3, H, W, F)).astype(jnp.float32)[:, None]

        def step(before: Carry, given: Any) -> tuple[Carry, Array]:
            x_BHWG, real_B = given
            h, c = before
            used = (h if drop is None else h * drop).astype(x_BHWG.dtype)
            z = convolve(used, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            i, f, g, o = jnp.split(x_BHWG.astype(jnp.float32) + z.astype(jnp.float32), 4, -1)
            if seen is not None:
                i, f = i + seen[0] * c, f + seen[1] * c
            new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            if seen is not None:
                o = o + seen[2] * new_c
            new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
            y = new_h
            if real_B is not None:
                real = real_B[:, None, None, None]
                y, new_h, new_c = jnp.where(real, y, 0), jnp.where(real, new_h, h), jnp.where(real, new_c, c)
            return (new_h, new_c), y.astype(x_BHWG.dtype)

        # XLA:CPU runs a convolution inside a loop several times slower than outside.
        carry, y = lax.platform_dependent(
            carry,
            (x, real_TB),
            cpu=lambda carry, given: lax.scan(step, carry, given, reverse=self.reverse, unroll=T),
            default=lambda carry, given: lax.scan(step, carry, given, reverse=self.reverse),
        )
        return y.swapaxes(0, 1), carry
