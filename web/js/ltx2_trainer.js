// The extension: puts a live view into each Train LoRA node and feeds it from the server's messages.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { viewQuery } from "./format.mjs"
import { HEIGHT, LiveView } from "./live_view.mjs"

const NODE = "LTX2T_TrainLoRA"
const views = new Map() // node -> LiveView

function runName(node) {
  return node.widgets?.find((widget) => widget.name === "run_name")?.value
}

// Another workflow may use the same number for another node, so the name of the run has to agree too.
function feed(state) {
  for (const [node, view] of views) {
    const id = String(node.id)
    if ((state.node === id || state.node.endsWith(`:${id}`)) && (!state.title || state.title === runName(node))) view.show(state)
  }
}

// Everything there is, for a page that was opened in the middle; `client` tells the server that this page draws itself.
async function feedAll() {
  const response = await api.fetchApi(`/ltx2_train/live?client=${encodeURIComponent(api.clientId ?? "")}`)
  if (response.ok) for (const state of Object.values(await response.json())) feed(state)
}

app.registerExtension({
  name: "ltx2_trainer.live",

  setup() {
    api.addEventListener("ltx2_train.step", (event) => feed(event.detail))
    for (const name of ["execution_start", "reconnected"]) api.addEventListener(name, feedAll)
    for (const name of ["execution_interrupted", "execution_error"]) {
      api.addEventListener(name, (event) => {
        for (const [node, view] of views) {
          if (String(node.id) !== String(event.detail.node_id)) continue
          const stopped = name === "execution_interrupted"
          const message = stopped ? "Saved. Run again to go on." : event.detail.exception_message
          view.show({ ...view.view, state: stopped ? "stopped" : "failed", message })
        }
      })
    }
  },

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const view = new LiveView({
      addressOf: (file) => api.apiURL(viewQuery(file)),
      stop: () => api.interrupt(),
    })
    const widget = node.addDOMWidget("live", "ltx2_train_live", view.element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT,
    })
    widget.serialize = false
    views.set(node, view)
    const removed = node.onRemoved
    node.onRemoved = function () {
      views.delete(node)
      view.remove()
      return removed?.apply(this, arguments)
    }
    const executed = node.onExecuted
    node.onExecuted = function (output) {
      const state = output?.ltx2_train?.[0]
      if (state) view.show(state)
      return executed?.apply(this, arguments)
    }
    // The widget came after the size was set: without this it hangs out of the node until the next resize.
    const [width, height] = node.computeSize()
    node.setSize([Math.max(width, 360, node.size[0]), Math.max(height, node.size[1])])
  },

  afterConfigureGraph() {
    return feedAll().catch((error) => console.warn("LTX-2 trainer: the live view is not available", error))
  },
})
