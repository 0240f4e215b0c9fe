"""Maps of names of published efficient networks and Transformers of images.

Where a library numbers blocks through all stages, its map is a function of the blocks of each stage
(``model.depths``).
"""

from __future__ import annotations

from collections.abc import Sequence

Rules = list[tuple[str, ...]]


def _numbered(depths: Sequence[int], rules: Sequence[tuple[str, ...]], first: int = 0) -> Rules:
    """Rules of a block for every block of every stage, counted through from ``first`` as ``{i}``."""
    numbered: Rules = []
    i = first
    for s, depth in enumerate(depths, 1):
        for b in range(1, depth + 1):
            for ours, theirs, *layout in rules:
                theirs = theirs.replace("{i}", str(i))
                numbered.append((f"stage{s}/block{b}/{ours}", theirs, *layout))
            i += 1
    return numbered


def _norms(rules: Sequence[tuple[str, str, str]]) -> Rules:
    """Each (our ConvNorm, their convolution, their normalisation) as two rules."""
    return [rule for ours, conv, norm in rules for rule in ((f"{ours}/conv", conv), (f"{ours}/norm", norm))]


def efficientnet_lite_pytorch(depths: Sequence[int]) -> Rules:
    """`jdl.models.efficientnet` from the packages efficientnet_pytorch and efficientnet_lite_pytorch.

    Example:
        >>> efficientnet_lite_pytorch((1, 2))[-2:]
        [('top/norm', '_bn1'), ('head', '_fc')]
    """
    block = _norms(
        [
            ("expand", "_blocks.{i}._expand_conv", "_blocks.{i}._bn0"),
            ("depthwise", "_blocks.{i}._depthwise_conv", "_blocks.{i}._bn1"),
            ("project", "_blocks.{i}._project_conv", "_blocks.{i}._bn2"),
        ]
    )
    squeeze: Rules = [
        ("squeeze/reduce", "_blocks.{i}._se_reduce", "pointwise"),
        ("squeeze/expand", "_blocks.{i}._se_expand", "pointwise"),
    ]
    ends = _norms([("stem", "_conv_stem", "_bn0"), ("top", "_conv_head", "_bn1")])
    return [*_numbered(depths, [*block, *squeeze]), *ends, ("head", "_fc")]


def efficientnet_hugging_face(depths: Sequence[int]) -> Rules:
    """`jdl.models.efficientnet` from Hugging Face transformers.

    Example:
        >>> efficientnet_hugging_face((1, 2))[-1]
        ('head', 'classifier')
    """
    encoder = "efficientnet.encoder"
    block = f"{encoder}.blocks.{{i}}"
    convolutions = _norms(
        [
            ("expand", f"{block}.expansion.expand_conv", f"{block}.expansion.expand_bn"),
            ("depthwise", f"{block}.depthwise_conv.depthwise_conv", f"{block}.depthwise_conv.depthwise_norm"),
            ("project", f"{block}.projection.project_conv", f"{block}.projection.project_bn"),
        ]
    )
    squeeze: Rules = [
        ("squeeze/reduce", f"{block}.squeeze_excite.reduce", "pointwise"),
        ("squeeze/expand", f"{block}.squeeze_excite.expand", "pointwise"),
    ]
    stem = "efficientnet.embeddings"
    ends = _norms(
        [
            ("stem", f"{stem}.convolution", f"{stem}.batchnorm"),
            ("top", f"{encoder}.top_conv", f"{encoder}.top_bn"),
        ]
    )
    return [*_numbered(depths, [*convolutions, *squeeze]), *ends, ("head", "classifier")]


def _torchvision(ours: str, theirs: str) -> Rules:
    """A ConvNorm that torchvision has as a sequence of two layers."""
    return _norms([(ours, f"{theirs}.0", f"{theirs}.1")])


_EFFICIENTNET_SQUEEZE = "features.{s}.{b-1}.block.2"

