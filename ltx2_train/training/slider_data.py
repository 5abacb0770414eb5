"""What a slider is trained on, found good before a big file is read: its prompts, or its pairs of latents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import torch

from ..caching.cache_file import VIRTUAL_KEYS, CacheFile, stale_weights
from ..caching.encode_text import stale_text_weights, useless_text
from ..caching.recipe import CacheRecipe
from ..caching.settings import CacheSettings
from ..config import RunConfig, TrainSettings
from ..config.base_files import BaseFiles
from ..config.slider import SliderSettings, SliderTarget
from ..dataset.cache_names import LATENT_SUFFIX, mask_cache_name, text_cache_name
from ..dataset.entry import REFERENCE_FOLDER
from ..dataset.media_index import MediaIndex
from ..dataset.windows import IMAGE_FPS
from ..errors import CacheError, ConfigError
from ..events import Events
from ..feed.cached import frame_rate
from ..feed.cached_names import CachedName
from ..feed.loader import Sample
from ..files import CHECK_SUMS, digest
from ..sampling.prompt_text import prompt_path
from ..shapes import SPATIAL_FACTOR, LatentShape
from ..weights.text_encoder import text_fingerprint
from .slider import SliderSet

_NAMED = 3
_NOTHING = 1e-9  # of a sum of weights


def slider_settings(config: RunConfig) -> tuple[RunConfig, SliderSettings]:
    """The settings of the run as a slider has them, and those of the slider, whole. Raises ConfigError for what a
    slider has no use for."""
    slider = config.slider.whole()
    if not slider.wanted:
        raise ConfigError(
            "No slider is described. Write [[slider.targets]] with positive and negative prompts into the run file, or "
            'slider.mode = "reference" with positive_caches and negative_caches; see docs/sliders.md.'
        )
    by_text = slider.mode == "text"
    if by_text and not slider.targets:
        raise ConfigError("slider.mode is text and there are no [[slider.targets]]. Name at least one.")
    if by_text:
        _require_directions(slider.targets)
    if not by_text and (slider.positive_caches is None or slider.negative_caches is None):
        raise ConfigError("slider.mode is reference, which needs slider.positive_caches and slider.negative_caches.")
    unused = {
        "slider.targets": not by_text and bool(slider.targets),
        "slider.positive_caches": by_text and slider.positive_caches is not None,
        "slider.negative_caches": by_text and slider.negative_caches is not None,
        "slider.text_caches": by_text and slider.text_caches is not None,
        "data.config": config.data.config is not None,
        "data.manifest": config.data.manifest is not None,
        "validation.every": bool(config.validation.every),
        "validation.every_epochs": bool(config.validation.every_epochs),
        "sample.validation_clips": bool(config.sample.validation_clips),
        "video.conditions": bool(config.video.conditions),
        "quant.awq": config.quant.awq,
        **{f"regularizers.{name}.weight": True for name in config.regularizers.wanted},
        "loss.video_weight": config.loss.video_weight != 1,
        "train.caption_dropout": by_text and _set(config, "caption_dropout"),
        "train.first_frame_probability": _set(config, "first_frame_probability"),
        "cache.keyframe_slots": bool(config.cache.keyframe_slots),
    }
    if given := [name for name, there in unused.items() if there]:
        raise ConfigError(f"A slider of mode {slider.mode} has no use for {', '.join(given)}. Take it out of the run.")
    if config.model.mode != "video":
        raise ConfigError(f"Sliders are of the picture: model.mode is {config.model.mode}. Set it to video.")
    train = {"first_frame_probability": 0.0, **({"caption_dropout": 0.0} if by_text else {})}
    settings = {"train": config.train.model_copy(update=train), "slider": slider}
    return config.model_copy(update=settings), slider


def _require_directions(targets: Sequence[SliderTarget]) -> None:
    """Raise ConfigError where a target has no direction, or several cancel each other, so that nothing is learned."""
    for number, target in enumerate(targets, 1):
        if (prompt := target.positive.strip()) == target.negative.strip():
            raise ConfigError(
                f"slider.targets, number {number}: positive and negative are both {prompt!r}, so there is no direction "
                "to learn. Name in negative what strength -1 shows."
            )
    for some in (some for tied in _tied(targets) for some in (*combinations(tied, 2), tied)):
        sums: dict[str, float] = defaultdict(float)
        for number in some:
            target = targets[number - 1]
            sums[target.positive.strip()] += target.weight
            sums[target.negative.strip()] -= target.weight
        if all(abs(value) < _NOTHING for value in sums.values()):
            raise ConfigError(
                f"slider.targets, numbers {', '.join(map(str, some[:-1]))} and {some[-1]}: what they have as positive "
                "they have as negative as well, with the same weight in sum and the same target_class. They cancel "
                "each other. Take one of them out."
            )


def _tied(targets: Sequence[SliderTarget]) -> list[list[int]]:
    """The numbers, counted from 1, of targets of one class that share prompts, directly or through others."""
    groups: list[tuple[set[tuple[str, str]], list[int]]] = []  # prompts with their class, and who has them
    for number, target in enumerate(targets, 1):
        shown = target.target_class.strip()
        prompts = {(shown, text.strip()) for text in (target.positive, target.negative)}
        tied = [number]
        apart = []
        for group in groups:
            if prompts.isdisjoint(group[0]):
                apart.append(group)
            else:
                prompts |= group[0]
                tied += group[1]
        groups = [*apart, (prompts, sorted(tied))]
    return [tied for _, tied in groups]


def unused_by_slider(config: RunConfig) -> list[str]:
    """A sentence for each setting that was changed and has no effect on a slider, that of its own file included."""
    idle = {one.setting: str(one) for one in config.without_effect}
    default = CacheSettings()
    of_samples = {"vae_dtype", "tiles"} if config.sample.wanted else {}  # by which pictures for samples are encoded
    for name, value in config.cache:
        if name not in of_samples and value != getattr(default, name):
            idle[f"cache.{name}"] = f"cache.{name} has no effect: a slider makes no caches of clips."
    if config.sample.strength != 1:
        idle["sample.strength"] = "sample.strength has no effect: a slider is drawn at each of slider.strengths."
    if not config.sample.wanted and config.slider.strengths != SliderSettings().strengths:
        idle["slider.strengths"] = "slider.strengths has no effect: no samples are drawn (sample.every is 0)."
    targets = config.slider.targets
    twice = [str(number) for number, one in enumerate(targets, 1) if one in targets[: number - 1]]
    again = f"slider.targets, number {' and '.join(twice)}: given before, and so counted twice. Set its weight instead."
    return [*idle.values(), *([again] if twice else [])]


def _set(config: RunConfig, name: str) -> bool:
    """Whether a setting of the training was changed to something that does something."""
    value = getattr(config.train, name)
    return bool(value) and value != TrainSettings.model_fields[name].default


def open_slider(config: RunConfig, slider: SliderSettings, files: BaseFiles, folder: Path, events: Events) -> SliderSet:
    """The prompts or pairs of `slider`; features of prompts are kept in `folder`. Raises CacheError."""
    if slider.mode == "text":
        return _targets(config, slider, files, folder)
    return _pairs(slider, files.recipe(config, dino=False), events)


def _targets(config: RunConfig, slider: SliderSettings, files: BaseFiles, folder: Path) -> SliderSet:
    shape = LatentShape(slider.frames, slider.height // SPATIAL_FACTOR, slider.width // SPATIAL_FACTOR)
    fingerprint = text_fingerprint(files.encoder, files.projection, config.gemma)
    samples, targets = [], {}
    for number, target in enumerate(slider.targets, 1):
        recipe = (target.positive, target.negative, target.target_class, f"{target.weight:g}", f"{slider.guidance:g}")
        key = f"target {number} ({digest(*recipe, length=8)})"
        targets[key] = target
        samples.append(
            Sample(
                key=key,
                shape=shape,
                fps=IMAGE_FPS,
                caption=target.target_class or target.positive,
                latent_path=Path(key),
                text_path=prompt_path(target.target_class, folder, fingerprint),
                kind="image" if slider.frames == 1 else "video",
            )
        )
    return SliderSet(tuple(samples), (), (1,), targets=targets)


def _pairs(slider: SliderSettings, recipe: CacheRecipe, events: Events) -> SliderSet:
    """The latents that both folders have. Raises CacheError where there are none, or two are not of one shape."""
    positive, negative = slider.positive_caches, slider.negative_caches
    assert positive is not None
    assert negative is not None
    for name, folder in (("positive_caches", positive), ("negative_caches", negative)):
        if not folder.is_dir():
            raise CacheError(f"slider.{name}: there is no folder {folder}. Correct the path.", folder)
    names = [{path.name for path in folder.glob(f"*{LATENT_SUFFIX}")} for folder in (positive, negative)]
    both = sorted(names[0] & names[1])
    if not both:
        raise CacheError(
            f"No latents of {positive} have the name of latents in {negative}, so there is no pair. Name the media of "
            "a pair alike, and encode both folders at the same size with `ltx2-train cache build`.",
            positive,
        )
    for folder, own, other in ((positive, *names), (negative, names[1], names[0])):
        if alone := sorted(own - other):
            events.message(f"Left out, since they have no partner: {_listed(alone)} in {folder.name}.", "warning")
    if positive.resolve() == negative.resolve():
        raise CacheError(
            f"slider.positive_caches and slider.negative_caches are both {positive}, so there is nothing to tell "
            "apart. Name in negative_caches the folder that strength -1 shows.",
            positive,
        )
    texts = slider.text_caches or positive
    pairs = {name: (CacheFile(positive / name), CacheFile(negative / name)) for name in both}
    samples = [_pair(*pair, texts, recipe) for pair in pairs.values()]
    alike = [name for name, pair in pairs.items() if _alike(*pair)]
    if len(alike) == len(both):
        raise CacheError(
            f"{positive} and {negative} hold the same latents, so there is nothing to tell apart. Encode other media "
            "of the same names for strength -1.",
            negative,
        )
    if alike:
        events.message(f"Pairs of which both sides are the same, and teach nothing: {_listed(alike)}.", "warning")
    if changed := [one for folder in (positive, negative) for one in _changed(folder, pairs.values())]:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        events.message(
            f"Media were changed since they were encoded, and the slider is trained on what they were: "
            f"{', '.join(changed[:_NAMED])}{more}. Encode them again with `ltx2-train cache build`.",
            "warning",
        )
    for what, beside in _beside(positive, negative, both):
        events.message(
            f"{what} lie beside the latents, and a slider has no use for them: {_listed(beside)}.", "warning"
        )
    marks = {file.path: file.mark for pair in pairs.values() for file in pair}
    negatives = {one.path: other.path for one, other in pairs.values()}
    return SliderSet(tuple(samples), (), (1,), marks=marks, negatives=negatives)


def _listed(names: Sequence[str]) -> str:
    """The first of files of latents, without their ending, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name.removesuffix(LATENT_SUFFIX) for name in names[:_NAMED]) + more


