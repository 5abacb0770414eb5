"""Filling one kind of cache from stand-ins for the models, each with as few words as a test has."""

from __future__ import annotations

from ltx2_train.caching import encode_text as text
from ltx2_train.caching.build import Openers, make_due
from ltx2_train.caching.cache_file import Fingerprints
from ltx2_train.caching.due import Due
from ltx2_train.caching.kinds import all_kinds
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.caching.settings import CacheSettings


def due_of(name, plan, recipe):
    """What is missing or stale of the kinds called `name`."""
    kinds = [kind for kind in all_kinds(plan, recipe) if kind.name == name]
    return Due.find(kinds, recipe.settings.skip_existing)


def encode_latents(plan, open_vae, vae="", settings=None, events=None, device="cpu"):
    recipe = CacheRecipe(settings or CacheSettings(), video_vae=vae)
    return make_due(due_of("latents", plan, recipe), Openers(video_vae=open_vae), events, device)


def encode_sound(plan, open_vae, vae="", settings=None, events=None):
    recipe = CacheRecipe(settings or CacheSettings(), "av", audio_vae=vae)
    return make_due(due_of("sound", plan, recipe), Openers(audio_vae=open_vae), events)


def encode_masks(plan, settings=None, events=None):
    return make_due(due_of("masks", plan, CacheRecipe(settings or CacheSettings(), "av")), Openers(), events)


def encode_dino(plan, model, settings=None, events=None, open_model=None):
    recipe = CacheRecipe(settings or CacheSettings(), dino=model)
    opener = open_model or (lambda: model.open("cpu"))
    return make_due(due_of("dino", plan, recipe), Openers(dino=opener), events)


def encode_text(plan, open_encoder, weights=None, settings=None, events=None, open_connectors=None, beside=None):
    recipe = CacheRecipe(settings or CacheSettings(), text=weights or Fingerprints())
    openers = Openers(text_encoder=open_encoder, connectors=open_connectors)
    return text.encode_text(due_of("text", plan, recipe), openers, events, beside=beside)
