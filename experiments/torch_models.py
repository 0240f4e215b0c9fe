"""The networks of the peers: PyTorch modules to train and to time beside jdl's, with torchvision's names.

PyTorch is imported where a network is made, since only comparisons need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def device() -> str:
    """Where PyTorch computes: on the GPU, if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def layers(kernels: Sequence[tuple[int, ...]]) -> Any:
    """Convolutions without padding, each followed by ReLU and 2x2 max-pooling, then fully connected layers.

    Args:
        kernels: [kh, kw, C, F] of each convolution, then [D, F] of each fully connected layer.

    Returns:
        A `torch.nn.Module` from [B, C, H, W] or [B, ...] to [B, F], with lists ``conv`` and ``dense``; maps
        are flattened channels last, as jdl has them.
    """
    import torch
    from torch import nn

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.ModuleList([nn.Conv2d(k[2], k[3], k[:2]) for k in kernels if len(k) == 4])
            self.dense = nn.ModuleList([nn.Linear(*k) for k in kernels if len(k) == 2])

        def forward(self, x: Any) -> Any:
            for conv in self.conv:
                x = nn.functional.max_pool2d(torch.relu(conv(x)), 2)
            x = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).flatten(1)
            for dense in self.dense[:-1]:
                x = torch.relu(dense(x))
            return self.dense[-1](x)

    return Layers()


def resnet(
    depths: Sequence[int],
    widths: Sequence[int],
    num_classes: int = 10,
    *,
    stem_width: int | None = None,
    padding_shortcut: bool = False,
    photographs: bool = False,
) -> Any:
    """A residual network of basic blocks with a 3x3 stem, as for CIFAR, or of bottlenecks for photographs.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage.
        num_classes: number of logits.
        stem_width: channels of the stem; the first stage's when None.
        padding_shortcut: option A of the paper where the shape changes, not a projection.
        photographs: bottlenecks that leave four times the width, whose 3x3 convolutions have the strides, and
            a stem of 7x7 and a 3x3 maximum, each of stride 2.

    Returns:
        A `torch.nn.Module` from images [B, 3, H, W] to logits, initialised as `jdl.models.ResNet` is:
        convolutions as He et al. (2015), the last layer as LeCun et al. (1998), with a bias of 0.
    """
    import torch
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, features: int, stride: int) -> None:
            super().__init__()
            outputs = 4 * features
            self.conv1, self.bn1 = nn.Conv2d(inputs, features, 1, bias=False), nn.BatchNorm2d(features)
            self.conv2 = nn.Conv2d(features, features, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(features)
            self.conv3, self.bn3 = nn.Conv2d(features, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            self.downsample = None
            if stride != 1 or outputs != inputs:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: Any) -> Any:
            h = torch.relu(self.bn1(self.conv1(x)))
            h = torch.relu(self.bn2(self.conv2(h)))
            h = self.bn3(self.conv3(h))
            return torch.relu(h + (x if self.downsample is None else self.downsample(x)))

    class Block(nn.Module):
        def __init__(self, inputs: int, features: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(features)
            self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(features)
            self.stride, self.extra = stride, features - inputs
            self.downsample = None
            if not padding_shortcut and (stride != 1 or self.extra):
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features)
                )

        def forward(self, x: Any) -> Any:
            h = torch.relu(self.bn1(self.conv1(x)))
            h = self.bn2(self.conv2(h))
            if self.downsample is not None:
                x = self.downsample(x)
            elif self.extra:
                before = self.extra // 2
                x = nn.functional.pad(
                    x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before)
                )
            return torch.relu(h + x)

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inputs = stem_width or widths[0]
            kernel, stride = (7, 2) if photographs else (3, 1)
            self.conv1 = nn.Conv2d(3, inputs, kernel, stride, kernel // 2, bias=False)
            self.bn1 = nn.BatchNorm2d(inputs)
            self.stages = len(depths)
            for s, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
                blocks = []
                for b in range(depth):
                    stride = 2 if s > 1 and b == 0 else 1
                    blocks.append((Bottleneck if photographs else Block)(inputs, width, stride))
                    inputs = 4 * width if photographs else width
                setattr(self, f"layer{s}", nn.Sequential(*blocks))
            self.fc = nn.Linear(inputs, num_classes)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            # A normal distribution cut at two deviations, widened to have the variance of 1 / inputs.
            wide = inputs**-0.5 / 0.8796
            nn.init.trunc_normal_(self.fc.weight, 0, wide, -2 * wide, 2 * wide)
            nn.init.zeros_(self.fc.bias)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.bn1(self.conv1(x)))
            if photographs:
                x = nn.functional.max_pool2d(x, 3, 2, 1)
            for s in range(1, self.stages + 1):
                x = getattr(self, f"layer{s}")(x)
            return self.fc(x.mean((2, 3)))

    return ResNet()


def mobilenet_v2(num_classes: int = 1000) -> Any:
    """MobileNetV2 of width 1 (Sandler et al. 2018, table 2), images [B, 3, H, W] to logits."""
    from torch import nn

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        )

    class InvertedResidual(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
            super().__init__()
            inner = inputs * expand
            self.is_residual = stride == 1 and inputs == outputs
            first = [conv(inputs, inner, 1)] if expand != 1 else []
            self.conv = nn.Sequential(
                *first,
                conv(inner, inner, 3, stride, inner),
                nn.Conv2d(inner, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

        def forward(self, x: Any) -> Any:
            return x + self.conv(x) if self.is_residual else self.conv(x)

    table = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    layers, inputs = [conv(3, 32, 3, 2)], 32
    for expand, outputs, depth, stride in table:
        for b in range(depth):
            layers.append(InvertedResidual(inputs, outputs, stride if b == 0 else 1, expand))
            inputs = outputs
    layers.append(conv(inputs, 1280, 1))

    class MobileNetV2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(1280, num_classes))

        def forward(self, x: Any) -> Any:
            return self.classifier(self.features(x).mean((2, 3)))

    return MobileNetV2()


def recurrent(cell: str, inputs: int, features: Sequence[int], num_classes: int) -> Any:
    """Recurrent layers of one width, and a classifier of the last output.

    Args:
        cell: "rnn", "lstm" or "gru".
        inputs: features of an input.
        features: of the layers, all alike.
        num_classes: number of logits.

    Returns:
        A `torch.nn.Module` from [B, T, D] to logits, with modules ``rnn`` and ``fc``.
    """
    from torch import nn

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell]
            self.rnn = layer(inputs, features[0], len(features), batch_first=True)
            self.fc = nn.Linear(features[-1], num_classes)

        def forward(self, x: Any) -> Any:
            return self.fc(self.rnn(x)[0][:, -1])

    return Recurrent()
