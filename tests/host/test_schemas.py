"""What the nodes look like: ids, sockets, widgets. The order of widgets is a file format: workflows store positions."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

import fake_comfy
import pytest

ROOT = Path(fake_comfy.ROOT)
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"

# Append at the end of a node only: a saved workflow gives its values by position. Visible widgets, then the advanced
# ones, then visible ones that came later.
WIDGETS = {
    "LTX2T_LoadBaseModel": "checkpoint text_encoder precision | text_projection version version_check device | "
    "mode quantization | text_encoder_precision text_encoder_placement video_vae audio_vae",
    "LTX2T_LoadTrainingClips": "folder path trigger_word fps | caption_extension repeats recursive source_fps "
    "audio_source audio_normalize audio_loss_weight audio_bucket_strategy "
    "audio_bucket_interval separate_audio_buckets",
    "LTX2T_PrepareDataset": "width height frames frame_extraction buckets | name bucket_no_upscale frame_stride "
    "frame_sample max_frames min_frames pad_short batch_size spatial_tile temporal_tile "
    "vae_dtype text_form skip_existing max_left_out sizes",
    "LTX2T_TrainLoRA": "run_name steps rank learning_rate train_seed sample_every sample_prompts | "
    "if_exists alpha dropout target save_every keep_states keep_loras accumulation "
    "clip_norm first_frame_probability optimizer weight_decay scheduler warmup "
    "gradient_checkpointing state save_precision sample_at_start sample_width "
    "sample_height sample_frames sample_steps sample_guidance negative_prompt "
    "sample_seed comment caption_dropout audio_learning_rate loraplus_ratio "
    "video_weight audio_weight audio_balance audio_balance_ratio "
    "independent_audio_timestep silence_regularizer audio_supervision min_audio_batches "
    "sample_audio blocks_to_swap recompute_blocks swap_from ff_chunk attention_kernel "
    "compile optimizer_offload low_precision_matmul | memory | offload_activations "
    "pinned",
    "LTX2T_SampleLoRA": "prompt strength width height frames steps guidance seed | lora_path "
    "negative_prompt fps stg stg_block rescale shift_tokens audio_file audio_format sigmas more_loras",
    "LTX2T_LoadTrainingAudio": "folder path speaker_word normalise cut_at_pauses min_seconds max_seconds | "
    "pause_seconds caption_extension repeats recursive shortest_file longest_file "
    "loss_weight bucket_strategy bucket_interval",
    "LTX2T_KeepBranch": "action branches lora_path save_name",
    "LTX2T_CheckDataset": "goal width height frames frame_extraction buckets stop_on_red | bucket_no_upscale "
    "frame_stride frame_sample max_frames min_frames pad_short batch_size sizes",
    "LTX2T_CombineDatasets": "share_1 share_2 share_3 share_4",
    "LTX2T_LoadTrainingPairs": "folder path reference_folder reference_path trigger_word fps reference_frames "
    "reference_downscale | caption_extension repeats recursive source_fps reference_temporal_scale "
    "mask_folder mask_path",
    "LTX2T_AddReference": "reference_folder reference_path reference_frames",
    "LTX2T_DatasetFromLists": "captions name batches trigger_word fps | repeats audio_normalize",
    "LTX2T_PreviewItem": "item decode width height frames frame_extraction buckets | bucket_no_upscale "
    "frame_stride frame_sample max_frames min_frames pad_short batch_size sizes",
    "LTX2T_CutLongVideos": "folder path cut_at seconds min_seconds max_seconds name",
    "LTX2T_CaptionClips": "folder path model whisper speaker prompt overwrite | prefix frames model_path whisper_path",
    "LTX2T_MergeLoRA": "multiplier_1 multiplier_2 multiplier_3 multiplier_4 lora_paths method save_name | "
    "k_fraction rank_mode dtype emit_alpha",
    "LTX2T_ConvertLoRA": "to lora_path save_name | dtype",
    "LTX2T_DatasetFromFile": "path cache_only",
    "LTX2T_RunFromFile": "path changes",
    "LTX2T_Monitor": "run_name",
    "LTX2T_TrainSlider": "positive negative target_class run_name steps rank learning_rate guidance | more_targets "
    "strengths frames width height sample_every sample_prompts sample_frames train_seed if_exists alpha dropout target "
    "save_every keep_states keep_loras accumulation clip_norm optimizer weight_decay scheduler warmup "
    "gradient_checkpointing state save_precision sample_at_start sample_width sample_height sample_steps "
    "sample_guidance negative_prompt sample_seed comment loraplus_ratio blocks_to_swap recompute_blocks swap_from "
    "ff_chunk attention_kernel compile optimizer_offload low_precision_matmul offload_activations pinned memory",
    "LTX2T_QuantizationOptions": "block_size device loftq loftq_iters awq awq_alpha awq_batches",
    "LTX2T_TextEncoderOptions": "double_quant compute_dtype",
    "LTX2T_DatasetOptions": "audio_track flip color_jitter crop caption_prefix caption_replace frame_interval "
    "first_frame_probability | video_loss_weight caption_lines",
    "LTX2T_CachingOptions": "latents_dtype audio_vae_dtype audio_latents_dtype text_dtype preservation_prompts "
    "tiles_chunk_size tiles_spatial_overlap tiles_temporal_overlap | dino_model "
    "dino_size dino_batch keyframe_slots",
    "LTX2T_LoRAOptions": "rank_dropout module_dropout rslora include_patterns exclude_patterns target_modules "
    "algo factor | lokr_norm modules",
    "LTX2T_FullFinetuningOptions": "include_patterns exclude_patterns master_weights release_gradients keep",
    "LTX2T_ObjectiveOptions": "sampling mode shift std eps uniform_prob min_timestep max_timestep | buckets",
    "LTX2T_LossOptions": "type huber_delta balance_beta balance_eps balance_start balance_decay balance_min "
    "balance_max",
    "LTX2T_AudioOptions": "silence_weight supervision_warmup supervision_interval supervision_min_ratio "
    "batch_probability separate_buckets bucket_strategy bucket_interval | "
    "sequence_resolution",
    "LTX2T_ScheduleOptions": "min_lr_ratio cycles power step_size gamma",
    "LTX2T_TrainingOptions": "data_prefetch epochs lr_args changed_rate caption_dropout_with norms_every "
    "save_every_epochs on_nan | prove_references what log_report_to wandb_project wandb_entity wandb_run_name "
    "wandb_tags wandb_log_validation_videos hub_push hub_repo hub_path hub_private processes",
    "LTX2T_MemoryOptions": "swap_ahead ff_chunk_target split_attention split_attention_size "
    "split_attention_target context_gb pinned_gb shard",
    "LTX2T_SamplesOptions": "every_epochs validation_clips validation_first_frame include_reference "
    "identity_guidance image_crf spectrogram tiles_chunk_size | tiles_spatial_tile "
    "tiles_spatial_overlap tiles_temporal_tile tiles_temporal_overlap stg_blocks audio_guidance audio_stg "
    "modality_guidance audio_modality_guidance sigmas streams keyframe_slots upsampler",
    "LTX2T_OptimizerOptions": "args ema_decay ema_sample",
    "LTX2T_RegularizersOptions": "",
    "LTX2T_ValidationOptions": "at_start levels clips",
    "LTX2T_VideoConditions": "",
    "LTX2T_AudioConditions": "",
    "LTX2T_ConditionsRecipe": "",
    "LTX2T_PickCheckpoints": "run_name",
    "LTX2T_CompareCheckpoints": "prompts seeds strengths width height frames steps sound_cell | with_base guidance "
    "negative_prompt fps stg rescale sigmas more_loras",
    "LTX2T_ResizeLoRA": "rank max_error lora_path save_name | dtype",
    "LTX2T_ExtractLoRA": "finetune base rank save_name | dtype",
    "LTX2T_BakeLoRA": "checkpoint strength lora_paths save_name",
    "LTX2T_TrainingRecipe": "",
    "LTX2T_SamplesRecipe": "",
    "LTX2T_QuantizeCheckpoint": "checkpoint format save_name | block_size loftq_rank device",
}
SOCKETS = {
    "LTX2T_LoadBaseModel": (["LTX2T_OPTIONS"], ["LTX2T_MODEL"]),
    "LTX2T_LoadTrainingClips": (["LTX2T_OPTIONS"], ["LTX2T_DATASET", "INT"]),
    "LTX2T_PrepareDataset": (
        ["LTX2T_MODEL", "LTX2T_DATASET", "LTX2T_DATASET", "LTX2T_OPTIONS", "LTX2T_DATASET"],
        ["LTX2T_PREPARED", "STRING"],
    ),
    "LTX2T_TrainLoRA": (
        ["LTX2T_PREPARED", "LORA_MODEL", "LTX2T_OPTIONS", "LTX2T_CONDITIONS"],
        ["LORA_MODEL", "LTX2T_RUN", "STRING"],
    ),
    "LTX2T_SampleLoRA": (
        [
            "LTX2T_RUN",
            "LTX2T_MODEL",
            "IMAGE",
            "IMAGE",
            "AUDIO",
            "IMAGE",
            "MASK",
            "AUDIO",
            "IMAGE",
            "AUDIO",
            "LTX2T_OPTIONS",
        ],
        ["VIDEO", "STRING", "AUDIO"],
    ),
    "LTX2T_LoadTrainingAudio": ([], ["LTX2T_DATASET", "INT"]),
    "LTX2T_KeepBranch": (["LORA_MODEL"], ["LORA_MODEL", "STRING", "STRING"]),
    "LTX2T_CheckDataset": (["LTX2T_DATASET"], ["LTX2T_DATASET", "STRING"]),
    "LTX2T_CombineDatasets": (["LTX2T_DATASET"] * 4, ["LTX2T_DATASET", "INT"]),
    "LTX2T_LoadTrainingPairs": ([], ["LTX2T_DATASET", "INT"]),
    "LTX2T_AddReference": (["LTX2T_DATASET"], ["LTX2T_DATASET", "INT"]),
    "LTX2T_DatasetFromLists": (["IMAGE", "VIDEO", "AUDIO"], ["LTX2T_DATASET", "INT"]),
    "LTX2T_PreviewItem": (["LTX2T_DATASET", "LTX2T_PREPARED"], ["VIDEO", "AUDIO", "STRING", "STRING"]),
    "LTX2T_CutLongVideos": ([], ["STRING", "INT", "STRING"]),
    "LTX2T_CaptionClips": ([], ["STRING", "STRING"]),
    "LTX2T_MergeLoRA": (["LORA_MODEL", "LORA_MODEL", "LORA_MODEL", "LORA_MODEL"], ["LORA_MODEL", "STRING", "STRING"]),
    "LTX2T_ConvertLoRA": (["LORA_MODEL"], ["LORA_MODEL", "STRING", "STRING"]),
    "LTX2T_DatasetFromFile": (["LTX2T_MODEL", "LTX2T_OPTIONS"], ["LTX2T_PREPARED", "STRING"]),
    "LTX2T_RunFromFile": ([], ["LORA_MODEL", "LTX2T_RUN", "STRING"]),
    "LTX2T_Monitor": ([], []),
    "LTX2T_TrainSlider": (
        ["LTX2T_MODEL", "LTX2T_PREPARED", "LTX2T_PREPARED", "LTX2T_OPTIONS"],
        ["LORA_MODEL", "LTX2T_RUN", "STRING"],
    ),
    "LTX2T_QuantizationOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_TextEncoderOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_DatasetOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_CachingOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_LoRAOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_FullFinetuningOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_ObjectiveOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_LossOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_AudioOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_ScheduleOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_TrainingOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_MemoryOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_SamplesOptions": (["LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_OptimizerOptions": ([DYNAMIC, "LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_RegularizersOptions": ([DYNAMIC, "LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_ValidationOptions": ([DYNAMIC, "LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_VideoConditions": ([DYNAMIC, "LTX2T_CONDITIONS"], ["LTX2T_CONDITIONS"]),
    "LTX2T_AudioConditions": ([DYNAMIC, "LTX2T_CONDITIONS"], ["LTX2T_CONDITIONS"]),
    "LTX2T_ConditionsRecipe": ([DYNAMIC, "LTX2T_CONDITIONS"], ["LTX2T_CONDITIONS"]),
    "LTX2T_PickCheckpoints": (
        ["LTX2T_RUN", "LTX2T_CHECKPOINTS", DYNAMIC],
        ["LTX2T_CHECKPOINTS", "LORA_MODEL", "STRING"],
    ),
    "LTX2T_CompareCheckpoints": (["LTX2T_CHECKPOINTS", "LTX2T_OPTIONS"], ["VIDEO", "STRING", "AUDIO", "STRING"]),
    "LTX2T_ResizeLoRA": (["LORA_MODEL"], ["LORA_MODEL", "STRING", "STRING"]),
    "LTX2T_ExtractLoRA": ([], ["LORA_MODEL", "STRING", "STRING"]),
    "LTX2T_BakeLoRA": (["LORA_MODEL"], ["STRING", "STRING"]),
    "LTX2T_TrainingRecipe": ([DYNAMIC, "LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_SamplesRecipe": ([DYNAMIC, "LTX2T_OPTIONS"], ["LTX2T_OPTIONS"]),
    "LTX2T_QuantizeCheckpoint": ([], ["STRING", "STRING"]),
}
IDS = list(WIDGETS)


@pytest.fixture
def schemas(nodes):
    return {node.define_schema().node_id: (node, node.define_schema()) for node in nodes.NODES}


def widgets_of(schema):
    return [shown for shown in schema.inputs if shown.io_type in WIDGET_TYPES]


def advanced(shown):
    return bool(shown.options.get("advanced"))


def test_the_nodes_are_these(schemas):
    assert list(schemas) == IDS


@pytest.mark.parametrize("node_id", IDS)
def test_widgets_keep_their_order(schemas, node_id):
    shown = widgets_of(schemas[node_id][1])
    runs = [" ".join(widget.id for widget in run) for _, run in itertools.groupby(shown, advanced)]
    assert " | ".join(runs) == WIDGETS[node_id]


@pytest.mark.parametrize("node_id", IDS)
def test_a_node_calls_its_own_widgets_by_their_names(nodes, schemas, node_id):
    schema = schemas[node_id][1]
    with nodes.words.speaking_as(schema.display_name):
        for widget in widgets_of(schema):
            told = nodes.words.in_widget_words(f"Lower {widget.id}.")
            assert " of " not in told, "a setting of that name is shown by another node, and this widget is not it"


@pytest.mark.parametrize("node_id", IDS)
def test_at_most_eight_widgets_are_visible(schemas, node_id):
    assert sum(not advanced(widget) for widget in widgets_of(schemas[node_id][1])) <= 8


@pytest.mark.parametrize("node_id", IDS)
def test_sockets_have_their_types(schemas, node_id):
    schema = schemas[node_id][1]
    inputs = [shown.io_type for shown in schema.inputs if shown.io_type not in WIDGET_TYPES]
    assert (inputs, [shown.io_type for shown in schema.outputs]) == SOCKETS[node_id]


@pytest.mark.parametrize("node_id", IDS)
def test_every_widget_and_socket_explains_itself(schemas, node_id):
    schema = schemas[node_id][1]
    for shown in schema.inputs:
        assert shown.options.get("tooltip", "").strip(), f"{node_id}.{shown.id} has no tooltip"
    for shown in schema.outputs:
        assert (shown.tooltip or "").strip(), f"output {shown.id} of {node_id} has no tooltip"


@pytest.mark.parametrize("node_id", IDS)
def test_a_call_with_the_visible_widgets_alone_is_complete(schemas, node_id):
    node, schema = schemas[node_id]
    parameters = inspect.signature(node.execute).parameters
    assert set(parameters) == {shown.id for shown in schema.inputs}
    for shown in schema.inputs:
        if advanced(shown):
            assert shown.optional, f"{shown.id}: ComfyUI refuses a prompt without it"
            assert parameters[shown.id].default == shown.default, shown.id
        elif shown.optional and shown in widgets_of(schema):
            assert parameters[shown.id].default == shown.default, shown.id
        elif shown.optional:
            assert parameters[shown.id].default is None, shown.id


@pytest.mark.parametrize("node_id", [node_id for node_id in IDS if DYNAMIC in SOCKETS[node_id][0]])
def test_no_box_of_several_lines_stands_below_a_choice(schemas, node_id):
    # the page keeps its text when another choice is made and shows it empty, so that what is sent would not be seen
    for shown in schemas[node_id][1].inputs:
        for choice in shown.options.get("options", []) if shown.io_type == DYNAMIC else []:
            assert not [below.id for below in choice.inputs if below.options.get("multiline")]


@pytest.mark.parametrize("node_id", IDS)
def test_no_seed_changes_by_itself(schemas, node_id):
    # ComfyUI gives an INT named seed or noise_seed a control that is set to randomize, and every press would train anew
    for shown in widgets_of(schemas[node_id][1]):
        if shown.id in ("seed", "noise_seed"):
            assert shown.control_after_generate == "fixed"
        elif "seed" in shown.id and shown.io_type == "INT":
            assert not shown.control_after_generate


@pytest.mark.parametrize("node_id", IDS)
def test_nodes_can_be_found_and_have_a_help_page(schemas, node_id):
    schema = schemas[node_id][1]
    assert schema.category.split("/")[0] == "LTX-2 training"
    assert schema.display_name
    assert schema.description
    assert schema.search_aliases
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {schema.display_name}\n")
    for shown in schema.inputs:
        if not advanced(shown):
            assert shown.id in page, f"{node_id}.md does not speak of {shown.id}"


def forms(nodes):
    return [
        nodes.model.FORM,
        nodes.model.TEXT,
        nodes.data.CLIPS,
        nodes.data.SHAPE,
        nodes.data.CACHES,
        nodes.data.SIZE_SETTINGS,
        nodes.train.FORM,
        nodes.train.LATER,
        nodes.sample.FORM,
        nodes.audio.FORM,
        nodes.pairs.FORM,
        nodes.lists.FORM,
        nodes.compare.FORM,
        *nodes.options.FORMS.values(),
    ]


def test_widgets_show_what_the_settings_say(nodes):
    for form in forms(nodes):
        for setting in form.settings:
            field = nodes.widgets.shown_field(form.kind, setting)
            shown = nodes.widgets.widget(form.kind, setting)
            assert shown.tooltip.startswith(field.description)
            given = nodes.widgets.value_of(field, setting, shown.default)
            if setting.default is None:
                default = field.get_default(call_default_factory=True)
                default = list(default) if isinstance(default, tuple) else default
                assert (given or None) == (default or None), setting.path


def test_untouched_widgets_give_the_settings_their_own_defaults(nodes):
    from_nothing = nodes.train.core.make_run({})
    for form in (nodes.model.FORM, nodes.data.CACHES, nodes.train.FORM, nodes.train.LATER, nodes.sample.FORM):
        shown = {s.id: nodes.widgets.shown_default(nodes.widgets.shown_field(form.kind, s), s) for s in form.settings}
        assert nodes.train.core.make_run(form.tables(shown)) == from_nothing


def test_comfyui_is_imported_in_one_place_only():
    for path in (ROOT / "nodes").rglob("*.py"):
        if path.parent.name != "host":
            source = path.read_text(encoding="utf-8")
            for name in ("comfy", "folder_paths", "server", "execution"):
                assert f"import {name}" not in source, path
                assert f"from {name}" not in source, path


def test_only_one_script_runs_by_itself():
    # ComfyUI runs every .js of the web folder; helpers are .mjs
    assert [path.name for path in (ROOT / "web").rglob("*.js")] == ["ltx2_trainer.js"]
