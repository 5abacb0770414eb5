// The live view inside a Train LoRA node: stage, progress, loss, newest sample. Builds DOM, knows nothing of ComfyUI.

import { drawCurves, VALIDATION } from "./curve.mjs"
import { duration, gigabytes, mediaKind, number, pace, sampleCaption } from "./format.mjs"
import { KINDS, told } from "./marks.mjs"
import { SampleGrid } from "./sample_grid.mjs"

export const HEIGHT = 208

// The whole loss or its first term, then the others; after the last the colors begin again.
const COLORS = [
  { dots: "#7aa7e088", line: "#4c8fe6" },
  { dots: "#e0a05a88", line: "#e08a2e" },
  { dots: "#7cc48688", line: "#43a556" },
  { dots: "#bf8fd688", line: "#a45fc6" },
]

const STYLE = `
.ltx2-live { box-sizing: border-box; width: 100%; height: 100%; min-height: ${HEIGHT}px; display: flex; flex-direction: column; gap: 6px;
  padding: 8px; font: 12px/1.35 system-ui, sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
  border: 1px solid var(--border-color, #444); border-radius: 8px; overflow: hidden; }
.ltx2-live .row { display: flex; align-items: center; gap: 8px; min-width: 0; white-space: nowrap; }
.ltx2-live .chip { padding: 1px 8px; border-radius: 9px; background: #3b6fb5; color: #fff; font-weight: 600; }
.ltx2-live[data-state=finished] .chip { background: #2f7d4f; }
.ltx2-live[data-state=stopped] .chip { background: #8a6d1f; }
.ltx2-live[data-state=failed] .chip { background: #a13a3a; }
.ltx2-live[data-state=idle] .chip { background: #555; }
.ltx2-live .count { font-variant-numeric: tabular-nums; }
.ltx2-live .quiet { color: var(--descrip-text, #999); overflow: hidden; text-overflow: ellipsis; }
.ltx2-live .note { white-space: normal; display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; min-width: 0; flex: 1 1 auto; }
.ltx2-live .row:last-child { flex-wrap: wrap; row-gap: 4px; }
.ltx2-live[data-state=running] .note { flex: 1 1 100%; -webkit-line-clamp: 2; } /* above its buttons, which leave it no room */
.ltx2-live .note:empty { display: none; }
.ltx2-live .title { max-width: 40%; }
.ltx2-live .left { flex: none; }
.ltx2-live button { flex: none; }
.ltx2-live button:disabled { opacity: .4; cursor: default; }
.ltx2-live .push { margin-left: auto; }
.ltx2-live .bar { height: 4px; border-radius: 2px; background: var(--border-color, #444); overflow: hidden; flex: none; }
.ltx2-live .bar > i { display: block; height: 100%; width: 0; background: #3b6fb5; transition: width .3s; }
.ltx2-live .middle { display: flex; gap: 8px; flex: 1; min-height: 0; }
.ltx2-live .sample { flex: 0 0 46%; min-width: 0; display: flex; align-items: center; justify-content: center; background: #0006; border-radius: 6px; overflow: hidden; }
.ltx2-live .sample:empty { display: none; }
.ltx2-live .sample > * { width: 100%; height: 100%; object-fit: contain; }
.ltx2-live .chart { position: relative; flex: 1; min-width: 0; }
.ltx2-live canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.ltx2-live .chart .label { position: absolute; right: 6px; top: 2px; font-variant-numeric: tabular-nums; }
.ltx2-live .chart .part + .part { margin-left: 8px; }
.ltx2-live .sample > audio { height: 40px; }
.ltx2-live .chart .empty { position: absolute; inset: 0; display: flex; align-items: center; justify-content: center; text-align: center; white-space: normal; }
.ltx2-live button { font: inherit; color: inherit; background: transparent; border: 1px solid var(--border-color, #666); border-radius: 6px; padding: 1px 8px; cursor: pointer; }
.ltx2-live button:hover { background: #fff2; }
.ltx2-live [hidden] { display: none !important; }
`

const STATES = { idle: "ready", running: "", finished: "finished", stopped: "stopped", failed: "failed" }

