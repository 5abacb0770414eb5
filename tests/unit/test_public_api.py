"""What others may rely on, pinned."""

import importlib
import subprocess
import sys
from pathlib import Path

import ltx2_train
from ltx2_train.config.read import tomllib

ROOT = Path(__file__).parents[2]


def test_the_public_names_are_these():
    assert ltx2_train.__all__ == [
        "__version__",
        "BaseFiles",
        "Beginning",
        "CAPTION_FRAMES",
        "CacheError",
        "CachesReport",
        "CaptionReport",
        "CheckReport",
        "CheckpointError",
        "CheckpointInfo",
        "Comparison",
        "ConfigError",
        "CutReport",
        "DataError",
        "DatasetConfig",
        "DatasetSettings",
        "Events",
        "FILE_DTYPES",
        "GOALS",
        "Imported",
        "KEY_FORMATS",
        "LOSS",
        "LoraMade",
        "LoraReport",
        "MEDIA_SUFFIXES",
        "MERGED_RANKS",
        "MERGE_METHODS",
        "MODEL_RECIPES",
        "MODES",
        "OutOfMemory",
        "PreviewFiles",
        "RECIPES",
        "REQUESTS",
        "RunConfig",
        "RunError",
        "RunProblems",
        "RunResult",
        "SAMPLE_RECIPES",
        "SPEAKER",
        "STREAMS",
        "SampleFile",
        "Sound",
        "Stopped",
        "TRAINING_RECIPES",
        "TinyFiles",
        "TrainerError",
        "VALIDATION",
        "VERSIONS",
        "ask_run",
        "bake_loras",
        "build_caches",
        "caption_media",
        "chart_image",
        "check_base",
        "check_dataset",
        "check_overrides",
        "check_planned",
        "check_processes",
        "clean_row",
        "compare",
        "condition_kinds",
        "convert_lora",
        "cut_part",
        "cut_recordings",
        "cut_videos",
        "describe_defaults",
        "draw_spectrogram",
        "drop_branches",
        "error_table",
        "error_text",
        "extract_lora",
        "fitting_files",
        "foresee",
        "import_missing",
        "import_official",
        "import_settings",
        "inspect_lora",
        "is_t5",
        "keep_branches",
        "list_loras",
        "list_runs",
        "list_samples",
        "load_run",
        "loss_column",
        "make_run",
        "make_tiny",
        "mean_of_loras",
        "merge_loras",
        "names_tables",
        "open_data",
        "optimizer_numbers",
        "pick_loras",
        "predict_run",
        "preview_dataset",
        "probe",
        "probe_whole",
        "prompt_of",
        "quantize_checkpoint",
        "read_manifest",
        "read_rows",
        "read_sound",
        "recipe_list",
        "recipe_text",
        "remove_caches",
        "resample",
        "resize_lora",
        "run_facts",
        "sample",
        "settings_page",
        "smooth",
        "started_processes",
        "status_of_caches",
        "terms_of",
        "terms_text",
        "thinned_metrics",
        "to_stereo",
        "train",
        "train_slider",
        "with_its_step",
        "write_image",
        "write_report",
        "write_sound",
        "write_video",
    ]


def test_every_public_name_is_there():
    for name in ltx2_train.__all__:
        assert getattr(ltx2_train, name) is not None


def test_the_version_is_said_once_in_two_places():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == ltx2_train.__version__


def test_help_loads_no_torch():
    code = "import sys\nfrom ltx2_train.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_python_dash_m_is_the_command():
    importlib.import_module("ltx2_train.__main__")
    done = subprocess.run([sys.executable, "-m", "ltx2_train", "config"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
