"""MobileNet v2, MobileNet v3 and EfficientNet in PyTorch, from their papers, under torchvision's names."""

from __future__ import annotations

from typing import Any


def norm_conv(nn, below, above, kernel=1, stride=1, groups=1, activation=None, epsilon=1e-5):
    conv = nn.Conv2d(below, above, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers = [conv, nn.BatchNorm2d(above, eps=epsilon)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


def squeeze_excite(torch, channels, inner, activation, gate):
    nn = torch.nn

    class SqueezeExcite(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
            self.activation, self.gate = activation(), gate()

        def forward(self, x):
            return x * self.gate(self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True)))))

    return SqueezeExcite()


def residual(torch, name: str, layers: Any, adds: bool):
    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, name, torch.nn.Sequential(*layers))

        def forward(self, x):
            h = getattr(self, name)(x)
            return x + h if adds else h

    return Residual()


def network(torch, features, classifier):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features = torch.nn.Sequential(*features)
            self.classifier = torch.nn.Sequential(*classifier)

        def forward(self, x):
            return self.classifier(self.features(x).mean((2, 3)))

    return Network()


def mobilenet_v2(torch, num_classes):
    nn = torch.nn
    features, below = [norm_conv(nn, 3, 32, 3, 2, activation=nn.ReLU6)], 32
    table = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for t, c, n, s in table:
        for i in range(n):
            inner, stride = t * below, s if i == 0 else 1
            layers = [norm_conv(nn, below, inner, activation=nn.ReLU6)] if t > 1 else []
            layers += [norm_conv(nn, inner, inner, 3, stride, inner, nn.ReLU6), *norm_conv(nn, inner, c)]
            features.append(residual(torch, "conv", layers, stride == 1 and below == c))
            below = c
    features.append(norm_conv(nn, 320, 1280, activation=nn.ReLU6))
    return network(torch, features, [nn.Dropout(0.0), nn.Linear(1280, num_classes)])


def quarter(channels):
    """The nearest multiple of 8, but no less than nine tenths of the quarter."""
    nearest = max(8, (channels // 4 + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * (channels // 4) else nearest + 8


def mobilenet_v3(torch, table, hidden, num_classes):
    """``table``: kernel, expanded, channels, has squeeze-and-excitation, has hard swish, stride."""
    nn = torch.nn
    features, below = [norm_conv(nn, 3, 16, 3, 2, activation=nn.Hardswish, epsilon=1e-3)], 16
    for kernel, inner, above, has_squeeze, is_swish, stride in table:
        activation = nn.Hardswish if is_swish else nn.ReLU
        layers = []
        if inner != below:
            layers.append(norm_conv(nn, below, inner, activation=activation, epsilon=1e-3))
        layers.append(norm_conv(nn, inner, inner, kernel, stride, inner, activation, 1e-3))
        if has_squeeze:
            layers.append(squeeze_excite(torch, inner, quarter(inner), nn.ReLU, nn.Hardsigmoid))
        layers.append(norm_conv(nn, inner, above, epsilon=1e-3))
        features.append(residual(torch, "block", layers, stride == 1 and below == above))
        below = above
    top = 6 * below
    features.append(norm_conv(nn, below, top, activation=nn.Hardswish, epsilon=1e-3))
    head = [nn.Linear(top, hidden), nn.Hardswish(), nn.Dropout(0.0), nn.Linear(hidden, num_classes)]
    return network(torch, features, head)


LARGE = [
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
]
SMALL = [
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
]


def efficientnet(torch, stages, stem, top, num_classes):
    """``stages``: depth, channels, kernel, stride, expansion of each."""
    nn = torch.nn
    features, below = [norm_conv(nn, 3, stem, 3, 2, activation=nn.SiLU)], stem
    for depth, above, kernel, stride, expansion in stages:
        blocks = []
        for b in range(depth):
            inner, s = expansion * below, 1 if b else stride
            layers = [norm_conv(nn, below, inner, activation=nn.SiLU)] if expansion > 1 else []
            layers += [
                norm_conv(nn, inner, inner, kernel, s, inner, nn.SiLU),
                squeeze_excite(torch, inner, max(1, below // 4), nn.SiLU, nn.Sigmoid),
                norm_conv(nn, inner, above),
            ]
            blocks.append(residual(torch, "block", layers, s == 1 and below == above))
            below = above
        features.append(nn.Sequential(*blocks))
    features.append(norm_conv(nn, below, top, activation=nn.SiLU))
    return network(torch, features, [nn.Dropout(0.0), nn.Linear(top, num_classes)])
