// The extension: puts a live view into each node that trains, into Run Monitor and into a tab beside the graph, and feeds
// it from the server's messages.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { HEIGHT, LiveView } from "./live_view.mjs"
import { showIdle } from "./modes.mjs"
import { governed, showNumbers } from "./recipes.mjs"
import { RunServer } from "./run_server.mjs"
import { RunsTab } from "./runs_tab.mjs"

const OURS = "LTX2T_"
const TRAINING = ["LTX2T_TrainLoRA", "LTX2T_TrainSlider"]
const MONITOR = "LTX2T_Monitor" // shows the run that it names, whichever node trains it
const WATCH_SECONDS = 5 // a run of another process sends nothing here, so its folder is looked at
const views = new Map() // node -> LiveView
const seeding = new WeakMap() // LiveView -> the run whose folder is being asked for it
const server = new RunServer({ fetchApi: (path, more) => api.fetchApi(path, more), apiURL: (path) => api.apiURL(path) })

function runName(node) {
  return node.widgets?.find((widget) => widget.name === "run_name")?.value
}

// The views that a message is meant for. Another workflow may use the same number for another node, so the name of the
// run has to agree too: with the widget, or with what is shown where the widget was changed meanwhile.
function viewsOf(message) {
  const found = []
  for (const [node, view] of views) {
    if (node.comfyClass === MONITOR) {
      if (runName(node) === message.title) found.push(view)
      continue
    }
    if (isNode(node, message.node) && [runName(node), view.view.title].includes(message.title)) found.push(view)
  }
  return found
}

// Inside a subgraph the number of a node comes after those of the nodes around it: "3:5".
function isNode(node, id) {
  return String(id) === String(node.id) || String(id).endsWith(`:${node.id}`)
}

function feed(state) {
  for (const view of viewsOf(state)) {
    bringIn(view)
    view.show(state)
  }
}

// After an undo there are new nodes with new views, and Nodes 2.0 goes on to show the element of the one before.
function bringIn(view) {
  if (view.element.isConnected) return
  const [node] = [...views].find(([, one]) => one === view) ?? []
  const shown = node && document.querySelector(`[data-node-id="${node.id}"] .ltx2-live`)
  if (shown) shown.replaceWith(view.element)
}

// Everything there is, for a page that was opened in the middle; `client` tells the server that this page draws itself.
async function feedAll() {
  try {
    const response = await api.fetchApi(`/ltx2_train/live?client=${encodeURIComponent(api.clientId ?? "")}`)
    for (const state of Object.values(await response.json())) feed(state)
  } catch (error) {
    console.warn("LTX-2 trainer: the live view is not available", error)
  }
  await seedAll()
}

async function seedAll(again = false) {
  if (!views.size) return
  try {
    const names = new Set((await server.runs()).map((run) => run.name))
    for (const [node, view] of views) if (names.has(runName(node))) await seed(node, view, again && node.comfyClass === MONITOR)
  } catch (error) {
    console.warn("LTX-2 trainer: the runs are not known", error)
  }
}

// What the folder of the run tells, where the server has no word of it: after a restart, of a run of another program.
async function seed(node, view, again = false) {
  const name = runName(node)
  if (seeding.get(view) === name) return // a node that is made and set at once would ask twice
  seeding.set(view, name)
  try {
    const wanted = () => again || view.view.state === "idle"
    const [seen, samples] = await Promise.all([wanted() ? server.view(name) : null, server.samples(name)])
    bringIn(view)
    if (seen && wanted()) view.show(seen) // it may have begun meanwhile
    if (view.view.title === name) view.showDrawn(samples)
  } finally {
    if (seeding.get(view) === name) seeding.delete(view)
  }
}

// Classic nodes show every widget, so the advanced ones are folded here, with a button to unfold them. Nodes 2.0 does
// both by itself; there nothing is hidden and the button is left out.
const folds = new Map() // node -> whether its advanced widgets are folded

function addFold(node) {
  const toggle = () => {
    folds.set(node, !folds.get(node))
    applyFold(node)
  }
  const button = node.addWidget("button", "settings", null, toggle, { serialize: false, canvasOnly: true })
  button.serialize = false
  folds.set(node, true)
  onRemoved(node, () => folds.delete(node))
}

// Whether the node has advanced widgets, or gets some with a choice.
function isFoldable(node) {
  const told = { ...node.constructor.nodeData?.input?.required, ...node.constructor.nodeData?.input?.optional }
  const advanced = ([, more]) => more?.advanced || more?.options?.some?.((option) => below(option).some(advanced))
  return Object.values(told).some(advanced)
}

function below(option) {
  return Object.values({ ...option?.inputs?.required, ...option?.inputs?.optional })
}

// The widgets below a choice are made anew with it, and when a workflow is loaded.
function foldChosen(node) {
  for (const widget of node.widgets.filter(isChoice)) {
    const chosen = widget.callback
    widget.callback = function () {
      const answer = chosen?.apply(this, arguments)
      applyFold(node)
      return answer
    }
  }
  const configured = node.onConfigure
  node.onConfigure = function () {
    const answer = configured?.apply(this, arguments)
    if (node.widgets.some(isChoice)) applyFold(node)
    return answer
  }
}