export class LiveView {
  // `addressOf(file)` makes the address of a file of the output folder; `stop()` asks the host to stop; `ask(run, what)`
  // asks a run that is being trained for "save", "sample", "pause" or "go".
  constructor({ addressOf, stop, ask }) {
    this.addressOf = addressOf
    this.drawn = [] // the samples of the run by step, oldest first
    this.at = -1 // which of them is shown; -1 is the newest
    if (!document.getElementById("ltx2-live-style")) {
      const style = document.createElement("style")
      style.id = "ltx2-live-style"
      style.textContent = STYLE
      document.head.append(style)
    }
    this.element = tag("div", "ltx2-live")
    this.chip = tag("span", "chip")
    this.count = tag("span", "count")
    this.left = tag("span", "quiet push left")
    this.fill = tag("i")
    this.sample = tag("div", "sample")
    this.canvas = tag("canvas")
    this.label = tag("span", "label quiet")
    this.empty = tag("span", "empty quiet")
    this.note = tag("span", "quiet note")
    this.stop = tag("button", "push")
    this.stop.title = "Save what is trained so far, and end. Run again to go on."
    this.#stops(false)
    this.stop.addEventListener("click", () => {
      this.#stops(true)
      stop()
    })
    this.title = tag("span", "quiet title")
    this.asks = ["sample", "save", "pause"].map((what) => {
      const button = tag("button")
      button.addEventListener("click", () => {
        ask(this.view.title, what === "pause" && this.paused ? "go" : what)
        if (what === "pause") this.paused = !this.paused
        this.#label()
      })
      return button
    })
    this.back = tag("button", "step")
    this.next = tag("button", "step")
    this.back.textContent = "\u2039"
    this.next.textContent = "\u203a"
    this.back.title = "the sample before"
    this.next.title = "the sample after"
    this.back.addEventListener("click", () => this.browse(-1))
    this.next.addEventListener("click", () => this.browse(1))
    this.grid = new SampleGrid(addressOf)
    this.all = tag("button")
    this.all.textContent = "All samples"
    this.all.title = "All samples of the run: steps down, prompts across, played together."
    this.all.addEventListener("click", () => this.grid.open(`Samples of ${this.view.title}`, this.drawn))
    const chart = tag("div", "chart")
    chart.append(this.canvas, this.label, this.empty)
    this.places = []
    chart.addEventListener("mousemove", (event) => {
      const kinds = Object.keys(KINDS).filter((kind) => this.places.some((place) => place.kind === kind))
      // in a classic node the chart is scaled with the graph
      const x = (event.offsetX * this.canvas.clientWidth) / Math.max(1, chart.clientWidth)
      chart.title = told(this.places, x, 4) || kinds.map((kind) => KINDS[kind].name).join(", ")
    })
    this.element.append(
      row(this.chip, this.title, this.count, this.left),
      wrap("bar", this.fill),
      wrap("middle", this.sample, chart),
      row(this.note, this.back, this.next, this.all, ...this.asks, this.stop)
    )
    // a canvas has no size until the node is laid out
    this.observer = new ResizeObserver(() => this.redraw())
    this.observer.observe(this.canvas)
    this.#arrows()
    this.show({ state: "idle", curve: [] })
  }

  show(view) {
    if (view.title && this.view?.title && view.title !== this.view.title) this.#forget() // another run of this node
    this.view = view
    const running = view.state === "running"
    this.element.dataset.state = view.state
    this.chip.textContent = STATES[view.state] || view.stage || "starting"
    const total = view.step != null && view.stage === "train" ? `step ${view.step}/${view.total ?? "?"}` : view.total ? `${view.done}/${view.total}` : ""
    this.count.textContent = running ? total : view.step != null ? `step ${view.step}` : ""
    const times = [pace(view.seconds_a_step), view.seconds_left > 0 ? `${duration(view.seconds_left)} left` : ""]
    this.left.textContent = running ? times.filter(Boolean).join(", ") : ""
    const share = view.state === "finished" ? 1 : view.total ? Math.min(1, view.done / view.total) : 0
    this.fill.style.width = `${(share * 100).toFixed(1)}%`
    this.note.textContent = this.#note(view, running)
    this.note.title = view.message || ""
    this.title.textContent = view.title || ""
    this.title.title = view.title ? `run ${view.title}` : ""
    const trains = running && view.stage === "train" && Boolean(view.title)
    this.paused = trains && /^Paused/.test(view.message || "")
    for (const button of this.asks) button.hidden = !trains
    this.#label()
    this.stop.hidden = !running
    if (!running) this.#stops(false)
    if (view.sample) this.showSample(view.sample)
    this.redraw()
  }

