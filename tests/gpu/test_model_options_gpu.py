"""On a card every option of the transformer gives the gradients that the CPU gives without it."""

import pytest
import torch
from parity.oracles_transformer import adapt, build, inputs, loss_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


def to(modality, device, dtype):
    """The modality on `device`, its latent and context in `dtype`."""
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in vars(modality).items()}
    return type(modality)(**{**moved, "latent": moved["latent"].to(dtype), "context": moved["context"].to(dtype)})


def gradients(device, dtype=torch.float32, prepare=lambda model: None, per_token=True):
    """Loss and gradients, on the CPU in float64 numbers, and what `prepare` said."""
    # heads of 16 and 8, which FlashAttention takes as well
    model = build(
        "2.3",
        num_layers=3,
        attention_head_dim=16,
        audio_attention_head_dim=8,
        cross_attention_dim=32,
        audio_cross_attention_dim=16,
    )
    model.to(device, dtype)
    layers = adapt(model, "attn")
    said = prepare(model)
    batch = inputs("2.3", per_token=per_token)
    video, audio = (to(m, device, dtype) for m in (batch.video, batch.audio))
    block = model.transformer_blocks[0]
    video, audio = (
        type(m)(**{**vars(m), "context": m.context.repeat(1, 1, 2)[..., : attention.to_k.in_features]})
        for m, attention in ((video, block.attn2), (audio, block.audio_attn2))
    )
    out = model(video, audio)
    loss = loss_of((out.video.cpu().float(), out.audio.cpu().float()))
    loss.backward()
    grads = [p.grad for layer in layers.values() for p in (layer.lora_A, layer.lora_B)]
    return [loss.detach().double(), *(g.cpu().double() for g in grads if g is not None)], said


OPTIONS = {
    "none": lambda m: None,
    "kept": lambda m: m.set_recompute(0),
    "some": lambda m: m.set_recompute([1]),
    "batch": lambda m: m.set_split("batch"),
    "query": lambda m: m.set_split("query", 5),
    "chunks": lambda m: m.set_ff_chunk(5),
    "text": lambda m: setattr(m, "keep_text_kv", True),
    "compiled": lambda m: m.set_compile(True),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("per_token", [False, True])
def test_options_change_nothing(option, per_token):
    expected, _ = gradients("cpu", per_token=per_token)
    found, said = gradients("cuda", prepare=OPTIONS[option], per_token=per_token)
    assert said is None
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 2e-3 * b.norm() + 1e-6  # matrix products may be in TF32


@pytest.mark.parametrize("kernel", ["flash2", "flash3"])
def test_a_flash_kernel_agrees_or_says_why_it_is_not_used(kernel):
    plain, _ = gradients("cuda", torch.bfloat16)
    found, said = gradients("cuda", torch.bfloat16, lambda m: m.set_attention(kernel))
    if said is not None:
        assert "FlashAttention" in said
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    for a, b in zip(found, plain, strict=True):
        assert (a - b).norm() <= 0.1 * b.norm() + 1e-3


def test_compiled_work_is_still_compiled_after_a_step():
    models = []
    gradients("cuda", torch.bfloat16, lambda m: models.append(m) or m.set_compile(True))
    assert models[0].transformer_blocks[0].fused.failure is None


def test_the_forward_pass_waits_for_the_card_at_most_where_timesteps_are_told_apart():
    model, batch = build("2.3").to("cuda"), inputs("2.3")
    video, audio = (to(m, "cuda", torch.float32) for m in (batch.video, batch.audio))
    video, audio = (type(m)(**{**vars(m), "timesteps": None, "context_mask": None}) for m in (video, audio))
    with torch.no_grad():
        model(video, audio)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(video, audio)
        finally:
            torch.cuda.set_sync_debug_mode("default")
