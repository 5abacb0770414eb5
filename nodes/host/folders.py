"""The folders of ComfyUI: what lies in them under which name, and where the pack writes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ...ltx2_train.errors import ConfigError, TrainerError


def checkpoint_names() -> list[str]:
    """Names of the files in ComfyUI's checkpoints and diffusion_models folders."""
    return _names("checkpoints", "diffusion_models")


def checkpoint_path(name: str) -> Path:
    """The file behind a name of `checkpoint_names`. Raises TrainerError where it is gone."""
    return _found(name, "checkpoints", "diffusion_models")


def vae_names() -> list[str]:
    """Names of the files in ComfyUI's vae and checkpoints folders: the audio VAE may lie in either."""
    return _names("vae", "checkpoints")


def vae_path(name: str) -> Path:
    """The file behind a name of `vae_names`. Raises TrainerError where it is gone."""
    return _found(name, "vae", "checkpoints")


def text_encoder_names() -> list[str]:
    """Files of ComfyUI's text_encoders folder, and its sub-folders that hold a Hugging Face model."""
    import folder_paths

    names = _names("text_encoders")
    for root in folder_paths.get_folder_paths("text_encoders"):
        for config in sorted([*Path(root).glob("*/config.json"), *Path(root).glob("*/text_encoder/config.json")]):
            if (name := config.relative_to(root).parts[0]) not in names:
                names.append(name)
    return names


def text_encoder_path(name: str) -> Path:
    """The file or folder behind a name of `text_encoder_names`. Raises TrainerError where it is gone."""
    import folder_paths

    for root in folder_paths.get_folder_paths("text_encoders") if stays_inside(name) else ():
        folder = Path(root) / name
        if (folder / "config.json").is_file() or (folder / "text_encoder" / "config.json").is_file():
            return folder
    return _found(name, "text_encoders")


def t5_tokenizer() -> Path | None:
    """The tokenizer of T5 in ComfyUI's own tree; None where this ComfyUI has none."""
    import folder_paths

    folder = Path(getattr(folder_paths, "base_path", "")) / "comfy" / "text_encoders" / "t5_tokenizer"
    return folder if (folder / "tokenizer.json").is_file() else None


def input_folders() -> list[str]:
    """Sub-folders of ComfyUI's input folder, two levels deep, with / between."""
    import folder_paths

    root = Path(folder_paths.get_input_directory())
    if not root.is_dir():
        return []
    found = [path for path in (*root.glob("*"), *root.glob("*/*")) if path.is_dir()]
    names = [path.relative_to(root).as_posix() for path in found]
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def input_folder(name: str, widget: str = "folder") -> Path:
    """The folder behind a name of `input_folders`. Raises TrainerError where the name leads out of the input folder.

    A link that lies in the input folder is followed: people keep large datasets on another disk.
    """
    import folder_paths

    if not stays_inside(name):
        raise TrainerError(f"{widget}: {name!r} leads out of ComfyUI's input folder. Choose a folder inside it.")
    return Path(folder_paths.get_input_directory()) / name


def stays_inside(name: str) -> bool:
    """Whether a name that came over the API names something below a folder, and not beside or above it."""
    parts = name.replace("\\", "/").split("/")
    return ".." not in parts and not name.startswith(("/", "\\", "~")) and ":" not in name


def place_inside(root: Path, name: str) -> Path:
    """`root`/`name`, to be written to. Raises ConfigError where the name leads elsewhere.

    A link that lies in `root` is followed: its owner has put it there, as people do who keep large datasets on another
    disk.
    """
    if not stays_inside(name):
        raise ConfigError(f"name: {name!r} leads out of {root}, in which it is made. Use letters, digits, - and _.")
    return root / name


def model_folders() -> dict[str, Path]:
    """Folders in Hugging Face form in ComfyUI's models folder and its text_encoders and LLM folders, as LLM/name."""
    import folder_paths

    roots = [Path(folder_paths.models_dir), *Path(folder_paths.models_dir).glob("*/")]
    for kind in ("text_encoders", "LLM"):  # where extra_model_paths.yaml puts them
        with contextlib.suppress(KeyError):  # a kind that nobody registered
            roots += [Path(root) for root in folder_paths.get_folder_paths(kind)]
    found: dict[str, Path] = {}
    for config in (config for root in roots for config in sorted(root.glob("*/config.json"))):
        name = config.parent.name
        if config.parent.parent != roots[0]:
            name = f"{config.parent.parent.name}/{name}"
        found.setdefault(name, config.parent)
    return dict(sorted(found.items()))


def runs_folder() -> Path:
    """Where the runs live: ltx2_runs in ComfyUI's output folder."""
    return output_folder() / "ltx2_runs"


def output_folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_output_directory())


def no_output(name: str) -> str:
    """Why nothing can be written into the folder `name` of the output folder; "" where it can be."""
    place = output_folder() / name
    return f"{place} is a file, and a folder of that name is needed. Move it away." if place.is_file() else ""


def loras_folder() -> Path:
    """A folder whose LoRA files ComfyUI lists."""
    return _written("loras")


def checkpoints_folder() -> Path:
    """A folder whose checkpoints ComfyUI lists."""
    return _written("checkpoints")


def _written(kind: str) -> Path:
    """The first of ComfyUI's folders of that kind that can be written.

    The one in the output folder comes last; ComfyUI registers it when it starts.
    """
    import folder_paths

    for root in folder_paths.get_folder_paths(kind):
        path = Path(root)
        if path.is_dir() and os.access(path, os.W_OK):
            return path
    return output_folder() / kind


def lora_path(name: str) -> Path | None:
    """The file that is called `name`, with or without ending, in one of ComfyUI's loras folders; None where none is."""
    import folder_paths

    if not stays_inside(name):
        return None
    for root in (*folder_paths.get_folder_paths("loras"), output_folder() / "loras"):
        for path in (Path(root) / name, Path(root) / f"{name}.safetensors"):
            if path.is_file():
                return path
    return None


def listed_model(kind: str, name: str) -> Path:
    """The file that ComfyUI lists as `name` in its folder `kind`. Raises TrainerError where there is none."""
    return _found(name, kind)


def view_address(path: Path) -> dict[str, str] | None:
    """How the page can fetch a file of the output folder: filename, subfolder, type; None for files elsewhere."""
    try:
        relative = path.resolve().relative_to(output_folder().resolve())
    except ValueError:
        return None
    folder = relative.parent.as_posix()
    return {"filename": relative.name, "subfolder": "" if folder == "." else folder, "type": "output"}


def _names(*kinds: str) -> list[str]:
    import folder_paths

    names: list[str] = []
    for kind in kinds:
        names += [name for name in folder_paths.get_filename_list(kind) if name not in names]
    return names


def _found(name: str, *kinds: str) -> Path:
    import folder_paths

    for kind in kinds:
        path = folder_paths.get_full_path(kind, name)
        if path is not None:
            return Path(path)
    raise TrainerError(
        f"{name} is not in ComfyUI's {' or '.join(kinds)} folder any more. Put it back, or press R and choose another."
    )