EFFICIENTNET_TORCHVISION: Rules = [
    *_torchvision("stem", "features.0"),
    # The first stage expands nothing, so that its layers count from one less.
    *_torchvision("stage1/block{b}/depthwise", "features.1.{b-1}.block.0"),
    ("stage1/block{b}/squeeze/reduce", "features.1.{b-1}.block.1.fc1", "pointwise"),
    ("stage1/block{b}/squeeze/expand", "features.1.{b-1}.block.1.fc2", "pointwise"),
    *_torchvision("stage1/block{b}/project", "features.1.{b-1}.block.2"),
    *_torchvision("stage{s}/block{b}/expand", "features.{s}.{b-1}.block.0"),
    *_torchvision("stage{s}/block{b}/depthwise", "features.{s}.{b-1}.block.1"),
    ("stage{s}/block{b}/squeeze/reduce", f"{_EFFICIENTNET_SQUEEZE}.fc1", "pointwise"),
    ("stage{s}/block{b}/squeeze/expand", f"{_EFFICIENTNET_SQUEEZE}.fc2", "pointwise"),
    *_torchvision("stage{s}/block{b}/project", "features.{s}.{b-1}.block.3"),
    *_torchvision("top", "features.8"),
    ("head", "classifier.1"),
]
"""`jdl.models.efficientnet` from torchvision, whose networks have ``padding=None`` and, but for B5 to B7,
``epsilon=1e-5``."""

_V1_DEPTHS = (1, 2, 2, 6, 2)


def _v1_hugging_face(ours: str, theirs: str) -> Rules:
    theirs = f"mobilenet_v1.{theirs}"
    return _norms([(ours, f"{theirs}.convolution", f"{theirs}.normalization")])


MOBILENET_V1_HUGGING_FACE: Rules = [
    *_v1_hugging_face("stem", "conv_stem"),
    *[
        rule
        for s, depth in enumerate(_V1_DEPTHS, 1)
        for b in range(1, depth + 1)
        for j, layer in enumerate(("depthwise", "pointwise"))
        for rule in _v1_hugging_face(
            f"stage{s}/block{b}/{layer}", f"layer.{2 * (sum(_V1_DEPTHS[: s - 1]) + b - 1) + j}"
        )
    ],
    ("head", "classifier"),
]
"""`jdl.models.mobilenet_v1` from Hugging Face transformers, with ``padding="SAME", epsilon=1e-3``. The
published weights have 1001 classes, of which the first is background, and ReLU6 everywhere
(`jdl.interop.from_hugging_face` makes such a network)."""

_V2_DEPTHS = (1, 2, 3, 7, 4)


def _v2_hugging_face(ours: str, theirs: str) -> Rules:
    theirs = f"mobilenet_v2.{theirs}"
    return _norms([(ours, f"{theirs}.convolution", f"{theirs}.normalization")])


MOBILENET_V2_HUGGING_FACE: Rules = [
    *_v2_hugging_face("stem", "conv_stem.first_conv"),
    *_v2_hugging_face("stage1/block1/depthwise", "conv_stem.conv_3x3"),
    *_v2_hugging_face("stage1/block1/project", "conv_stem.reduce_1x1"),
    *_numbered(
        _V2_DEPTHS,
        [
            *_v2_hugging_face("expand", "layer.{i}.expand_1x1"),
            *_v2_hugging_face("depthwise", "layer.{i}.conv_3x3"),
            *_v2_hugging_face("project", "layer.{i}.reduce_1x1"),
        ],
        first=-1,
    ),
    *_v2_hugging_face("top", "conv_1x1"),
    ("head", "classifier"),
]
"""`jdl.models.mobilenet_v2` from Hugging Face transformers, with ``padding="SAME", epsilon=1e-3`` and, for
the published weights, 1001 classes, of which the first is background."""

MOBILENET_V2_TORCHVISION: Rules = [
    *_torchvision("stem", "features.0"),
    *_torchvision("stage1/block1/depthwise", "features.1.conv.0"),
    *_norms([("stage1/block1/project", "features.1.conv.1", "features.1.conv.2")]),
    *_numbered(
        _V2_DEPTHS,
        [
            *_torchvision("expand", "features.{i}.conv.0"),
            *_torchvision("depthwise", "features.{i}.conv.1"),
            *_norms([("project", "features.{i}.conv.2", "features.{i}.conv.3")]),
        ],
        first=1,
    ),
    *_torchvision("top", "features.18"),
    ("head", "classifier.1"),
]
"""`jdl.models.mobilenet_v2` from torchvision."""


