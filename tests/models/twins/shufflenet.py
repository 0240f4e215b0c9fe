"""ShuffleNet v2 in PyTorch, from its paper, under torchvision's names."""

from __future__ import annotations


def shufflenet_v2(torch, depths, widths, num_classes):
    """``widths`` of the stem, each stage and the last convolution."""
    nn = torch.nn

    def conv(below, above, kernel=1, stride=1, groups=1):
        return nn.Conv2d(below, above, kernel, stride, kernel // 2, groups=groups, bias=False)

    class Block(nn.Module):
        def __init__(self, below, above, stride):
            super().__init__()
            half, self.stride = above // 2, stride
            self.branch1 = nn.Sequential()
            if stride == 2:
                self.branch1 = nn.Sequential(
                    conv(below, below, 3, 2, below), nn.BatchNorm2d(below),
                    conv(below, half), nn.BatchNorm2d(half), nn.ReLU(),
                )  # fmt: skip
            entering = below if stride == 2 else half
            self.branch2 = nn.Sequential(
                conv(entering, half), nn.BatchNorm2d(half), nn.ReLU(),
                conv(half, half, 3, stride, half), nn.BatchNorm2d(half),
                conv(half, half), nn.BatchNorm2d(half), nn.ReLU(),
            )  # fmt: skip

        def forward(self, x):
            a, b = x.chunk(2, 1) if self.stride == 1 else (x, x)
            y = torch.stack([self.branch1(a), self.branch2(b)], 2)
            return y.flatten(1, 2)

    class ShuffleNet(nn.Module):
        def __init__(self):
            super().__init__()
            stem, *inner, top = widths
            self.conv1 = nn.Sequential(conv(3, stem, 3, 2), nn.BatchNorm2d(stem), nn.ReLU())
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            below = stem
            for s, (depth, above) in enumerate(zip(depths, inner, strict=True), 2):
                blocks = [Block(below if b == 0 else above, above, 1 if b else 2) for b in range(depth)]
                setattr(self, f"stage{s}", nn.Sequential(*blocks))
                below = above
            self.conv5 = nn.Sequential(conv(below, top), nn.BatchNorm2d(top), nn.ReLU())
            self.fc = nn.Linear(top, num_classes)

        def forward(self, x):
            x = self.maxpool(self.conv1(x))
            for s in range(2, 2 + len(depths)):
                x = getattr(self, f"stage{s}")(x)
            return self.fc(self.conv5(x).mean((2, 3)))

    return ShuffleNet()
