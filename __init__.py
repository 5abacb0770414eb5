"""LTX-2 trainer: a ComfyUI node pack. ComfyUI reads the two names below; everything else is in the folders beside."""

from importlib.util import find_spec

WEB_DIRECTORY = "./web"

if find_spec("comfy_api") is not None:  # a test runner imports this file too, where there is no ComfyUI
    from .nodes import comfy_entrypoint as comfy_entrypoint