def _v3_torchvision(depths: Sequence[int], without_squeeze: Sequence[int], first_has_squeeze: bool) -> Rules:
    """Of block i, layers are numbered without those that it lacks."""

    def layers(i: int, start: int, has_squeeze: bool) -> Rules:
        block = f"features.{i}.block"
        rules = _torchvision("expand", f"{block}.0") if start else []
        rules += _torchvision("depthwise", f"{block}.{start}")
        if has_squeeze:
            rules.append(("squeeze/reduce", f"{block}.{start + 1}.fc1", "pointwise"))
            rules.append(("squeeze/expand", f"{block}.{start + 1}.fc2", "pointwise"))
        return rules + _torchvision("project", f"{block}.{start + 1 + has_squeeze}")

    blocks = [(s, b) for s, depth in enumerate(depths, 1) for b in range(1, depth + 1)]
    rules = _torchvision("stem", "features.0")
    for i, (s, b) in enumerate(blocks, 1):
        has_squeeze = first_has_squeeze if i == 1 else i not in without_squeeze
        for ours, *rest in layers(i, int(i > 1), has_squeeze):
            rules.append((f"stage{s}/block{b}/{ours}", *rest))
    rules += _torchvision("top", f"features.{len(blocks) + 1}")
    return [*rules, ("hidden", "classifier.0"), ("head", "classifier.3")]


MOBILENET_V3_LARGE_TORCHVISION = _v3_torchvision((1, 2, 3, 6, 3), (2, 3, 7, 8, 9, 10), False)
"""`jdl.models.mobilenet_v3` ("large") from torchvision."""

MOBILENET_V3_SMALL_TORCHVISION = _v3_torchvision((1, 2, 5, 3), (2, 3), True)
"""`jdl.models.mobilenet_v3` ("small") from torchvision."""


def _timm_block(ours: str, theirs: str, is_first: bool) -> Rules:
    """A block of timm; those of the first stage, which expand nothing, are of another class there."""
    if is_first:
        rules = [("depthwise", "conv_dw", "bn1"), ("project", "conv_pw", "bn2")]
    else:
        rules = [
            ("expand", "conv_pw", "bn1"),
            ("depthwise", "conv_dw", "bn2"),
            ("project", "conv_pwl", "bn3"),
        ]
    return [
        *_norms([(f"{ours}/{name}", f"{theirs}.{conv}", f"{theirs}.{norm}") for name, conv, norm in rules]),
        (f"{ours}/squeeze/reduce", f"{theirs}.se.conv_reduce", "pointwise"),
        (f"{ours}/squeeze/expand", f"{theirs}.se.conv_expand", "pointwise"),
    ]


def _timm_blocks(stages: Sequence[Sequence[int]]) -> Rules:
    """Every block, for the depths of timm's stages that make up each of ours."""
    rules, part = [], 0
    for s, depths in enumerate(stages, 1):
        b = 0
        for depth in depths:
            for i in range(depth):
                b += 1
                rules += _timm_block(f"stage{s}/block{b}", f"blocks.{part}.{i}", part == 0)
            part += 1
    return rules


_TIMM_STEM: Rules = _norms([("stem", "conv_stem", "bn1")])
_TIMM_TOP: Rules = [*_norms([("top", "conv_head", "bn2")]), ("head", "classifier")]

EFFICIENTNET_TIMM: Rules = [
    *_TIMM_STEM,
    *_timm_block("stage1/block{b}", "blocks.0.{b-1}", True),
    *_timm_block("stage{s}/block{b}", "blocks.{s-1}.{b-1}", False),
    *_TIMM_TOP,
]
"""`jdl.models.efficientnet` from timm, B0 to B7 and Lite. The networks whose names begin with ``tf_`` are as
ours are; the others have ``padding=None, epsilon=1e-5``."""

MOBILENET_V2_TIMM: Rules = [*_TIMM_STEM, *_timm_blocks(((1,), (2,), (3,), (4, 3), (3, 1))), *_TIMM_TOP]
"""`jdl.models.mobilenet_v2` from timm, but for the networks of other depths (110d, 120d)."""


