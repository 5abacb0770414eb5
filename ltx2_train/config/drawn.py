"""Sample settings with all that they leave to the model: each version is drawn as its own pipelines draw it.

Source of the values of LTX-2.5: the presets, the image CRF and the negative prompt of the official pipelines, whose
preset it shares with LTX-2.3 but for the CRF; of those of LTX-Video, the configuration of its 2B. LTX-2 and LTX-2.3
keep what this program has always drawn them with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import PrivateAttr

from .sample import SampleSettings

NEGATIVE_25 = (
    "has_subtitles, has_blurbox, transition from black, transition to black, speech_ending_short, blurry, out of "
    "focus, overexposed, underexposed, low contrast, washed out colors, excessive noise, grainy texture, poor "
    "lighting, flickering, motion blur, distorted proportions, unnatural skin tones, deformed facial features, "
    "asymmetrical face, missing facial features, extra limbs, disfigured hands, wrong hand count, artifacts around "
    "text, inconsistent perspective, camera shake, incorrect depth of field, background too sharp, background "
    "clutter, distracting reflections, harsh shadows, inconsistent lighting direction, color banding, cartoonish "
    "rendering, 3D CGI look, unrealistic materials, uncanny valley effect, incorrect ethnicity, wrong gender, "
    "exaggerated expressions, wrong gaze direction, mismatched lip sync, silent or muted audio, distorted voice, "
    "robotic voice, echo, background noise, off-sync audio, incorrect dialogue, added dialogue, repetitive speech, "
    "jittery movement, awkward pauses, incorrect timing, unnatural transitions, inconsistent framing, tilted camera, "
    "flat lighting, inconsistent tone, cinematic oversaturation, stylized filters, or AI artifacts."
)

NEGATIVE_LTX_VIDEO = "worst quality, inconsistent motion, blurry, jittery, distorted"


class OfModel(NamedTuple):
    """What samples of a version have where nobody says so, by the names of the settings.

    `audio_guidance` counts where `guidance` is not set either; None: as that.
    """

    fps: float = 25.0
    guidance: float = 4.0
    audio_guidance: float | None = None
    modality_guidance: float = 1.0
    rescale: float = 0.0
    image_crf: int = 33
    negative_prompt: str = ""


_LTX_VIDEO = OfModel(guidance=3.0, rescale=0.7, image_crf=29, negative_prompt=NEGATIVE_LTX_VIDEO)
OF_MODEL = {
    "2.0": OfModel(),
    "2.3": OfModel(),
    "2.5": OfModel(24.0, 3.0, 7.0, 3.0, 0.7, 18, NEGATIVE_25),
    "ltxv-2b": _LTX_VIDEO,
    "ltxv-13b": _LTX_VIDEO,
}


class DrawSettings(SampleSettings):
    """How samples of one version are drawn: nothing is left to the model any more."""

    fps: float = OfModel().fps
    guidance: float = OfModel().guidance
    modality_guidance: float = OfModel().modality_guidance
    rescale: float = OfModel().rescale
    image_crf: int = OfModel().image_crf
    negative_prompt: str = OfModel().negative_prompt

    _sound_of_model: bool = PrivateAttr(False)

    @property
    def sound_of_model(self) -> bool:
        """Whether `audio_guidance` is the model's own, so that a prompt with a guidance has it for its sound too."""
        return self._sound_of_model

    @classmethod
    def of(cls, settings: SampleSettings, version: str) -> DrawSettings:
        """`settings` with what they leave to a model of `version`."""
        values: dict[str, Any] = dict(settings)
        if isinstance(settings, DrawSettings):
            return settings
        own = OF_MODEL[version]
        if settings.guidance is not None:
            own = own._replace(audio_guidance=None)  # the sound is guided as the picture is said to be
        filled = {name: value for name, value in own._asdict().items() if values[name] is None}
        drawn = cls.model_construct(**values | filled)
        drawn._sound_of_model = filled.get("audio_guidance") is not None
        return drawn
