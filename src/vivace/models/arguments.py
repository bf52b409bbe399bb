"""Which constructor arguments a recipe or a bundle may give a network, and with which values (no torch here).

Recipes and bundles may come from strangers, and timm's `create_model` also takes URLs, paths, cache folders and
checkpoints. So this is a list of what is allowed, and its values are plain: numbers within bounds, booleans, words of
a known set, short lists of these. Whether a network accepts an argument is left to the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vivace.errors import ModelError, nearest

__all__ = ["ARGUMENTS", "MAX_CHANNELS", "MAX_CLASSES", "MAX_SIZE", "check_arguments", "check_shape"]

MAX_CLASSES = 1_000_000
MAX_CHANNELS = 256
# px: the side of the largest image that is stored
MAX_SIZE = 4096
# the widest layer of timm has 16,384 channels, the deepest stage 96 blocks
MAX_COUNT = 65_536
MAX_DEPTH = 256
# px: padding costs as much as the image. The largest local kernels have 31 px; global ones span the map
MAX_PADDING = 64
MAX_KERNEL = 256
MAX_NUMBER = 1e6
MAX_ITEMS = 64
MAX_NARROWED = 5_000
MAX_SHOWN = 60


@dataclass(frozen=True)
class Kind:
    """What a value may be: `holds` tests a single value; a list of such values is valid too."""

    expected: str
    holds: Callable[[Any], bool]
    words: tuple[str, ...] = ()


def _whole(value: Any, high: int, low: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: Any, high: float, low: float) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and math.isfinite(value)
    )


def _words(*known: str) -> Kind:
    return Kind(f"one of {', '.join(word or repr(word) for word in known)}", lambda value: value in known, known)


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind(f"a whole number, 0 to {MAX_COUNT}", lambda value: _whole(value, MAX_COUNT))
DEPTH = Kind(f"a whole number, 0 to {MAX_DEPTH}", lambda value: _whole(value, MAX_DEPTH))
PADDING = Kind(f"a whole number, 0 to {MAX_PADDING}", lambda value: _whole(value, MAX_PADDING))
KERNEL = Kind(f"a whole number, 1 to {MAX_KERNEL}", lambda value: _whole(value, MAX_KERNEL, 1))
SIDE = Kind(f"a whole number, 1 to {MAX_SIZE}", lambda value: _whole(value, MAX_SIZE, 1))
FRACTION = Kind("a number, 0 to 1", lambda value: _number(value, 1, 0))
NUMBER = Kind(f"a number, -{MAX_NUMBER:g} to {MAX_NUMBER:g}", lambda value: _number(value, MAX_NUMBER, -MAX_NUMBER))
ACTIVATION = _words(
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "gelu_tanh", "quick_gelu", "silu"),
    *("swish", "mish", "sigmoid", "tanh", "hard_sigmoid", "hard_swish", "hard_mish", "hardsigmoid", "hardswish"),
    "identity",
)
NORM = _words(
    *("batchnorm", "batchnorm2d", "groupnorm", "groupnorm1", "layernorm", "layernorm2d", "layernormfp32"),
    *("layernorm2dfp32", "rmsnorm", "rmsnorm2d", "rmsnormfp32", "rmsnorm2dfp32", "simplenorm", "simplenorm2d"),
)
POOL = _words("avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "token", "map", "soft")


def _rows(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


# argument → what it may be: of the zoo's networks, then of timm's constructors (1.0.31) that accept them
ARGUMENTS: dict[str, Kind] = {
    "activation": _words("relu", "silu", "gelu"),
    "downsample": _words("pool", "stride", "none", "conv", "conv_nf"),
    **_rows(
        DEPTH, "depth depths layers serial_depths parallel_depth depth_token_only transformer_depths stages levels"
    ),
    **_rows(DEPTH, "num_blocks num_blocks_list block_config k_sec num_levels cls_attn_layers num_rnn_layers num_vit"),
    **_rows(DEPTH, "global_block_counts"),
    **_rows(SIDE, "img_size patch_size patch_sizes window_size window_sizes stride strides"),
    **_rows(
        KERNEL,
        "kernel_size kernel_sizes down_kernel_size stem_kernel_size repmixer_kernel_size local_conv_size kernels",
    ),
    **_rows(SIDE, "output_stride down_stride"),
    **_rows(SIDE, "down_patch_size patch_kernel patch_stride stem_stride first_stride pool_size"),
    **_rows(COUNT, "widths num_directions"),
    **_rows(COUNT, "embed_dim embed_dims dim dims channels stem_chs stem_width stem_size stem_hidden_dim num_features"),
    **_rows(COUNT, "num_heads heads head_dim num_kv_heads num_heads_inner num_heads_outer key_dim inner_dim base_dim"),
    **_rows(COUNT, "base_dims hidden_sizes head_hidden_size head_widths feature_dim partial_dim qk_dim state_dim"),
    **_rows(COUNT, "growth_rate growth_rates bn_size num_init_features init_channels initial_chs final_chs inplanes"),
    **_rows(COUNT, "cardinality base_width groups group width_factor block_reduce_first reduction reg_tokens"),
    **_rows(COUNT, "num_reg_tokens attn_pool_num_heads focal_levels focal_windows q_pool q_stride"),
    **_rows(COUNT, "neck_chans sr_ratios d2_scales n_div ch_div rel_pos_dim swiglu_align_to local_up_to_layer"),
    **_rows(COUNT, "extra_norm_period intermediate_size"),
    **_rows(PADDING, "padding patch_padding downsample_padding down_pad"),
    **_rows(FRACTION, "drop_rate drop_path_rate proj_drop_rate attn_drop_rate pos_drop_rate patch_drop_rate"),
    **_rows(FRACTION, "drop_block_rate se_ratio"),
    **_rows(NUMBER, "head_scale mlp_ratio mlp_ratios mlp_ratio_token_only attn_pool_mlp_ratio attn_ratio conv_ratio"),
    **_rows(NUMBER, "ffn_ratio expand_ratio expansion_ratio mbconv_expand_ratio ssd_expand bottle_ratio width_mult"),
    **_rows(NUMBER, "depth_mult width scale deepen_factor widen_factor dim_mul head_mul cls_ratio mix_block_ratio"),
    **_rows(NUMBER, "bottleneck_width_ratio transition_compression_ratio norm_eps init_values ls_init_value"),
    **_rows(
        NUMBER, "layer_scale layer_scale_init_value layer_scale_init_values res_scale_init_values layerscale_value"
    ),
    **_rows(NUMBER, "head_init_scale eta locality_strength rope_temperature rope_theta"),
    **_rows(FLAG, "residual whitening identity"),
    **_rows(FLAG, "qkv_bias qkv_fused qk_norm proj_bias mlp_bias conv_bias stem_bias head_bias class_token distilled"),
    **_rows(FLAG, "distillation dynamic_img_size dynamic_img_pad strict_img_size always_partition no_embed_class"),
    **_rows(FLAG, "pre_norm final_norm fc_norm stem_norm patch_norm head_norm head_norm_first tokens_norm fix_init"),
    **_rows(FLAG, "fix_stem zero_init_last avg_down replace_stem_pool shortcut_root conv_mlp use_grn swiglu_mlp"),
    **_rows(FLAG, "scale_mlp scale_attn_inner scale_attn_norm scale_mlp_norm use_abs_pos use_abs_pos_emb use_rel_pos"),
    **_rows(FLAG, "use_rel_pos_bias use_shared_rel_pos_bias shared_rel_pos use_rot_pos_emb use_rope use_fc_norm"),
    **_rows(FLAG, "use_post_norm use_pre_transformer_norm use_post_transformer_norm use_pos_embed use_pos_emb"),
    **_rows(FLAG, "use_layer_scale use_mlp_head use_overlap_down use_post_norm_in_modulation normalize_modulator"),
    **_rows(FLAG, "pool_include_prefix sequential_attn extra_norm_stage multi_conv crop_scale linear bidirectional"),
    **_rows(FLAG, "downsamples se_downsamples channel_attention sep_pos_embed mask_unit_attn aa_stem_only legacy"),
    **_rows(ACTIVATION, "act_layer fc_act_layer attn_act_layer dw_act_layer"),
    **_rows(NORM, "norm_layer norm_layer_cl embed_norm_layer"),
    "global_pool": POOL,
    "aa_layer": _words("avg", "avgpool", "blur", "blurpc"),
    "pad_type": _words("", "same", "symmetric"),
    "pos_embed": _words("learn", "none"),
    "rel_pos_type": _words("mlp", "bias"),
    "weight_init": _words("", "jax", "jax_nlhb", "moco", "reset", "skip"),
}


def check_shape(num_classes: int, in_channels: int, size: int) -> None:
    """Raises ModelError unless the shape of a network's inputs and outputs is within bounds."""
    for name, value, high in (
        ("num_classes", num_classes, MAX_CLASSES),
        ("in_channels", in_channels, MAX_CHANNELS),
        ("size", size, MAX_SIZE),
    ):
        if not _whole(value, high, 1):
            raise ModelError(f"{name} is out of range: got {_shown(value)}. Give a whole number, 1 to {high}.")