def _v3_timm(stages: Sequence[Sequence[int]]) -> Rules:
    """The layer before pooling is the last of the blocks there."""
    top = f"blocks.{sum(map(len, stages))}.0"
    return [
        *_TIMM_STEM,
        *_timm_blocks(stages),
        *_norms([("top", f"{top}.conv", f"{top}.bn1")]),
        ("hidden", "conv_head", "pointwise"),
        ("head", "classifier"),
    ]


MOBILENET_V3_LARGE_TIMM = _v3_timm(((1,), (2,), (3,), (4, 2), (3,)))
"""`jdl.models.mobilenet_v3` ("large") from timm: tf_mobilenetv3_large_100 with ``padding="SAME"``,
mobilenetv3_large_100 with ``epsilon=1e-5``."""

MOBILENET_V3_SMALL_TIMM = _v3_timm(((1,), (2,), (3, 2), (3,)))
"""`jdl.models.mobilenet_v3` ("small") from timm: tf_mobilenetv3_small_100 with ``padding="SAME"``,
mobilenetv3_small_100 with ``epsilon=1e-5``."""

_SHUFFLE = "stage{s+1}.{b-1}"

SHUFFLENET_TORCHVISION: Rules = [
    *_torchvision("stem", "conv1"),
    *_norms(
        [
            ("stage{s}/block{b}/shortcut_depthwise", f"{_SHUFFLE}.branch1.0", f"{_SHUFFLE}.branch1.1"),
            ("stage{s}/block{b}/shortcut_conv", f"{_SHUFFLE}.branch1.2", f"{_SHUFFLE}.branch1.3"),
            ("stage{s}/block{b}/conv1", f"{_SHUFFLE}.branch2.0", f"{_SHUFFLE}.branch2.1"),
            ("stage{s}/block{b}/depthwise", f"{_SHUFFLE}.branch2.3", f"{_SHUFFLE}.branch2.4"),
            ("stage{s}/block{b}/conv2", f"{_SHUFFLE}.branch2.5", f"{_SHUFFLE}.branch2.6"),
        ]
    ),
    *_torchvision("top", "conv5"),
    ("head", "fc"),
]
"""`jdl.models.shufflenet_v2` from torchvision."""

_CONVNEXT_STAGE = "convnext.encoder.stages.{s-1}"
_CONVNEXT_BLOCK = f"{_CONVNEXT_STAGE}.layers.{{b-1}}"

CONVNEXT_HUGGING_FACE: Rules = [
    ("stem", "convnext.embeddings.patch_embeddings"),
    ("stem_norm", "convnext.embeddings.layernorm"),
    ("stage{s}/norm", f"{_CONVNEXT_STAGE}.downsampling_layer.0"),
    ("stage{s}/downsample", f"{_CONVNEXT_STAGE}.downsampling_layer.1"),
    ("stage{s}/block{b}/conv", f"{_CONVNEXT_BLOCK}.dwconv"),
    ("stage{s}/block{b}/norm", f"{_CONVNEXT_BLOCK}.layernorm"),
    ("stage{s}/block{b}/expand", f"{_CONVNEXT_BLOCK}.pwconv1"),
    ("stage{s}/block{b}/project", f"{_CONVNEXT_BLOCK}.pwconv2"),
    ("stage{s}/block{b}/layer_scale", f"{_CONVNEXT_BLOCK}.layer_scale_parameter"),
    ("norm", "convnext.layernorm"),
    ("head", "classifier"),
]
"""`jdl.models.convnext` from Hugging Face transformers."""

_CONVNEXT_BLOCK_TIMM = "stages.{s-1}.blocks.{b-1}"

