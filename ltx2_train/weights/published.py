"""The configuration that the published files carry in their header, by version.

It stands in for a header that a repack has lost, and tiny checkpoints are this with smaller numbers. Keys that no
program needs are here too where other readers insist on them.
"""

from __future__ import annotations

import copy
from typing import Any

MODEL_VERSIONS = {"2.0": "2.0.0", "2.3": "2.3.0", "2.5": "2.5.0"}

_TRANSFORMER: dict[str, Any] = {
    "_class_name": "AVTransformer3DModel",
    "num_layers": 48,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "in_channels": 128,
    "out_channels": 128,
    "audio_out_channels": 128,
    "cross_attention_dim": 4096,
    "audio_cross_attention_dim": 2048,
    "caption_channels": 3840,
    "norm_eps": 1e-6,
    "positional_embedding_type": "rope",
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "audio_positional_embedding_max_pos": [20],
    "rope_type": "split",
    "frequencies_precision": "float64",
    "timestep_scale_multiplier": 1000,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "use_middle_indices_grid": True,
    "causal_temporal_positioning": True,
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "use_audio_video_cross_attention": True,
    "av_cross_ada_norm": True,
    "share_ff": False,
    "cross_attention_norm": True,
    "dropout": 0.0,
    "num_embeds_ada_norm": 1000,
    "attention_type": "default",
    "double_self_attention": False,
    "norm_num_groups": 32,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "upcast_attention": False,
    "use_linear_projection": False,
    "use_embeddings_connector": True,
    "connector_num_layers": 2,
    "connector_num_attention_heads": 30,
    "connector_attention_head_dim": 128,
    "connector_positional_embedding_max_pos": [4096],
    "connector_num_learnable_registers": 128,
    "connector_learnable_registers_std": 1,
    "connector_norm_output": True,
}

_TRANSFORMER_23: dict[str, Any] = {
    "cross_attention_adaln": True,
    "apply_gated_attention": True,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
    "text_encoder_norm_type": "per_token_rms",
    "connector_num_layers": 8,
    "connector_num_attention_heads": 32,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "connector_apply_gated_attention": True,
}

_TRANSFORMER_25: dict[str, Any] = {
    **_TRANSFORMER_23,
    "ff_bias": False,
    "use_keyframes_abs_pos_embedding": True,
    "text_encoder_norm_type": "PER_TOKEN_RMS",
}
_TRANSFORMERS = {"2.0": {}, "2.3": _TRANSFORMER_23, "2.5": _TRANSFORMER_25}

_LTX_VIDEO: dict[str, Any] = {
    "_class_name": "Transformer3DModel",
    "num_layers": 28,
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "in_channels": 128,
    "out_channels": 128,
    "cross_attention_dim": 2048,
    "caption_channels": 4096,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "adaptive_norm": "single_scale_shift",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "standardization_norm": "rms_norm",
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "timestep_scale_multiplier": 1000,
    "causal_temporal_positioning": True,
    "dropout": 0.0,
    "double_self_attention": False,
    "only_cross_attention": False,
}
_LTX_VIDEOS: dict[str, dict[str, Any]] = {
    "ltxv-2b": {},
    "ltxv-13b": {"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096},
}

_VAE: dict[str, Any] = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "patch_size": 4,
    "norm_layer": "pixel_norm",
    "latent_log_var": "uniform",
    "causal_decoder": False,
    "timestep_conditioning": False,
    "encoder_base_channels": 128,
    "decoder_base_channels": 128,
    "scaling_factor": 1.0,
    "use_quant_conv": False,
    "normalize_latent_channels": False,
}

