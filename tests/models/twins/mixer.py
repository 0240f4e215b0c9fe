"""MLP-Mixer in PyTorch, from its paper, under timm's names."""

from __future__ import annotations


def mixer(torch, tokens, patch, width, depth, token_hidden, channel_hidden, num_classes):
    nn = torch.nn

    class MLP(nn.Module):
        def __init__(self, features, hidden):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(features, hidden), nn.Linear(hidden, features)

        def forward(self, x):
            return self.fc2(nn.functional.gelu(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
            self.mlp_tokens, self.mlp_channels = MLP(tokens, token_hidden), MLP(width, channel_hidden)

        def forward(self, x):
            x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.mlp_channels(self.norm2(x))

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Module()
            self.stem.proj = nn.Conv2d(3, width, patch, patch)
            self.blocks = nn.Sequential(*[Block() for _ in range(depth)])
            self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, num_classes)

        def forward(self, x):
            x = self.stem.proj(x).flatten(2).transpose(1, 2)
            return self.head(self.norm(self.blocks(x)).mean(1))

    return Mixer()
