// The runs as the server tells of them; `fetchApi` and `apiURL` are those of ComfyUI's api.

import { viewQuery } from "./format.mjs"

export class RunServer {
  constructor({ fetchApi, apiURL }) {
    this.fetchApi = fetchApi
    this.addressOf = (file) => apiURL(viewQuery(file))
  }

  // All runs, the newest first.
  async runs() {
    return this.#json("/ltx2_train/runs", [])
  }

  // What the live view shows of a run; null where it is not there any more.
  async view(name) {
    return this.#json(this.#of(name, "view"), null)
  }

  async samples(name) {
    return this.#json(this.#of(name, "samples"), [])
  }

  // `what` is stop, save, sample, pause or go.
  async ask(name, what) {
    const response = await this.fetchApi(this.#of(name, what), { method: "POST" })
    if (!response.ok) console.warn(`LTX-2 trainer: ${await response.text()}`)
  }

  #of(name, what) {
    return `/ltx2_train/runs/${encodeURIComponent(name)}/${what}`
  }

  async #json(path, otherwise) {
    const response = await this.fetchApi(path)
    return response.ok ? response.json() : otherwise
  }
}
