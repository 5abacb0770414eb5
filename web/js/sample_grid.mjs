// All samples of a run over the page: steps down, prompts across, played together. Builds DOM, knows nothing of ComfyUI.

import { mediaKind } from "./format.mjs"
import { gridOf, neighbour } from "./samples.mjs"

const STYLE = `
.ltx2-grid { position: fixed; inset: 0; z-index: 9999; display: flex; flex-direction: column; padding: 16px; gap: 10px; background: #111e;
  color: #ddd; font: 13px/1.35 system-ui, sans-serif; }
.ltx2-grid .bar { display: flex; gap: 10px; align-items: center; }
.ltx2-grid .bar b { margin-right: auto; }
.ltx2-grid button { font: inherit; color: inherit; background: #333; border: 1px solid #666; border-radius: 6px; padding: 3px 12px; cursor: pointer; }
.ltx2-grid button:hover { background: #444; }
.ltx2-grid .table { overflow: auto; display: grid; grid-auto-rows: max-content; gap: 6px; align-content: start; justify-content: start; flex: 1; min-height: 0; }
.ltx2-grid .head { position: sticky; top: 0; z-index: 1; background: #111; padding: 4px; max-height: 4.2em; overflow: hidden; }
.ltx2-grid .step { position: sticky; left: 0; background: #111; padding: 4px; font-variant-numeric: tabular-nums; }
.ltx2-grid .cell { min-height: 90px; display: flex; flex-direction: column; background: #0006; border-radius: 4px; overflow: hidden; cursor: zoom-in; }
.ltx2-grid .cell > * { width: 100%; height: auto; display: block; }
.ltx2-grid .cell > audio { height: 40px; }
.ltx2-grid .large { flex: 1; min-height: 0; display: flex; flex-direction: column; align-items: center; justify-content: center; gap: 8px; }
.ltx2-grid .large > :first-child { max-width: 100%; min-height: 0; flex: 1; object-fit: contain; }
.ltx2-grid [hidden] { display: none !important; }
`

export class SampleGrid {
  // `addressOf(file)` makes the address of a file of the output folder.
  constructor(addressOf) {
    this.addressOf = addressOf
    this.keys = (event) => this.#key(event)
  }

  get isOpen() {
    return Boolean(this.element)
  }

  open(title, samples) {
    this.close()
    if (!document.getElementById("ltx2-grid-style")) {
      const style = tag("style")
      style.id = "ltx2-grid-style"
      style.textContent = STYLE
      document.head.append(style)
    }
    this.grid = gridOf(samples)
    this.videos = []
    this.element = tag("div", "ltx2-grid")
    this.play = this.#button("Play together", () => this.#playAll())
    this.back = this.#button("Back to all", () => this.#shrink())
    const name = tag("b")
    name.textContent = title
    const bar = tag("div", "bar")
    bar.append(name, this.play, this.back, this.#button("Close", () => this.close()))
    this.table = this.#table()
    this.large = tag("div", "large")
    this.element.append(bar, this.table, this.large)
    document.body.append(this.element)
    this.#shrink()
    document.addEventListener("keydown", this.keys, true)
  }

  close() {
    if (!this.element) return
    this.seen?.disconnect()
    document.removeEventListener("keydown", this.keys, true)
    for (const media of this.element.querySelectorAll("video, audio")) media.removeAttribute("src") // ends the downloads
    this.element.remove()
    this.element = null
  }

  #table() {
    const table = tag("div", "table")
    table.style.gridTemplateColumns = `90px repeat(${this.grid.columns.length}, minmax(160px, 360px))`
    // hundreds of samples are not loaded before they are looked at
    this.seen = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) if (entry.isIntersecting) this.#load(entry.target)
      },
      { root: table, rootMargin: "200px" }
    )
    table.append(text("head", ""), ...this.grid.columns.map((column) => text("head", column.label)))
    this.grid.rows.forEach((row, r) => {
      table.append(text("step", `step ${row.step}`))
      row.cells.forEach((sample, c) => {
        const cell = tag("div", "cell")
        table.append(cell)
        if (!sample) return
        cell.title = `step ${row.step}, ${this.grid.columns[c].label}`
        cell.sample = sample
        cell.addEventListener("click", () => this.#enlarge([r, c]))
        this.seen.observe(cell)
      })
    })
    return table
  }

  #load(cell) {
    if (cell.firstChild) return
    this.seen.unobserve(cell)
    cell.append(...this.#media(cell.sample))
    const media = cell.querySelector("video, audio")
    if (!media) return
    const video = media.tagName === "VIDEO"
    if (video) this.videos.push(media)
    // a page may play what can be heard only after a click, which the button of this grid was
    cell.addEventListener("mouseenter", () => {
      media.muted = false
      if (!video) media.play().catch(() => {})
    })
    cell.addEventListener("mouseleave", () => {
      if (video) media.muted = true
      else media.pause()
    })
  }

  #media(sample) {
    const kind = mediaKind(sample.file.filename)
    const media = tag(kind)
    if (kind === "video") Object.assign(media, { muted: true, preload: "metadata", playsInline: true })
    if (kind === "audio") Object.assign(media, { controls: true, preload: "metadata" })
    media.src = this.addressOf(sample.file)
    if (!sample.picture) return [media]
    const picture = tag("img")
    picture.src = this.addressOf(sample.picture)
    return [picture, media]
  }

  // All that is in view from its beginning, at once; again when the longest of them has ended.
  #playAll() {
    const videos = this.videos.filter((video) => video.isConnected)
    if (!videos.length) return
    const longest = videos.reduce((best, video) => ((video.duration || 0) > (best.duration || 0) ? video : best))
    for (const video of videos) {
      video.onended = video === longest ? () => this.#playAll() : null
      video.currentTime = 0
      video.play().catch(() => {})
    }
  }

  #pauseAll() {
    for (const video of this.videos) video.pause()
  }

  #enlarge([row, column]) {
    this.at = [row, column]
    this.#pauseAll()
    const sample = this.grid.rows[row].cells[column]
    const media = this.#media(sample)
    for (const one of media) if (one.tagName !== "IMG") Object.assign(one, { controls: true, loop: true, muted: false, autoplay: true })
    this.large.replaceChildren(...media, text("caption", `step ${sample.step}, ${this.grid.columns[column].label}`))
    this.table.hidden = this.play.hidden = true
    this.large.hidden = this.back.hidden = false
  }

  #shrink() {
    this.at = null
    this.large.replaceChildren()
    this.table.hidden = this.play.hidden = false
    this.large.hidden = this.back.hidden = true
  }

  #key(event) {
    if (event.key === "Escape") this.at ? this.#shrink() : this.close()
    else if (this.at && event.key.startsWith("Arrow")) {
      const next = neighbour(this.grid, this.at, event.key)
      if (next) this.#enlarge(next)
    } else return
    event.preventDefault()
    event.stopPropagation() // the page behind has these keys too
  }

  #button(label, call) {
    const button = tag("button")
    button.textContent = label
    button.addEventListener("click", call)
    return button
  }
}

function tag(name, className = "") {
  const element = document.createElement(name)
  if (className) element.className = className
  return element
}

function text(className, value) {
  const element = tag("div", className)
  element.textContent = element.title = value // long ones are cut
  return element
}