// A choice that brings widgets of its own has a value that does more than hold one.
function isChoice(widget) {
  return Boolean(Object.getOwnPropertyDescriptor(widget, "value")?.get)
}

function hideAdvanced(node, hidden) {
  for (const widget of node.widgets) if (widget.options?.advanced) widget.hidden = hidden
}

function applyFold(node) {
  const folded = folds.get(node)
  hideAdvanced(node, folded && !window.LiteGraph.vueNodesMode)
  fit(node)
  const button = node.widgets.find((widget) => widget.name === "settings")
  button.hidden = !node.widgets.some((widget) => widget.options?.advanced) // a choice may have none
  button.label = folded ? "show advanced settings" : "hide advanced settings"
}

// Nodes 2.0 folds the advanced widgets but counts their height: without this each node would open with an empty half.
function countFolded(node) {
  const computeSize = node.computeSize
  node.computeSize = function () {
    if (!window.LiteGraph.vueNodesMode) return computeSize.apply(this, arguments)
    hideAdvanced(this, true)
    const size = computeSize.apply(this, arguments)
    hideAdvanced(this, false)
    return size
  }
}

function onRemoved(node, forget) {
  const removed = node.onRemoved
  node.onRemoved = function () {
    forget()
    return removed?.apply(this, arguments)
  }
}

function fit(node) {
  const [width, height] = node.computeSize()
  const least = views.has(node) ? 380 : governs(node) ? 360 : 300 // their numbers: long names beside long numbers
  node.setSize([Math.max(width, least, node.size[0]), height + (views.has(node) ? 8 : 0)])
  node.setDirtyCanvas(true, true)
}

// A run of another process is watched by its folder, as long as the page is in view.
function watch(node, view) {
  const named = node.widgets.find((widget) => widget.name === "run_name")
  const changed = named.callback
  const look = () => {
    view.clear()
    return seedAll()
  }
  named.callback = function () {
    look()
    return changed?.apply(this, arguments)
  }
  const timer = setInterval(() => {
    if (!document.hidden && view.view.state === "running") seedAll(true)
  }, WATCH_SECONDS * 1000)
  onRemoved(node, () => clearInterval(timer))
  look()
}

function addView(node) {
  const monitor = node.comfyClass === MONITOR
  const view = new LiveView({
    addressOf: server.addressOf,
    stop: () => (monitor ? server.ask(runName(node), "stop") : api.interrupt()),
    ask: (name, what) => server.ask(name, what),
  })
  const widget = node.addDOMWidget("live", "ltx2_train_live", view.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
  })
  widget.serialize = false
  views.set(node, view)
  onRemoved(node, () => {
    views.delete(node)
    view.remove()
  })
}

function afterExecuted(node) {
  const executed = node.onExecuted
  node.onExecuted = function (output) {
    const state = output?.ltx2_train?.[0]
    if (state) views.get(node)?.show(state)
    const result = executed?.apply(this, arguments)
    // a preview gets its size once it is loaded, for which the page takes up to two times eight seconds, and would hang
    // out of a classic node
    if (output?.images && !window.LiteGraph.vueNodesMode)
      for (const wait of [300, 1500, 4000, 9000, 18000]) setTimeout(() => grow(node), wait)
    return result
  }
}

function grow(node) {
  const [, height] = node.computeSize()
  if (height > node.size[1]) node.setSize([node.size[0], height])
  node.setDirtyCanvas(true, true)
}

// The newest frontends take the text below a node away when its job is over, others when it comes from ComfyUI's cache.
// What one of our nodes said last is said again then: its report, or where its file is.
const TEXT = "$$node-text-preview" // the page's own widget
const texts = new WeakMap() // node -> what it said

function remember({ detail: { nodeId, text } }) {
  const node = app.graph.nodes.find((one) => one.comfyClass?.startsWith(OURS) && isNode(one, nodeId))
  if (node && text) texts.set(node, text)
}

function sayAgain() {
  for (const node of app.graph.nodes) {
    const text = texts.get(node)
    if (!text || node.widgets?.some((widget) => widget.name === TEXT)) continue
    api.dispatchCustomEvent("progress_text", { nodeId: String(node.id), text })
  }
}

function addTab() {
  let tab = null
  app.extensionManager?.registerSidebarTab?.({
    id: "ltx2_trainer.runs",
    icon: "pi pi-chart-line",
    title: "LTX-2 runs",
    tooltip: "LTX-2 runs: what trains, what has been trained, with curves and samples",
    type: "custom",
    render: (place) => {
      tab?.remove()
      tab = new RunsTab(server)
      place.replaceChildren(tab.element)
    },
    destroy: () => {
      tab?.remove()
      tab = null
    },
  })
}