CONVNEXT_TIMM: Rules = [
    ("stem", "stem.0"),
    ("stem_norm", "stem.1"),
    ("stage{s}/norm", "stages.{s-1}.downsample.0"),
    ("stage{s}/downsample", "stages.{s-1}.downsample.1"),
    ("stage{s}/block{b}/conv", f"{_CONVNEXT_BLOCK_TIMM}.conv_dw"),
    ("stage{s}/block{b}/norm", f"{_CONVNEXT_BLOCK_TIMM}.norm"),
    ("stage{s}/block{b}/expand", f"{_CONVNEXT_BLOCK_TIMM}.mlp.fc1"),
    ("stage{s}/block{b}/project", f"{_CONVNEXT_BLOCK_TIMM}.mlp.fc2"),
    ("stage{s}/block{b}/layer_scale", f"{_CONVNEXT_BLOCK_TIMM}.gamma"),
    ("norm", "head.norm"),
    ("head", "head.fc"),
]
"""`jdl.models.convnext` from timm, tiny to large, with no other attributes."""

CONVNEXT_CONV_TIMM: Rules = [
    (*rule, "pointwise") if rule[0].endswith(("/expand", "/project")) else rule for rule in CONVNEXT_TIMM
]
"""`jdl.models.ConvNeXt` from timm, where layers at each pixel are 1x1 convolutions: atto, femto, pico, nano.
Of these, the variants ols, rms and hnf are other networks."""

_CONVNEXT_BLOCK_FACEBOOK = "stages.{s-1}.{b-1}"

CONVNEXT_FACEBOOK: Rules = [
    ("stem", "downsample_layers.0.0"),
    ("stem_norm", "downsample_layers.0.1"),
    ("stage{s}/norm", "downsample_layers.{s-1}.0"),
    ("stage{s}/downsample", "downsample_layers.{s-1}.1"),
    ("stage{s}/block{b}/conv", f"{_CONVNEXT_BLOCK_FACEBOOK}.dwconv"),
    ("stage{s}/block{b}/norm", f"{_CONVNEXT_BLOCK_FACEBOOK}.norm"),
    ("stage{s}/block{b}/expand", f"{_CONVNEXT_BLOCK_FACEBOOK}.pwconv1"),
    ("stage{s}/block{b}/project", f"{_CONVNEXT_BLOCK_FACEBOOK}.pwconv2"),
    ("stage{s}/block{b}/layer_scale", f"{_CONVNEXT_BLOCK_FACEBOOK}.gamma"),
    ("norm", "norm"),
    ("head", "head"),
]
"""`jdl.models.convnext` from the authors' code (facebookresearch/ConvNeXt), with no other attributes."""

CONVNEXT_TORCHVISION: Rules = [
    ("stem", "features.0.0"),
    ("stem_norm", "features.0.1"),
    # Layers that halve the image and stages come in turn.
    *[
        rule
        for s in range(1, 5)
        for rule in [
            (f"stage{s}/norm", f"features.{2 * s - 2}.0"),
            (f"stage{s}/downsample", f"features.{2 * s - 2}.1"),
            (f"stage{s}/block{{b}}/conv", f"features.{2 * s - 1}.{{b-1}}.block.0"),
            (f"stage{s}/block{{b}}/norm", f"features.{2 * s - 1}.{{b-1}}.block.2"),
            (f"stage{s}/block{{b}}/expand", f"features.{2 * s - 1}.{{b-1}}.block.3"),
            (f"stage{s}/block{{b}}/project", f"features.{2 * s - 1}.{{b-1}}.block.5"),
            (f"stage{s}/block{{b}}/layer_scale", f"features.{2 * s - 1}.{{b-1}}.layer_scale", "channels"),
        ]
    ],
    ("norm", "classifier.0"),
    ("head", "classifier.2"),
]
"""`jdl.models.convnext` from torchvision, with no other attributes."""

_VIT_BLOCK = "vit.encoder.layer.{b-1}"

