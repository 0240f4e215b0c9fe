"""Networks of the peers in PyTorch that only the benchmarks need, beside those of `experiments.torch_models`.

PyTorch is imported where a network is made, since only comparisons need it.
"""

from __future__ import annotations

from typing import Any


def vit(size: int, patch: int, width: int, depth: int, num_heads: int, num_classes: int) -> Any:
    """A vision Transformer under timm's names, from images [B, 3, size, size] to logits."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            q, k, v = self.qkv(x).view(B, T, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(q, k, v)
            return self.proj(y.transpose(1, 2).reshape(B, T, width))

    class MLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            return self.fc2(functional.gelu(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
            self.attn, self.mlp = Attention(), MLP()

        def forward(self, x: Any) -> Any:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv2d(3, width, patch, patch)

        def forward(self, x: Any) -> Any:
            return self.proj(x).flatten(2).transpose(1, 2)

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = Patches()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
            self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
            self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, num_classes)

        def forward(self, x: Any) -> Any:
            x = self.patch_embed(x)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
            return self.head(self.norm(self.blocks(x))[:, 0])

    return ViT()


def bert(vocab_size: int, context: int, width: int, depth: int, num_heads: int) -> Any:
    """Hugging Face's BERT for masked tokens, from tokens [B, T] to logits [B, T, V]."""
    from torch import nn
    from transformers import BertConfig, BertForMaskedLM

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = BertConfig(
                vocab_size=vocab_size,
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=num_heads,
                intermediate_size=4 * width,
                max_position_embeddings=context,
            )
            network = BertForMaskedLM(config)
            # Tied, which they need not be before weights are loaded.
            decoder = network.cls.predictions.decoder
            decoder.weight = network.bert.embeddings.word_embeddings.weight
            decoder.bias = network.cls.predictions.bias
            self.bert, self.cls = network.bert, network.cls

        def forward(self, tokens: Any) -> Any:
            return self.cls(self.bert(tokens).last_hidden_state)

    return Logits()


def unet(width: int, num_classes: int) -> Any:
    """A U-Net of depth 4 with batch normalisation, under the names of milesial's Pytorch-UNet."""
    import torch
    from torch import nn

    class Double(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            layers: list[Any] = []
            for inputs in (before, after):
                layers += [
                    nn.Conv2d(inputs, after, 3, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                ]
            self.double_conv = nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            return self.double_conv(x)

    class Down(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), Double(before, after))

        def forward(self, x: Any) -> Any:
            return self.maxpool_conv(x)

    class Up(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.up, self.conv = nn.ConvTranspose2d(before, after, 2, 2), Double(before, after)

        def forward(self, x: Any, fine: Any) -> Any:
            return self.conv(torch.cat([fine, self.up(x)], 1))

    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(width, num_classes, 1)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inc, self.outc = Double(3, width), Out()
            for s in range(1, 5):
                setattr(self, f"down{s}", Down(width * 2 ** (s - 1), width * 2**s))
                setattr(self, f"up{s}", Up(width * 2 ** (5 - s), width * 2 ** (4 - s)))

        def forward(self, x: Any) -> Any:
            maps = [self.inc(x)]
            for s in range(1, 5):
                maps.append(getattr(self, f"down{s}")(maps[-1]))
            x = maps.pop()
            for s in range(1, 5):
                x = getattr(self, f"up{s}")(x, maps.pop())
            return self.outc.conv(x)

    return UNet()


def vae(pixels: int, hidden: int, latent: int) -> Any:
    """A VAE of bits, a module from binary images [B, ...] to minus the bound, a mean over the batch."""
    import torch
    from torch import nn
    from torch.nn import functional

    class VAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleList([nn.Linear(pixels, hidden), nn.Linear(hidden, 2 * latent)])
            self.decoder = nn.ModuleList([nn.Linear(latent, hidden), nn.Linear(hidden, pixels)])

        def forward(self, x: Any) -> Any:
            x = x.flatten(1)
            mean, log_std = self.encoder[1](torch.relu(self.encoder[0](x))).chunk(2, -1)
            z = mean + log_std.exp() * torch.randn_like(mean)
            logits = self.decoder[1](torch.relu(self.decoder[0](z)))
            surprise = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            kl = 0.5 * (mean**2 + torch.expm1(2 * log_std)) - log_std
            return (surprise + kl.sum()) / len(x)

    return VAE()
