// Run by `node --test tests/web`: widgets that the mode of the base has no use for.

import assert from "node:assert/strict"
import { test } from "node:test"
import { modeOf, showIdle } from "../../web/js/modes.mjs"

function made(comfyClass, widgets, behind = {}) {
  const names = Object.keys(behind)
  return {
    comfyClass,
    widgets: Object.entries(widgets).map(([name, value]) => ({ name, value })),
    inputs: names.map((name) => ({ name, link: 1 })),
    getInputNode: (slot) => behind[names[slot]],
  }
}

const greyed = (node) => node.widgets.filter((widget) => widget.disabled).map((widget) => widget.label)

test("sizes of pictures are greyed where sound alone is trained, and come back with the mode", () => {
  const base = made("LTX2T_LoadBaseModel", { mode: "audio" })
  const data = made("LTX2T_PrepareDataset", { width: 512, height: 512, frames: 49 }, { model: base })
  const train = made("LTX2T_TrainLoRA", { steps: 5, sample_width: 768, sample_audio: true }, { prepared: data })
  const sample = made("LTX2T_SampleLoRA", { width: 768, audio_file: "merge" }, { run: train })
  const idle = new WeakMap()
  const nodes = [data, train, sample]
  assert.deepEqual(nodes.map((node) => showIdle(node, idle)), [true, true, true])
  assert.deepEqual(nodes.map((node) => showIdle(node, idle)), [false, false, false], "nothing is left to do")
  assert.deepEqual(nodes.flatMap(greyed), ["width (no picture)", "height (no picture)", "sample width (no picture)", "width (no picture)"])
  base.widgets[0].value = "av"
  for (const node of nodes) showIdle(node, idle)
  assert.deepEqual(nodes.flatMap(greyed), [])
  assert.equal(data.widgets[0].label, undefined)
  base.widgets[0].value = "video"
  for (const node of nodes) showIdle(node, idle)
  assert.deepEqual(nodes.flatMap(greyed), ["sample audio (no sound)", "audio file (no sound)"])
})

test("a mode that cannot be told greys nothing", () => {
  const base = made("LTX2T_LoadBaseModel", { mode: "audio" })
  const train = made("LTX2T_TrainLoRA", { sample_width: 768 }, { prepared: made("LTX2T_PrepareDataset", {}, { model: base }) })
  assert.equal(modeOf(train), "audio")
  assert.equal(modeOf(made("LTX2T_SampleLoRA", {}, { run: null })), null)
  base.inputs = [{ name: "mode", widget: { name: "mode" }, link: 7 }]
  assert.equal(modeOf(train), null)
})

test("a base inside of subgraphs is found", () => {
  const base = made("LTX2T_LoadBaseModel", { mode: "audio" })
  const around = (node) => ({ isSubgraphNode: () => true, resolveSubgraphOutputLink: (slot) => (slot === 2 ? { outputNode: node, link: { origin_slot: 2 } } : undefined) })
  const data = made("LTX2T_PrepareDataset", { width: 512 }, { model: around(around(base)) })
  data.getInputLink = () => ({ origin_slot: 2 })
  assert.equal(modeOf(data), "audio")
  data.getInputLink = () => ({ origin_slot: 0 })
  assert.equal(modeOf(data), null, "nothing is connected in there")
  const compare = made("LTX2T_CompareCheckpoints", { width: 512 }, { checkpoints: made("LTX2T_PickCheckpoints", {}, { run: made("LTX2T_TrainLoRA", {}, { model: base }) }) })
  assert.equal(modeOf(compare), "audio")
})