VIT_HUGGING_FACE: Rules = [
    ("token", "vit.embeddings.cls_token"),
    ("positions", "vit.embeddings.position_embeddings"),
    ("stem", "vit.embeddings.patch_embeddings.projection"),
    ("encoder/block{b}/norm1", f"{_VIT_BLOCK}.layernorm_before"),
    ("encoder/block{b}/attention/query", f"{_VIT_BLOCK}.attention.attention.query"),
    ("encoder/block{b}/attention/key", f"{_VIT_BLOCK}.attention.attention.key"),
    ("encoder/block{b}/attention/value", f"{_VIT_BLOCK}.attention.attention.value"),
    ("encoder/block{b}/attention/out", f"{_VIT_BLOCK}.attention.output.dense"),
    ("encoder/block{b}/norm2", f"{_VIT_BLOCK}.layernorm_after"),
    ("encoder/block{b}/expand", f"{_VIT_BLOCK}.intermediate.dense"),
    ("encoder/block{b}/project", f"{_VIT_BLOCK}.output.dense"),
    ("norm", "vit.layernorm"),
    ("head", "classifier"),
]
"""`jdl.models.vit` from the files that Hugging Face transformers writes and reads; the published ones have
``epsilon=1e-12``."""

VIT_TIMM: Rules = [
    ("token", "cls_token"),
    ("positions", "pos_embed"),
    ("stem", "patch_embed.proj"),
    ("encoder/block{b}/norm1", "blocks.{b-1}.norm1"),
    *[
        (f"encoder/block{{b}}/attention/{name}", "blocks.{b-1}.attn.qkv", "kernel", f"{i}/3")
        for i, name in enumerate(("query", "key", "value"))
    ],
    ("encoder/block{b}/attention/out", "blocks.{b-1}.attn.proj"),
    ("encoder/block{b}/norm2", "blocks.{b-1}.norm2"),
    ("encoder/block{b}/expand", "blocks.{b-1}.mlp.fc1"),
    ("encoder/block{b}/project", "blocks.{b-1}.mlp.fc2"),
    ("norm", "norm"),
    ("head", "head"),
]
"""`jdl.models.vit` from timm, and from the papers' repositories that follow it (DeiT, DINO, MAE)."""

_VIT_LAYER = "encoder.layers.encoder_layer_{b-1}"


def _vit_torchvision(expand: str, project: str) -> Rules:
    return [
        ("token", "class_token"),
        ("positions", "encoder.pos_embedding"),
        ("stem", "conv_proj"),
        ("encoder/block{b}/norm1", f"{_VIT_LAYER}.ln_1"),
        *[
            (
                f"encoder/block{{b}}/attention/{name}/{leaf}",
                f"{_VIT_LAYER}.self_attention.in_proj_{theirs}",
                "kernel" if leaf == "kernel" else "same",
                f"{i}/3",
            )
            for i, name in enumerate(("query", "key", "value"))
            for leaf, theirs in (("kernel", "weight"), ("bias", "bias"))
        ],
        ("encoder/block{b}/attention/out", f"{_VIT_LAYER}.self_attention.out_proj"),
        ("encoder/block{b}/norm2", f"{_VIT_LAYER}.ln_2"),
        ("encoder/block{b}/expand", f"{_VIT_LAYER}.mlp.{expand}"),
        ("encoder/block{b}/project", f"{_VIT_LAYER}.mlp.{project}"),
        ("norm", "encoder.ln"),
        ("head", "heads.head"),
    ]


VIT_TORCHVISION = _vit_torchvision("0", "3")
"""`jdl.models.vit` from the ``state_dict`` of torchvision's models."""

VIT_TORCHVISION_FILE = _vit_torchvision("linear_1", "linear_2")
"""`jdl.models.vit` from the files that torchvision downloads, and renames when it loads them."""

_MIXER_BLOCK = "blocks.{b-1}"

MIXER_TIMM: Rules = [
    ("stem", "stem.proj"),
    ("mixer/block{b}/norm1", f"{_MIXER_BLOCK}.norm1"),
    ("mixer/block{b}/tokens/expand", f"{_MIXER_BLOCK}.mlp_tokens.fc1"),
    ("mixer/block{b}/tokens/project", f"{_MIXER_BLOCK}.mlp_tokens.fc2"),
    ("mixer/block{b}/norm2", f"{_MIXER_BLOCK}.norm2"),
    ("mixer/block{b}/channels/expand", f"{_MIXER_BLOCK}.mlp_channels.fc1"),
    ("mixer/block{b}/channels/project", f"{_MIXER_BLOCK}.mlp_channels.fc2"),
    ("norm", "norm"),
    ("head", "head"),
]
"""`jdl.models.mixer` from timm."""
