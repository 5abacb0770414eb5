"""The ComfyUI nodes. A new node is a class in its own file and one line in NODES."""

from __future__ import annotations

from .needs import tell_needs

tell_needs()  # before anything is imported that may be missing

from . import host, sent
from .audio import LoadTrainingAudio
from .branches import KeepBranch
from .check import CheckDataset
from .combine import CombineDatasets
from .compare import CompareCheckpoints
from .conditions import AudioConditions, ConditionsRecipe, VideoConditions
from .convert_lora import ConvertLoRA
from .data import LoadTrainingClips, PrepareDataset
from .from_file import DatasetFromFile, RunFromFile
from .lists import DatasetFromLists
from .lora_tools import BakeLoRA, ExtractLoRA, ResizeLoRA
from .making import CaptionClips, CutLongVideos
from .merge_lora import MergeLoRA
from .model import LoadBaseModel
from .monitor import RunMonitor
from .more_references import AddReference
from .pairs import LoadTrainingPairs
from .pick import PickCheckpoints
from .preview import PreviewItem
from .recipes import SamplesRecipe, TrainingRecipe
from .sample import SampleLoRA
from .slider import TrainSlider
from .train import TrainLoRA

from .option_nodes import OPTION_NODES  # isort: skip  # after all that show settings: it shows the others
from .option_choices import OptimizerOptions, RegularizersOptions, ValidationOptions  # isort: skip  # as they do
from .quantize import QuantizeCheckpoint  # isort: skip  # the option nodes name their settings first

NODES = [
    LoadBaseModel,
    LoadTrainingClips,
    PrepareDataset,
    TrainLoRA,
    SampleLoRA,
    LoadTrainingAudio,
    KeepBranch,
    CheckDataset,
    CombineDatasets,
    LoadTrainingPairs,
    AddReference,
    DatasetFromLists,
    PreviewItem,
    CutLongVideos,
    CaptionClips,
    MergeLoRA,
    ConvertLoRA,
    DatasetFromFile,
    RunFromFile,
    RunMonitor,
    TrainSlider,
    *OPTION_NODES,
    OptimizerOptions,
    RegularizersOptions,
    ValidationOptions,
    VideoConditions,
    AudioConditions,
    ConditionsRecipe,
    PickCheckpoints,
    CompareCheckpoints,
    ResizeLoRA,
    ExtractLoRA,
    BakeLoRA,
    TrainingRecipe,
    SamplesRecipe,
    QuantizeCheckpoint,
]

sent.look_at(NODES)


class Extension(host.ComfyExtension):
    async def on_load(self) -> None:
        host.add_routes()

    async def get_node_list(self) -> list[type]:
        return NODES


async def comfy_entrypoint() -> Extension:
    return Extension()