_VAE_BLOCKS: dict[str, dict[str, Any]] = {
    "2.0": {
        "encoder_blocks": [
            ["res_x", {"num_layers": 4}],
            ["compress_space_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 6}],
            ["compress_time_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 6}],
            ["compress_all_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 2}],
            ["compress_all_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 2}],
        ],
        "decoder_blocks": [
            ["res_x", {"num_layers": 5, "inject_noise": False}],
            ["compress_all", {"residual": True, "multiplier": 2}],
            ["res_x", {"num_layers": 5, "inject_noise": False}],
            ["compress_all", {"residual": True, "multiplier": 2}],
            ["res_x", {"num_layers": 5, "inject_noise": False}],
            ["compress_all", {"residual": True, "multiplier": 2}],
            ["res_x", {"num_layers": 5, "inject_noise": False}],
        ],
    },
    "2.3": {
        "spatial_padding_mode": "zeros",
        "encoder_blocks": [
            ["res_x", {"num_layers": 4}],
            ["compress_space_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 6}],
            ["compress_time_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 4}],
            ["compress_all_res", {"multiplier": 2}],
            ["res_x", {"num_layers": 2}],
            ["compress_all_res", {"multiplier": 1}],
            ["res_x", {"num_layers": 2}],
        ],
        "decoder_blocks": [
            ["res_x", {"num_layers": 4}],
            ["compress_space", {"multiplier": 2}],
            ["res_x", {"num_layers": 6}],
            ["compress_time", {"multiplier": 2}],
            ["res_x", {"num_layers": 4}],
            ["compress_all", {"multiplier": 1}],
            ["res_x", {"num_layers": 2}],
            ["compress_all", {"multiplier": 2}],
            ["res_x", {"num_layers": 2}],
        ],
    },
}

_AUDIO_VAE: dict[str, Any] = {
    "model": {
        "params": {
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "resolution": 256,
                "downsample_time": False,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 128,
                "ch_mult": [1, 2, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
            "sampling_rate": 16000,
        }
    },
    "preprocessing": {
        "audio": {"sampling_rate": 16000},
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
}

_BLOCKS: dict[str, Any] = {
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "stereo": True,
}

_VOCODER: dict[str, dict[str, Any]] = {
    "2.0": {
        **_BLOCKS,
        "resblock": "1",
        "upsample_initial_channel": 1024,
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [16, 15, 8, 4, 4],
        "output_sampling_rate": 24000,
    },
    "2.3": {
        "vocoder": {
            **_BLOCKS,
            "resblock": "AMP1",
            "activation": "snakebeta",
            "upsample_initial_channel": 1536,
            "upsample_rates": [5, 2, 2, 2, 2, 2],
            "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
            "use_tanh_at_final": False,
            "use_bias_at_final": False,
        },
        "bwe": {
            **_BLOCKS,
            "resblock": "AMP1",
            "activation": "snakebeta",
            "upsample_initial_channel": 512,
            "upsample_rates": [6, 5, 2, 2, 2],
            "upsample_kernel_sizes": [12, 11, 4, 4, 4],
            "use_tanh_at_final": False,
            "use_bias_at_final": False,
            "apply_final_activation": False,
            "input_sampling_rate": 16000,
            "output_sampling_rate": 48000,
            "hop_length": 80,
            "n_fft": 512,
            "win_size": 512,
            "num_mels": 64,
        },
    },
}

_SCHEDULER: dict[str, Any] = {
    "_class_name": "RectifiedFlowScheduler",
    "num_train_timesteps": 1000,
    "sampler": "LinearQuadratic",
    "shifting": None,
    "base_resolution": None,
}


def published_config(version: str) -> dict[str, Any]:
    """A fresh copy of the header's `config` for `version`; the files of 2.5 share its sections among them."""
    if version in _LTX_VIDEOS:
        vae = _VAE | _VAE_BLOCKS["2.0"] | {"timestep_conditioning": True}
        transformer = _LTX_VIDEO | _LTX_VIDEOS[version]
        return copy.deepcopy({"transformer": transformer, "vae": vae, "scheduler": _SCHEDULER})
    like = "2.3" if version == "2.5" else version  # whose VAEs and vocoder it has
    return copy.deepcopy(
        {
            "transformer": _TRANSFORMER | _TRANSFORMERS[version],
            "vae": _VAE | _VAE_BLOCKS[like],
            "audio_vae": _AUDIO_VAE,
            "vocoder": _VOCODER[like],
            "scheduler": _SCHEDULER,
        }
    )
