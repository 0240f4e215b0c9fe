"""The classic convolutional networks in PyTorch, written from their papers with torchvision's names.

Dropout is left out: it is off where values are compared.
"""

from __future__ import annotations

from typing import Any


def vgg(torch: Any, depths: Any, widths: Any, hidden: int, pooled: int, classes: int, norm: bool) -> Any:
    nn, layers, before = torch.nn, [], 3
    for depth, width in zip(depths, widths, strict=True):
        for _ in range(depth):
            layers.append(nn.Conv2d(before, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers.append(nn.ReLU())
            before = width
        layers.append(nn.MaxPool2d(2))

    class VGG(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Sequential(
                nn.Linear(before * pooled**2, hidden), nn.ReLU(), nn.Identity(),
                nn.Linear(hidden, hidden), nn.ReLU(), nn.Identity(), nn.Linear(hidden, classes),
            )  # fmt: skip

        def forward(self, x):
            x = nn.functional.adaptive_avg_pool2d(self.features(x), (pooled, pooled))
            return self.classifier(x.flatten(1))

    return VGG()


def alexnet(torch: Any, widths: Any, hidden: int, classes: int, response_norm: bool) -> Any:
    nn = torch.nn
    a, b, c, d, e = widths

    class Pool(nn.Module):
        def forward(self, x):
            if response_norm:  # PyTorch divides alpha by the size
                x = nn.functional.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)
            return nn.functional.max_pool2d(x, 3, 2)

    class AlexNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), Pool(),
                nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), Pool(),
                nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
                nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
            )  # fmt: skip
            self.classifier = nn.Sequential(
                nn.Identity(), nn.Linear(e * 36, hidden), nn.ReLU(),
                nn.Identity(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes),
            )  # fmt: skip

        def forward(self, x):
            x = nn.functional.adaptive_avg_pool2d(self.features(x), (6, 6))
            return self.classifier(x.flatten(1))

    return AlexNet()


def nin(torch: Any, widths: Any, kernels: Any, classes: int) -> Any:
    nn, layers, before = torch.nn, [], 3
    pools = [nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, ceil_mode=True)]
    for s, (stage, kernel) in enumerate(zip(widths, kernels, strict=True)):
        for b, width in enumerate(stage):
            size = 1 if b else kernel
            layers += [nn.Conv2d(before, width, size, padding=size // 2), nn.ReLU()]
            before = width
        layers += pools[s : s + 1]
    layers += [nn.Conv2d(before, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


def squeezenet(torch: Any, stem: Any, stages: Any, classes: int) -> Any:
    nn = torch.nn

    class Fire(nn.Module):
        def __init__(self, before, squeeze, expand):
            super().__init__()
            self.squeeze = nn.Conv2d(before, squeeze, 1)
            self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
            self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

        def forward(self, x):
            x = self.squeeze(x).relu()
            return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)

    before, kernel = stem
    layers = [nn.Conv2d(3, before, kernel, 2), nn.ReLU()]
    for stage in stages:
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        for squeeze, expand in stage:
            layers.append(Fire(before, squeeze, expand))
            before = 2 * expand

    class SqueezeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Sequential(nn.Identity(), nn.Conv2d(before, classes, 1), nn.ReLU())

        def forward(self, x):
            return self.classifier(self.features(x)).mean((2, 3))

    return SqueezeNet()


def googlenet(torch: Any, stem: Any, blocks: Any, classes: int) -> Any:
    """In training the tuple of the logits and those of the auxiliary classifiers."""
    nn = torch.nn

    class Conv(nn.Module):
        def __init__(self, before, after, kernel, stride=1):
            super().__init__()
            self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
            self.bn = nn.BatchNorm2d(after, eps=1e-3)

        def forward(self, x):
            return self.bn(self.conv(x)).relu()

    class Inception(nn.Module):
        def __init__(self, before, one, reduce3, three, reduce5, five, projection):
            super().__init__()
            self.branch1 = Conv(before, one, 1)
            self.branch2 = nn.Sequential(Conv(before, reduce3, 1), Conv(reduce3, three, 3))
            self.branch3 = nn.Sequential(Conv(before, reduce5, 1), Conv(reduce5, five, 3))
            self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), Conv(before, projection, 1))

        def forward(self, x):
            return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)

    class Auxiliary(nn.Module):
        def __init__(self, before):
            super().__init__()
            self.conv = Conv(before, 128, 1)
            self.fc1, self.fc2 = nn.Linear(2048, 1024), nn.Linear(1024, classes)

        def forward(self, x):
            x = self.conv(nn.functional.adaptive_avg_pool2d(x, (4, 4))).flatten(1)
            return self.fc2(self.fc1(x).relu())

    class GoogLeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = Conv(3, stem[0], 7, 2), Conv(stem[0], stem[1], 1)
            self.conv3, before = Conv(stem[1], stem[2], 3), stem[2]
            for name, channels in blocks.items():
                setattr(self, f"inception{name}", Inception(before, *channels))
                before = channels[0] + channels[2] + channels[4] + channels[5]
                if name in ("4a", "4d"):
                    setattr(self, {"4a": "aux1", "4d": "aux2"}[name], Auxiliary(before))
            self.fc = nn.Linear(before, classes)

        def forward(self, x):
            pool = nn.functional.max_pool2d
            x = self.conv3(self.conv2(pool(self.conv1(x), 3, 2, ceil_mode=True)))
            x, extra = pool(x, 3, 2, ceil_mode=True), []
            for name in blocks:
                x = getattr(self, f"inception{name}")(x)
                if name in ("4a", "4d") and self.training:
                    extra.append(getattr(self, {"4a": "aux1", "4d": "aux2"}[name])(x))
                if name == "3b":
                    x = pool(x, 3, 2, ceil_mode=True)
                if name == "4e":
                    x = pool(x, 2, 2, ceil_mode=True)
            logits = self.fc(x.mean((2, 3)))
            return (logits, *extra) if self.training else logits

    return GoogLeNet()