// A widget with choices of its own numbers keeps its value beside the state that Nodes 2.0 draws, which after loading a
// workflow still holds the first choice. Writing the value by the accessor of its class brings the two together.
function showChoices(node) {
  for (const widget of node.widgets ?? []) {
    if (!isChoice(widget)) continue
    let kind = Object.getPrototypeOf(widget)
    while (kind && !Object.getOwnPropertyDescriptor(kind, "value")?.set) kind = Object.getPrototypeOf(kind)
    if (kind) Object.getOwnPropertyDescriptor(kind, "value").set.call(widget, widget.value)
  }
}

// Recipes and Optimizer Options: their numbers are shown in the nodes they go into. Wires, choices, undo and bypassing change them in ways
// that no one event tells of, so it is looked at in short intervals while there is one, and before a prompt is sent.
const GOVERNING = ["LTX2T_TrainingRecipe", "LTX2T_SamplesRecipe", "LTX2T_OptimizerOptions"]
const LOOK_MS = 300
const taking = new Set() // the nodes with a socket `options`
const labels = new WeakMap() // widget -> its own label

function governs(node) {
  return GOVERNING.includes(node.comfyClass)
}

function labelled(widget, value, by) {
  if (!labels.has(widget)) labels.set(widget, widget.label)
  const own = labels.get(widget)
  // a classic node shows no value of a widget that cannot be changed
  const shown = window.LiteGraph.vueNodesMode ? "" : ` ${typeof value === "number" ? Number(value.toPrecision(6)) : value}`
  const from = by?.comfyClass.endsWith("Recipe") ? "recipe" : "options"
  const label = value == null ? own : `${own || widget.name.replaceAll("_", " ")}${shown} (${from})`
  if (widget.label !== label) widget.label = label
}

function showGoverned() {
  const said = governed(taking, governs)
  for (const node of taking)
    if (!governs(node) && showNumbers(node, said.get(node), labelled)) node.setDirtyCanvas(true, true)
}

const idle = new WeakMap() // widget that the mode has no use for -> its own label

function showModes() {
  for (const node of taking) if (showIdle(node, idle)) node.setDirtyCanvas(true, true)
}

function followGoverned(node) {
  taking.add(node)
  onRemoved(node, () => {
    taking.delete(node)
    if (governs(node)) setTimeout(showGoverned)
  })
  if (governs(node)) node.widgets[0].beforeQueued = showGoverned
}

// ComfyUI lists example workflows in the order of the disk; ours have numbers, which say what comes first.
const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-3))

function orderTemplates() {
  const list = api.getWorkflowTemplates
  if (!list) return
  api.getWorkflowTemplates = async function () {
    const listed = await list.apply(this, arguments)
    listed?.[FOLDER]?.sort()
    return listed
  }
}

app.registerExtension({
  name: "ltx2_trainer.live",

  init: orderTemplates,

  setup() {
    addTab()
    setInterval(() => {
      if ([...taking].some(governs)) showGoverned()
      showModes()
    }, LOOK_MS)
    api.addEventListener("ltx2_train.step", (event) => feed(event.detail))
    api.addEventListener("ltx2_train.sample", (event) => {
      for (const view of viewsOf(event.detail)) view.showSample(event.detail.sample)
    })
    app.ui.settings.addEventListener("Comfy.VueNodes.Enabled.change", () =>
      setTimeout(() => {
        for (const [node, folded] of folds) hideAdvanced(node, folded && !window.LiteGraph.vueNodesMode)
      })
    )
    // with the first status the page has its number, by which the server knows it
    api.addEventListener("status", feedAll, { once: true })
    for (const name of ["execution_start", "reconnected"]) api.addEventListener(name, feedAll)
    api.addEventListener("progress_text", remember)
    for (const name of ["execution_success", "execution_error", "execution_interrupted"])
      api.addEventListener(name, () => [300, 1500, 5000].forEach((wait) => setTimeout(sayAgain, wait)))
    // the node says itself how it ended; this is for an end that it could not tell of
    const ended = (state, message) => (event) => {
      for (const [node, view] of views) {
        if (!isNode(node, event.detail.node_id) || view.view.state !== "running") continue
        view.show({ ...view.view, state, message: message ?? event.detail.exception_message })
      }
    }
    api.addEventListener("execution_interrupted", ended("stopped", "Stopped. Run again to go on."))
    api.addEventListener("execution_error", ended("failed"))
  },

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(OURS)) return
    const foldable = node.widgets && isFoldable(node)
    if (foldable) {
      addFold(node)
      foldChosen(node)
      countFolded(node)
    }
    if ([...TRAINING, MONITOR].includes(node.comfyClass)) addView(node)
    if (node.comfyClass === MONITOR) watch(node, views.get(node))
    afterExecuted(node)
    if (node.inputs?.some((input) => input.name === "options")) followGoverned(node)
    if (foldable) applyFold(node)
    else fit(node)
  },

  loadedGraphNode(node) {
    if (node.comfyClass?.startsWith(OURS)) showChoices(node)
  },

  afterConfigureGraph() {
    showGoverned()
    feedAll()
  },
})
