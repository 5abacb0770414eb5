"""Seconds of a step: arithmetic over the rate of the card, traffic over its bandwidth, and weights over the link.

FLOP of the forward pass, two a multiplication, N video tokens, A audio tokens, L text tokens, D and E the widths:

    linears        2 N 14 DD  +  2 A 14 EE          queries, keys, values, output: 4; text: 2; feed-forward: 8
    text           2 L 2 DD   +  2 L 2 EE           keys and values
    attention      4 N N D + 4 N L D  +  4 A A E + 4 A L E
    between both   2 N 4 DE   +  2 A 4 EE           and attention 2 * 4 N A E, all in the audio width

Attention and the thin products of the LoRA run at half the rate of the others.

Backward has the linears once (the base is frozen: gradients to the inputs only), no text, 2.5 times the attention
(scores are made again), and the LoRA twice. What is recomputed is a forward pass without the second linear of each
feed-forward, whose value nobody reads.

Weights that are swapped travel once forward and once backward, beside the arithmetic of that phase, not of the other.
Those that are in the slots where one phase follows the other do not:

    step = max(forward, copy) + max(recompute + backward, copy)

So does what a card lacks of blocks that are shared out over cards. The time in which cards add up gradients is added:
with each block of those that are shared out, once after the last batch of a step of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...models.config import TransformerConfig
from .machine import Rates
from .simulate import StepProfile
from .work import Workload

LAUNCH = 8e-6  # seconds from one operation to the next when the device waits for Python: an assumption
COMPILED = 0.4  # share of the traffic that is left where norms, rotations and gates are fused: an assumption
ATTENTION_BACKWARD = 2.5
SLOW = 0.5  # share of the rate of products that attention and thin products reach: an assumption


@dataclass(frozen=True)
class Flops:
    """FLOP of all blocks: one forward pass, what of it a recompute does not do, text keys and values, backward.

    `slow_forward` and `slow_backward` are what of both is attention and LoRA, which reach half the rate.
    """

    forward: float
    unread: float
    text: float
    backward: float
    slow_forward: float = 0.0
    slow_backward: float = 0.0

    def total(self, recomputed: float = 0.0) -> float:
        """Of a step in which this share of the blocks is recomputed."""
        return self.forward + self.backward + recomputed * (self.forward - self.unread)


def flops(
    config: TransformerConfig,
    work: Workload,
    lora_values: dict[str, int] | None = None,
    attention_backward: float = ATTENTION_BACKWARD,
    weights: dict[str, int] | None = None,
) -> Flops:
    """FLOP of a batch. `lora_values`: LoRA values of a block by what passes them, "video", "audio", "text"; `weights`:
    the same of weights that are trained themselves."""
    n, a, l, count = work.video_tokens, work.audio_tokens, work.text, config.num_layers  # noqa: E741
    d, e = config.video.width, config.audio.width
    linear = attention = text = unread = 0.0
    if n:
        linear += 2 * n * 14 * d * d
        attention += 4 * n * n * d + 4 * n * l * d
        text += 2 * l * 2 * d * d
        unread += 2 * n * 4 * d * d
    if a:
        linear += 2 * a * 14 * e * e
        attention += 4 * a * a * e + 4 * a * l * e
        text += 2 * l * 2 * e * e
        unread += 2 * a * 4 * e * e
    if n and a:
        linear += 2 * n * 4 * d * e + 2 * a * 4 * e * e
        attention += 2 * 4 * n * a * e
    tokens = {"video": n, "audio": a, "text": l}
    lora = sum(2 * tokens[who] * values for who, values in (lora_values or {}).items())
    own = sum(2 * tokens[who] * values for who, values in (weights or {}).items())
    scale = work.batch * count
    return Flops(
        forward=scale * (linear + attention + text + lora),
        unread=scale * unread,
        text=scale * text,
        backward=scale * (linear + attention_backward * attention + 2 * lora + own),
        slow_forward=scale * (attention + lora),
        slow_backward=scale * (attention_backward * attention + 2 * lora),
    )


def lora_passes(paths_and_sizes: list[tuple[str, int]]) -> dict[str, int]:
    """LoRA values of one block by what flows through them: `paths` inside the block, values of A and B together."""
    sizes: dict[str, int] = {}
    for path, size in paths_and_sizes:
        sizes[_who(path)] = sizes.get(_who(path), 0) + size
    return sizes


def _who(path: str) -> str:
    part, leaf = path.split(".")[0], path.rpartition(".")[2]
    if part in ("attn2", "audio_attn2") and leaf in ("to_k", "to_v"):
        return "text"
    inner = leaf in ("to_k", "to_v")
    if part == "audio_to_video_attn":
        return "audio" if inner else "video"
    if part == "video_to_audio_attn":
        return "video" if inner else "audio"
    return "audio" if part.startswith("audio_") else "video"


def step_seconds(
    arithmetic: Flops,
    profile: StepProfile,
    rates: Rates,
    *,
    total: int,
    recomputed: int,
    streamed_bytes: float = 0.0,
    staying_bytes: float = 0.0,
    link: float = 25e9,
    offloaded_bytes: float = 0.0,
    blocking_bytes: float = 0.0,
    scattered_bytes: float = 0.0,
    text_kv: bool = False,
    compiled: bool = False,
) -> tuple[float, float]:
    """Seconds of a forward pass alone, and of both passes with `recomputed` of `total` blocks worked out again.

    `streamed_bytes` come over the link in each of both phases, but for the `staying_bytes` of them that the phase
    before left on the card; `offloaded_bytes` leave in the first, beside the weights since a link has two directions,
    and come back in the second, among them. `blocking_bytes` are held up for
    both ways by the thread that launches, since their RAM is not locked; `scattered_bytes` are gradients that other
    cards get in the second, before the next block.
    """
    again = recomputed / total
    forward_traffic, backward_traffic = profile.traffic(total, recomputed)
    forward_count, backward_count = profile.operations(total, recomputed)
    share = COMPILED if compiled else 1.0
    again_flop = again * (arithmetic.forward - arithmetic.unread - (arithmetic.text if text_kv else 0))
    again_flop += (1 / SLOW - 1) * (arithmetic.slow_backward + again * arithmetic.slow_forward)
    forward = (arithmetic.forward + (1 / SLOW - 1) * arithmetic.slow_forward) / rates.matmul
    forward += share * forward_traffic / rates.bandwidth
    backward = (arithmetic.backward + again_flop) / rates.matmul + share * backward_traffic / rates.bandwidth
    forward = max(forward, LAUNCH * forward_count)
    backward = max(backward, LAUNCH * backward_count)
    crossing = streamed_bytes - staying_bytes
    out = max(crossing, offloaded_bytes) / link
    back = (crossing + offloaded_bytes) / link
    alone = max(forward, streamed_bytes / link)
    waited = (2 * blocking_bytes + scattered_bytes) / link
    return alone, max(forward, out) + max(backward, back) + waited
