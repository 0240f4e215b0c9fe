"""Layers and pure layer functions, shared by the models."""

from jdl.nn.attention import attention
from jdl.nn.blocks import ConvNorm, SqueezeExcite, Stage, StochasticDepth, global_mean
from jdl.nn.convolution import Conv, avg_pool, max_pool
from jdl.nn.distributions import Likelihood, bernoulli, discretized_logistic, gaussian
from jdl.nn.dropout import Dropout
from jdl.nn.linear import Dense, as_float
from jdl.nn.moe import Experts, MixtureOfExperts
from jdl.nn.multihead import MultiHeadAttention
from jdl.nn.normalization import BatchNorm
from jdl.nn.patches import token_map
from jdl.nn.positions import Alibi, Buckets, Rotary
from jdl.nn.quantization import Codebook
from jdl.nn.recurrence import GRU, LSTM, RNN
from jdl.nn.recurrence_conv import ConvLSTM
from jdl.nn.recurrence_stack import Bidirectional, RecurrentStack
from jdl.nn.stack import Blocks, stack_layers, unstack_layers
from jdl.nn.taps import features
from jdl.nn.transformer import Block, BlockConfig

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Alibi",
    "BatchNorm",
    "Bidirectional",
    "Block",
    "BlockConfig",
    "Blocks",
    "Buckets",
    "Codebook",
    "Conv",
    "ConvLSTM",
    "ConvNorm",
    "Dense",
    "Dropout",
    "Experts",
    "Likelihood",
    "MixtureOfExperts",
    "MultiHeadAttention",
    "RecurrentStack",
    "Rotary",
    "SqueezeExcite",
    "Stage",
    "StochasticDepth",
    "as_float",
    "attention",
    "avg_pool",
    "bernoulli",
    "discretized_logistic",
    "features",
    "gaussian",
    "global_mean",
    "max_pool",
    "stack_layers",
    "token_map",
    "unstack_layers",
]
