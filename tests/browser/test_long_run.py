"""A long run on the page: ten thousand steps and two hundred samples, and an hour of messages."""

from __future__ import annotations

import json
import os

import pytest

STEPS, SAMPLE_STEPS, PROMPTS = 10_000, 51, 4
CURVE_POINTS, TERMS = 120, 2  # the most points of a curve, one curve of each term of the loss
# counts what is drawn on the charts of our views, and how often
COUNT = """() => {
  window.__drawn = { points: 0, times: 0 }
  const charts = CanvasRenderingContext2D.prototype
  for (const [name, what] of [["arc", "points"], ["clearRect", "times"]]) {
    const call = charts[name]
    charts[name] = function () {
      if (this.canvas.closest?.(".ltx2-live")) window.__drawn[what]++
      return call.apply(this, arguments)
    }
  }
}"""
SHOW = """async (name) => {
  app.graph.clear()
  const node = LiteGraph.createNode("LTX2T_Monitor")
  node.pos = [200, 120]
  app.graph.add(node)
  node.setSize([560, 420])
  const began = performance.now()
  const widget = node.widgets.find((widget) => widget.name === "run_name")
  widget.value = name
  widget.callback(name)
  for (;;) {
    await new Promise((done) => requestAnimationFrame(done))
    const view = document.querySelector(".ltx2-live")
    const arrow = view.querySelector("[title='the sample before']")
    if (view.dataset.state === "finished" && !arrow.hidden) return performance.now() - began
  }
}"""
# an hour at two messages a second, with a sample every five minutes, as fast as the page takes them
HOUR = """async ([name, from, count]) => {
  const say = (kind, detail) => app.api.dispatchCustomEvent(`ltx2_train.${kind}`, detail)
  const node = String(app.graph.nodes.find((one) => one.type === "LTX2T_TrainLoRA").id)
  for (let at = from; at < from + count; at++) {
    const curve = Array.from({ length: 120 }, (_, i) => [Math.round((i * at) / 119), 1 / (i + 1), 1 / (i + 2)])
    say("step", { node, title: name, state: "running", stage: "train", step: at, done: at, total: 20000, curve,
      seconds_a_step: 0.5, seconds_left: 1000, memory: { used: 1e9, total: 2e9 }, message: `message ${at}` })
    const filename = `step_${String(at).padStart(6, "0")}_p01_s7.png`
    const file = { filename, subfolder: "ltx2_runs/hour/samples", type: "output" }
    if (at % 600 === 0) say("sample", { node, title: name, sample: { step: at, seed: 7, file } })
    if (at % 50 === 0) await new Promise((done) => setTimeout(done))
  }
}"""


@pytest.fixture(scope="module")
def big(server):
    folder = server.base / "output/ltx2_runs/big"
    for name in ("samples", "lora"):
        (folder / name).mkdir(parents=True)
    facts = {"format": 1, "name": "big", "status": "finished", "step": STEPS, "total": STEPS, "updated": "2026"}
    (folder / "manifest.json").write_text(json.dumps(facts))
    terms = {"loss": 1.0, "loss_video": 0.6, "loss_audio": 0.4}
    rows = [{"step": at, **{name: value / at for name, value in terms.items()}} for at in range(1, STEPS + 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for step in range(SAMPLE_STEPS):
        for prompt in range(1, PROMPTS + 1):
            (folder / "samples" / f"step_{200 * step:06d}_p{prompt:02d}_s7.png").write_bytes(b"")
    return folder.name


def heap(page):
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    nodes = session.send("Memory.getDOMCounters")["nodes"]
    session.detach()
    return used, nodes


def test_a_long_run_is_drawn_from_little(big, page, record_property):
    page.reload()
    page.settle()
    answers = []
    page.on("response", lambda answer: "/ltx2_train/runs/big/" in answer.url and answers.append(answer))
    page.evaluate(COUNT)
    milliseconds = page.evaluate(SHOW, big)
    page.wait_for_timeout(500)
    drawn = page.evaluate("() => window.__drawn")
    record_property("milliseconds", milliseconds)
    if told := os.environ.get("LTX2_TELL"):
        with open(told, "a") as out:
            out.write(f"{page.renderer}: drawn in {milliseconds:.0f} ms\n")
    assert len(answers) <= 3, [answer.url for answer in answers]
    assert max(len(answer.body()) for answer in answers) < 60_000
    assert drawn["points"] >= CURVE_POINTS // 2 * TERMS, "the curves are there"
    assert drawn["points"] <= CURVE_POINTS * TERMS * drawn["times"]
    assert drawn["times"] <= 8, f"drawn when it is filled and laid out, not for each of its samples: {drawn}"
    page.locator(".ltx2-live").get_by_text("All samples").click()
    page.locator(".ltx2-grid").wait_for()
    assert page.locator(".ltx2-grid .cell").count() == SAMPLE_STEPS * PROMPTS
    page.wait_for_function("() => document.querySelectorAll('.ltx2-grid .cell img').length > 0")
    assert page.locator(".ltx2-grid .cell img").count() < 100, "what is not in view is not loaded"
    page.keyboard.press("Escape")


def test_an_hour_of_messages_leaves_the_page_as_large_as_it_was(page, server):
    (server.base / "output/ltx2_runs/hour/samples").mkdir(parents=True, exist_ok=True)
    page.wrong_before = len(page.wrong)
    page.evaluate("""() => {
      app.graph.clear()
      const node = LiteGraph.createNode("LTX2T_TrainLoRA")
      node.pos = [200, 120]
      app.graph.add(node)
      node.widgets.find((widget) => widget.name === "run_name").value = "hour"
    }""")
    page.locator(".ltx2-live").wait_for()
    page.evaluate(HOUR, ["hour", 1, 1200])  # what is made once
    page.wait_for_timeout(500)
    before, nodes_before = heap(page)
    page.evaluate(HOUR, ["hour", 1201, 7200])
    page.wait_for_timeout(500)
    after, nodes_after = heap(page)
    assert "step 8400" in page.locator(".ltx2-live").inner_text()
    assert after - before < 1_500_000, f"{(after - before) / 7200:.0f} bytes a message stay"
    assert nodes_after - nodes_before < 200
    page.wrong[:] = [text for text in page.wrong if "ltx2_runs%2Fhour" not in text]  # the samples are made up
