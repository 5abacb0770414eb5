// Widgets that the mode of the base has no use for are greyed, so that what can be changed counts. Knows nodes, not the page.

import { behind } from "./recipes.mjs"

const BASE = "LTX2T_LoadBaseModel"
const SOCKETS = ["checkpoints", "run", "prepared", "model"] // by which the base comes to a node, the one that counts first
const IDLE = {
  audio: {
    LTX2T_PrepareDataset: ["width", "height"],
    LTX2T_TrainLoRA: ["sample_width", "sample_height"],
    LTX2T_SampleLoRA: ["width", "height"],
    LTX2T_CompareCheckpoints: ["width", "height"],
  },
  video: { LTX2T_TrainLoRA: ["sample_audio"], LTX2T_SampleLoRA: ["audio_file", "audio_format"] },
}
const WHY = { audio: "no picture", video: "no sound" }

// The mode of the base that reaches `node`; null where that cannot be told.
export function modeOf(node) {
  for (let at = node, far = 0; at && far < 100; far++) {
    if (at.comfyClass === BASE) {
      const byWire = at.inputs?.some((input) => input.widget?.name === "mode" && input.link != null)
      return byWire ? null : at.widgets?.find((widget) => widget.name === "mode")?.value
    }
    at = SOCKETS.map((name) => behind(at, name)).find(Boolean)
  }
  return null
}

// Grey what `node` has no use for, as told in `idle` (widget -> its label before), and give back what it has. Whether anything was changed.
export function showIdle(node, idle) {
  const mode = modeOf(node)
  const names = IDLE[mode]?.[node.comfyClass] ?? []
  let changed = false
  for (const widget of node.widgets ?? []) {
    const unused = names.includes(widget.name)
    if (unused === idle.has(widget)) continue
    if (unused) {
      idle.set(widget, widget.label)
      widget.label = `${widget.label || widget.name.replaceAll("_", " ")} (${WHY[mode]})`
    } else {
      widget.label = idle.get(widget)
      idle.delete(widget)
    }
    widget.disabled = unused
    changed = true
  }
  return changed
}