def check_arguments(arguments: Mapping[str, Any], *, where: str = "model.arguments") -> None:
    """Raises ModelError unless all are known constructor arguments with plain values; `where` prefixes their names.

    None stands for the default and is valid for every argument. "narrowed" is what `models.narrowing` takes.
    """
    for name, value in arguments.items():
        if name == "narrowed":
            _check_narrowed(value, where)
            continue
        kind = ARGUMENTS.get(name) if isinstance(name, str) else None
        if kind is None:
            raise ModelError(
                f"{where} names an unknown constructor argument: got {_shown(name)}."
                f"{nearest(str(name), ARGUMENTS)} Leave it out: a recipe or bundle may set numbers and words, but "
                "no files, URLs or loading."
            )
        if isinstance(value, str) and kind.words and value not in kind.words:
            raise ModelError(
                f"{where}.{name} is unknown: got {_shown(value)}.{nearest(value, kind.words)} "
                f"Known: {', '.join(word or repr(word) for word in kind.words)}."
            )
        if not _is(kind, value):
            raise ModelError(
                f"{where}.{name} has an invalid value: got {_shown(value)}. Give {kind.expected}, or a "
                f"list of at most {MAX_ITEMS} such values."
            )


def _is(kind: Kind, value: Any, levels: int = 2) -> bool:
    if value is None:
        return True
    if isinstance(value, list | tuple):
        return levels > 0 and len(value) <= MAX_ITEMS and all(_is(kind, item, levels - 1) for item in value)
    return kind.holds(value)


def _check_narrowed(value: Any, where: str) -> None:
    """Raises ModelError unless it is layer → one to three sizes."""
    fits = isinstance(value, Mapping) and len(value) <= MAX_NARROWED
    for name, sizes in value.items() if fits else ():
        fits = fits and isinstance(name, str) and isinstance(sizes, list | tuple) and 1 <= len(sizes) <= 3
        fits = fits and all(_whole(size, MAX_COUNT, 1) for size in sizes)
    if not fits:
        raise ModelError(
            f"{where}.narrowed is no mapping of layers to their sizes: got {_shown(value)}. Give, say, "
            f"{{'stem.0': [32, 3, 1]}}, each size 1 to {MAX_COUNT}."
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