def _alike(one: CacheFile, other: CacheFile) -> bool:
    """Whether two files hold the same latents."""
    sums = one.record(CHECK_SUMS), other.record(CHECK_SUMS)
    return sums[0] == sums[1] if all(sums) else torch.equal(one.latents(), other.latents())


def _changed(folder: Path, pairs: Iterable[tuple[CacheFile, ...]]) -> Iterator[str]:
    """Which media are not what their latents in `folder` were made from, as far as it is known where they lie."""
    index = MediaIndex(folder)
    for file in (file for pair in pairs for file in pair if file.path.parent == folder):
        parsed = CachedName.parse(file.path.name)
        if parsed is not None and file.fingerprinted and (reason := index.change(parsed.stem, file.record("source"))):
            yield f"{folder.name}: {reason}"


def _beside(positive: Path, negative: Path, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """What other runs use of the samples called `names`, and this one does not: what it is, and of which."""
    folders = (positive, negative)
    masked = [name for name in names if any((folder / mask_cache_name(name)).is_file() for folder in folders)]
    shown = [(folder / REFERENCE_FOLDER / name).is_file() for folder in folders for name in names]
    referred = [name for number, name in enumerate(names) if any(shown[number :: len(names)])]
    return [(what, found) for what, found in (("Masks", masked), ("References", referred)) if found]


def _pair(positive: CacheFile, negative: CacheFile, texts: Path, recipe: CacheRecipe) -> Sample:
    name, shapes = positive.path.name, [file.latent_shape() for file in (positive, negative)]
    for file in (positive, negative):
        if VIRTUAL_KEYS[0] in file.keys:
            raise CacheError(
                f"{file.path}: it is the empty picture beside a sound, and a slider is of the picture. Encode pictures "
                "or clips.",
                file.path,
            )
        if file.fingerprinted and (reason := stale_weights(file, "VAE", recipe.video_vae, recipe.video_encoder)):
            raise CacheError(f"{file.path}: {reason}. Encode both folders again with this base.", file.path)
    if shapes[0] != shapes[1]:
        sizes = [f"{one.width}x{one.height} with {one.frames} frames" for one in (shape.video() for shape in shapes)]
        raise CacheError(
            f"The pair {name} is of two sizes: {sizes[0]} and {sizes[1]}. Encode both folders with the same "
            "size and frames.",
            positive.path,
        )
    parsed = CachedName.beside(texts, name)
    if parsed is None:
        raise CacheError(f"{positive.path}: its name is not that of latents (docs/dataset_file.md lists the names).")
    text = _text(texts, parsed.stem, recipe)
    said = text.metadata.get("captions", "1")
    others = [_text(texts, parsed.stem, recipe, number) for number in range(1, int(said) if said.isdecimal() else 1)]
    return Sample(
        key=name.removesuffix(LATENT_SUFFIX),
        shape=shapes[0],
        fps=frame_rate(positive) or IMAGE_FPS,
        caption=text.metadata.get("caption", text.metadata.get("caption1", "")),
        latent_path=positive.path,
        text_path=text.path,
        others=tuple((file.metadata.get("caption", ""), file.path) for file in others),
        kind="image" if shapes[0].frames == 1 else "video",
    )


def _text(folder: Path, stem: str, recipe: CacheRecipe, number: int = 0) -> CacheFile:
    """The cache of the caption `number` of a medium, counted from 0. Raises CacheError where there is none."""
    for form in ("compact", "full"):
        path = folder / text_cache_name(stem, form, number)
        if not path.is_file():
            continue
        file = CacheFile(path)
        reason = useless_text(file, recipe.mode)
        if reason is None and file.fingerprinted:
            reason = stale_text_weights(file, recipe.text)
        if reason is not None:
            raise CacheError(f"{path}: {reason}. Make the text caches again with this base.", path)
        return file
    which = f"caption {number + 1} of {stem}" if number else stem
    raise CacheError(
        f"There is no text cache for {which} in {folder}. Encode the captions of one of both folders with "
        "`ltx2-train cache build`, and name it as slider.text_caches if it is not that of the positive latents.",
        folder,
    )
