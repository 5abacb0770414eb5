// The tab beside the graph: all runs, and the live view of the one that is chosen. Builds DOM, knows nothing of ComfyUI.

import { LiveView } from "./live_view.mjs"

const LOOK_SECONDS = 5
const STYLE = `
.ltx2-runs { display: flex; flex-direction: column; gap: 8px; padding: 10px; height: 100%; box-sizing: border-box; font: 13px/1.35 system-ui, sans-serif; }
.ltx2-runs .list { overflow: auto; flex: 1; min-height: 0; }
.ltx2-runs .run { display: flex; gap: 8px; padding: 5px 8px; border-radius: 6px; cursor: pointer; white-space: nowrap; }
.ltx2-runs .run:hover { background: #8883; }
.ltx2-runs .run.chosen { background: #3b6fb555; }
.ltx2-runs .run b { overflow: hidden; text-overflow: ellipsis; font-weight: 500; }
.ltx2-runs .run span { margin-left: auto; color: var(--descrip-text, #999); font-variant-numeric: tabular-nums; }
.ltx2-runs .seen { flex: none; height: 460px; }
.ltx2-runs .ltx2-live .middle { flex-direction: column; }
`

// "running, 120 of 2000", "finished, 2000"
export function standing(run) {
  return run.total && run.step < run.total ? `${run.status}, ${run.step} of ${run.total}` : `${run.status}, ${run.step}`
}

export class RunsTab {
  // `server` has runs(), view(name), samples(name) and ask(name, what); see run_server.mjs.
  constructor(server) {
    this.server = server
    this.chosen = ""
    this.element = tag("div", "ltx2-runs")
    const style = tag("style")
    style.textContent = STYLE
    this.list = tag("div", "list")
    this.view = new LiveView({
      addressOf: server.addressOf,
      stop: () => server.ask(this.chosen, "stop"),
      ask: (name, what) => server.ask(name, what),
    })
    this.seen = tag("div", "seen")
    this.seen.append(this.view.element)
    this.element.append(style, this.list, this.seen)
    this.timer = setInterval(() => {
      if (!document.hidden && this.element.isConnected) this.look()
    }, LOOK_SECONDS * 1000)
    this.look()
  }

  async look() {
    try {
      const runs = await this.server.runs()
      if (!runs.some((run) => run.name === this.chosen)) this.#choose(runs[0]?.name ?? "")
      this.list.replaceChildren(...(runs.length ? runs.map((run) => this.#line(run)) : [none()]))
      const run = runs.find((one) => one.name === this.chosen)
      // what is over does not change
      const state = run && `${run.name} ${run.status} ${run.step}`
      if (run && (state !== this.shown || run.status === "running")) {
        await this.#fill(run.name)
        this.shown = state
      }
    } catch (error) {
      console.warn("LTX-2 trainer: the runs are not known", error)
    }
  }

  remove() {
    clearInterval(this.timer)
    this.view.remove()
  }

  #choose(name) {
    if (this.chosen === name) return
    this.chosen = name
    this.shown = null
    this.view.clear()
  }

  async #fill(name) {
    const [view, samples] = await Promise.all([this.server.view(name), this.server.samples(name)])
    if (this.chosen !== name || !view) return
    this.view.show(view)
    this.view.showDrawn(samples)
  }

  #line(run) {
    const line = tag("div", run.name === this.chosen ? "run chosen" : "run")
    const [name, told] = [tag("b"), tag("span")]
    name.textContent = run.name
    told.textContent = standing(run)
    line.title = run.name
    line.append(name, told)
    line.addEventListener("click", () => {
      this.#choose(run.name)
      this.look()
    })
    return line
  }
}

function none() {
  const line = tag("div", "run")
  line.textContent = "There is no run in output/ltx2_runs yet."
  return line
}

function tag(name, className = "") {
  const element = document.createElement(name)
  if (className) element.className = className
  return element
}