  // A stop that was asked for is told at once: a large state takes a while to be written.
  #stops(asked) {
    this.stop.disabled = asked
    this.stop.textContent = asked ? "Stopping ..." : "Stop and save"
  }

  // All samples of the run, for the arrows; what is in view stays there.
  showDrawn(samples) {
    this.drawn = samples.filter((sample) => sample.file)
    if (this.at >= this.drawn.length) this.at = -1
    this.#arrows()
  }

  // Another run is going to be shown.
  clear() {
    this.#forget()
    this.show({ state: "idle", curve: [] })
  }

  #forget() {
    this.drawn = []
    this.at = -1
    this.address = null
    this.sample.replaceChildren()
    this.#arrows()
  }

  browse(by) {
    const last = this.drawn.length - 1
    const at = Math.min(last, Math.max(0, (this.at < 0 ? last : this.at) + by))
    this.#put(this.drawn[at])
    this.at = at === last ? -1 : at
    this.#arrows()
  }

  showSample(sample) {
    if (!sample.file) return
    const known = this.drawn.some((other) => other.file.filename === sample.file.filename)
    if (!known) this.drawn.push(sample)
    if (this.at < 0) this.#put(sample)
    this.#arrows()
  }

  #put(sample) {
    const address = this.addressOf(sample.file)
    if (this.address !== address) {
      this.address = address
      const kind = mediaKind(sample.file.filename)
      const media = tag(kind)
      // a page may play by itself only what is muted; the controls bring the sound
      if (kind === "video") Object.assign(media, { muted: true, loop: true, autoplay: true, playsInline: true, controls: true })
      if (kind === "audio") Object.assign(media, { controls: true, preload: "metadata" })
      media.src = address
      this.sample.replaceChildren(media)
    }
    this.sample.title = sampleCaption(sample)
  }

  redraw() {
    const { curve_name: first = "loss", curve: points = [], curve_audio: sound = [], curve_more: more = {} } = this.view
    const terms = [[first, points], ...(sound.length ? [["audio", sound]] : []), ...Object.entries(more)]
    const curves = terms.map(([name, values], at) => ({ name, points: values, ...COLORS[at % COLORS.length] }))
    const { validation = [], marks = {} } = this.view
    const drawn = this.canvas.clientWidth > 0 && drawCurves(this.canvas, curves, "#8884", validation, marks)
    this.places = drawn || []
    const parts = (points.length ? curves : []).map((curve) => [curve.name, lastSmooth(curve.points), curves.length > 1 ? curve.line : ""])
    if (validation.length) parts.push(["validation", validation.at(-1)[1], VALIDATION])
    this.label.replaceChildren(
      ...parts.map(([name, value, color]) => {
        const part = tag("span", "part")
        part.textContent = `${name} ${number(value)}`
        part.style.color = color
        return part
      })
    )
    this.empty.textContent = drawn || points.length ? "" : this.view.state === "idle" ? "Loss and samples appear here." : "No loss yet."
  }

  remove() {
    this.observer.disconnect()
    this.grid.close()
    this.sample.replaceChildren() // ends the download of a playing video
  }

  #arrows() {
    const last = this.drawn.length - 1
    this.back.hidden = this.next.hidden = this.all.hidden = last < 1
    this.back.disabled = this.at === 0
    this.next.disabled = this.at < 0
  }

  #label() {
    const [sample, save, pause] = this.asks
    sample.textContent = "Sample"
    sample.title = "Draw the samples after the step at hand."
    save.textContent = "Save"
    save.title = "Write a LoRA and a state after the step at hand."
    pause.textContent = this.paused ? "Go on" : "Pause"
    pause.title = this.paused ? "Train on." : "Wait after the step at hand; the card stays in use."
  }

  #note(view, running) {
    const parts = []
    if (running && view.text) parts.push(view.text)
    if (running && view.memory?.total) parts.push(`VRAM ${gigabytes(view.memory.used)} of ${gigabytes(view.memory.total)} GB`)
    if (view.message) parts.push(view.message)
    return parts.join("  ")
  }
}

function lastSmooth(points) {
  for (let i = points.length - 1; i >= 0; i--) if (points[i][2] != null) return points[i][2]
  return null
}

function tag(name, className = "") {
  const element = document.createElement(name)
  if (className) element.className = className
  return element
}

function wrap(className, ...children) {
  const element = tag("div", className)
  element.append(...children)
  return element
}

function row(...children) {
  return wrap("row", ...children)
}