def densenet(torch: Any, depths: Any, growth: int, stem_width: int, classes: int) -> Any:
    nn = torch.nn

    class Layer(nn.Module):
        def __init__(self, before):
            super().__init__()
            self.norm1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, 4 * growth, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(4 * growth)
            self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

        def forward(self, x):
            new = self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())
            return torch.cat([x, new], 1)

    def named(**layers):
        model = nn.Sequential()
        for name, layer in layers.items():
            model.add_module(name, layer)
        return model

    parts, width = {}, stem_width
    parts["conv0"] = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    parts |= {"norm0": nn.BatchNorm2d(width), "relu0": nn.ReLU(), "pool0": nn.MaxPool2d(3, 2, 1)}
    for s, depth in enumerate(depths, 1):
        layers = {f"denselayer{b + 1}": Layer(width + b * growth) for b in range(depth)}
        parts[f"denseblock{s}"] = named(**layers)
        width += depth * growth
        if s < len(depths):
            parts[f"transition{s}"] = named(
                norm=nn.BatchNorm2d(width),
                relu=nn.ReLU(),
                conv=nn.Conv2d(width, width // 2, 1, bias=False),
                pool=nn.AvgPool2d(2),
            )
            width //= 2
    parts["norm5"] = nn.BatchNorm2d(width)

    class DenseNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.classifier = named(**parts), nn.Linear(width, classes)

        def forward(self, x):
            return self.classifier(self.features(x).relu().mean((2, 3)))

    return DenseNet()


def unet(torch: Any, width: int, classes: int, *, norm: bool, padding: int) -> Any:
    """Of depth 4, under the names of milesial's Pytorch-UNet."""
    nn = torch.nn

    class DoubleConv(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            layers = []
            for first in (before, after):
                layers += [
                    nn.Conv2d(first, after, 3, padding=padding, bias=not norm),
                    nn.BatchNorm2d(after) if norm else nn.Identity(),
                    nn.ReLU(),
                ]
            self.double_conv = nn.Sequential(*layers)

        def forward(self, x):
            return self.double_conv(x)

    class Down(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(before, after))

        def forward(self, x):
            return self.maxpool_conv(x)

    class Up(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            self.up, self.conv = nn.ConvTranspose2d(before, after, 2, 2), DoubleConv(before, after)

        def forward(self, x, fine):
            x = self.up(x)
            cut = (fine.shape[2] - x.shape[2]) // 2
            fine = fine[:, :, cut : cut + x.shape[2], cut : cut + x.shape[3]]
            return self.conv(torch.cat([fine, x], 1))

    class Out(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(width, classes, 1)

        def forward(self, x):
            return self.conv(x)

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.inc, self.outc = DoubleConv(3, width), Out()
            for s in range(1, 5):
                setattr(self, f"down{s}", Down(width * 2 ** (s - 1), width * 2**s))
                setattr(self, f"up{s}", Up(width * 2 ** (5 - s), width * 2 ** (4 - s)))

        def forward(self, x):
            maps = [self.inc(x)]
            for s in range(1, 5):
                maps.append(getattr(self, f"down{s}")(maps[-1]))
            x = maps[-1]
            for s in range(1, 5):
                x = getattr(self, f"up{s}")(x, maps[-1 - s])
            return self.outc(x)

    return UNet()
