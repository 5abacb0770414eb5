"""Load LTX-2 Base Model: choose the base, and learn at once whether it can be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train import RunConfig
from . import handles, host, options
from .host import io
from .widgets import Form, Setting, merged, widget

TITLE = "Load LTX-2 Base Model"

FORM = Form(
    RunConfig,
    visible=[Setting("model.precision")],
    advanced=[
        Setting("model.version"),
        Setting("model.version_check"),
        Setting("model.device"),
    ],
    nodes=(TITLE,),
)
further_settings = options.given  # `options` is the name of a socket where the node runs
SAME_CHECKPOINT = "the checkpoint itself"
# shown, yet after the advanced widgets: it came later, and workflows store values by position
MODE = Setting(
    "model.mode",
    extra={
        "optional": True,
        "tooltip": "What is trained and drawn: video; av = video with its sound; audio = sound alone.",
    },
)
STORAGE = Setting("quant.format", "quantization", extra={"optional": True})
for alone in (MODE, STORAGE):
    alone.shown_by(TITLE)
TEXT = Form(
    RunConfig,
    visible=[],
    advanced=[
        Setting("gemma.precision", "text_encoder_precision"),
        Setting("gemma.placement", "text_encoder_placement"),
    ],
    nodes=(TITLE,),
)
# the mode that has no use for it
WITHOUT = {"video_vae": "audio", "audio_vae": "video"}
MODES = {"video": "video", "av": "video and sound", "audio": "sound alone"}


def _vae(name: str, about: str) -> Any:
    """The list of files that may have a part which LTX-2.5 keeps apart."""
    return io.Combo.Input(
        name,
        options=[SAME_CHECKPOINT, *host.vae_names()],
        default=SAME_CHECKPOINT,
        optional=True,
        advanced=True,
        tooltip=f"The {name.split('_')[0]} VAE of LTX-2.5, {about} Left as it is, a file of these folders that fits "
        "is taken where the checkpoint has none.",
    )


def _fitting(part: str, checkpoint: str, events: Any) -> str | None:
    """The file in ComfyUI's folders that has the `part` which `checkpoint` lacks, of several the first; says which."""
    names = {host.vae_path(name): name for name in host.vae_names()}
    found = core.fitting_files(part, Path(checkpoint), list(names))
    if not found:
        return None  # where one is needed, the check says so
    others = f" ({', '.join(names[path] for path in found[1:])} would do as well)" if len(found) > 1 else ""
    events.message(f"{part}: {names[found[0]]}, which fits{others}.")
    return str(found[0])


class LoadBaseModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_LoadBaseModel",
            display_name=TITLE,
            category="LTX-2 training",
            description="Chooses the LTX-2, LTX-2.3 or LTX-Video checkpoint to train on and its text encoder, or the "
            "four files of LTX-2.5. Reads headers only; the weights are loaded when a later node needs them.",
            search_aliases=["ltx", "ltxv", "lora", "train", "finetune", "checkpoint", "gemma", "t5"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=host.checkpoint_names(),
                    tooltip="LTX-2 or LTX-2.3 checkpoint, the transformer of LTX-2.5, or LTX-Video 2B or 13B: the dev "
                    "file rather than a distilled one. Files of models/checkpoints and models/diffusion_models are "
                    "listed; press R after adding one.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=host.text_encoder_names(),
                    tooltip="Gemma 3 12B, for LTX-2.5 its own Gemma 4, for LTX-Video T5-XXL: the single file that "
                    "ComfyUI uses, or a Hugging Face folder, in models/text_encoders. T5's tokenizer is ComfyUI's.",
                ),
                *FORM.visible_inputs(),
                io.Combo.Input(
                    "text_projection",
                    options=[SAME_CHECKPOINT, *host.checkpoint_names()],
                    default=SAME_CHECKPOINT,
                    optional=True,
                    advanced=True,
                    tooltip="Another checkpoint to take the text projection and the connectors from, for a base that "
                    "lacks them.",
                ),
                *FORM.advanced_inputs(),
                widget(RunConfig, MODE),
                widget(RunConfig, STORAGE),
                *TEXT.advanced_inputs(),
                _vae("video_vae", "from models/vae. The conv file draws samples; the other one serves for encoding."),
                _vae("audio_vae", "with its vocoder, from models/vae or models/checkpoints, for the modes with sound."),
                options.socket(),
            ],
            outputs=[
                handles.Model.Output(
                    "model",
                    display_name="model",
                    tooltip="The base, for Prepare Dataset, Train Slider and Sample LoRA.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, text_encoder: str, **settings: Any) -> Any:
        paths = [host.checkpoint_path(checkpoint), host.text_encoder_path(text_encoder)]
        if SAME_CHECKPOINT in (settings.get("video_vae"), settings.get("audio_vae")):
            paths += [host.vae_path(name) for name in host.vae_names()]  # one of them may be taken
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]

    @classmethod
    @FORM.fill
    @TEXT.fill
    def execute(
        cls,
        checkpoint: str,
        text_encoder: str,
        text_projection: str = SAME_CHECKPOINT,
        mode: str = "video",
        quantization: str = "auto",
        video_vae: str = SAME_CHECKPOINT,
        audio_vae: str = SAME_CHECKPOINT,
        options: handles.GivenOptions | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            files = {
                "checkpoint": str(host.checkpoint_path(checkpoint)),
                "text_encoder": str(host.text_encoder_path(text_encoder)),
            }
            if text_projection != SAME_CHECKPOINT:
                files["text_projection"] = str(host.checkpoint_path(text_projection))
            chosen = {"model": {**files, "mode": mode}, "quant": {"format": quantization}}
            events = host.ComfyEvents(cls.hidden.unique_id)
            for name, chosen_file in (("video_vae", video_vae), ("audio_vae", audio_vae)):
                if chosen_file != SAME_CHECKPOINT:
                    files[name] = str(host.vae_path(chosen_file))
                elif mode != WITHOUT[name] and (path := _fitting(name, files["checkpoint"], events)):
                    files[name] = path
            chosen["model"] |= files
            encoder, tokenizer = host.text_encoder_path(text_encoder), host.t5_tokenizer()
            if tokenizer is not None and encoder.is_file() and core.is_t5(encoder):
                chosen["gemma"] = {"tokenizer": str(tokenizer)}  # ComfyUI's files of T5 have none
            groups = merged(FORM.tables(settings), TEXT.tables(settings), chosen, further_settings(options, TITLE))
            # whether samples have sound is not decided here
            base, stored = core.check_base(core.make_run({**groups, "sample": {"audio": "off"}}, source=TITLE), events)
            info = base.info
            label = f"{info.model}, stored in {info.precision}, for {MODES[mode]}"
            if stored not in ("none", info.precision):
                label += f", trained as {stored}"
            events.finish("finished", label)
            return io.NodeOutput(handles.BaseModel(groups, label))
