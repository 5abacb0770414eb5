"""Merging: the sum is exact, ranks and layers may differ, and what is taken away is what was to be taken away."""

import json

import pytest
import torch
from lora_files import BLOCK, changes, metadata, pair, write_lora
from safetensors import safe_open
from safetensors.torch import save_file

from ltx2_train.cli import main
from ltx2_train.errors import CheckpointError, ConfigError, Stopped
from ltx2_train.events import Events
from ltx2_train.lora.file import load_lora_state
from ltx2_train.lora.merge import merge_loras
from ltx2_train.lora.report import inspect_lora

Q, K, V = (f"{BLOCK}.attn1.to_{name}" for name in "qkv")
SOUND = f"{BLOCK}.audio_ff.net.2"


@pytest.fixture
def three(tmp_path):
    """LoRAs of ranks 2, 3 and 1 that share some layers; the second has alphas, the third underscores."""
    first = write_lora(tmp_path / "a.safetensors", {Q: pair(2, seed=1), K: pair(2, seed=2)}, {"trigger": "ann"})
    second = write_lora(
        tmp_path / "b.safetensors",
        {Q: pair(3, seed=3), SOUND: pair(3, (6, 24), seed=4)},
        {"trigger": "bob", "ss_ltx_version": "2.3", "ss_sd_model_name": "base.safetensors"},
        alphas={Q: 6, SOUND: 1.5},
    )
    third = tmp_path / "c.safetensors"
    flat = "lora_unet_model_transformer_blocks_0_attn1_to_q"
    a, b = pair(1, seed=5)
    save_file({f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b, f"{flat}.alpha": torch.tensor(0.5)}, third)
    return first, second, third


def test_concat_is_the_sum_of_any_number_at_any_rank(three, tmp_path):
    out = tmp_path / "all.safetensors"
    made = merge_loras(three, out, [1.0, -0.5, 2.0])
    one, two, three = (changes(path) for path in three)
    merged = changes(out)
    assert set(merged) == {Q, K, SOUND}
    torch.testing.assert_close(merged[Q], one[Q] - 0.5 * two[Q] + 2 * three[Q])
    torch.testing.assert_close(merged[K], one[K])
    torch.testing.assert_close(merged[SOUND], -0.5 * two[SOUND])
    entries = load_lora_state(out).entries
    assert {layer: entry.rank for layer, entry in entries.items()} == {Q: 6, K: 2, SOUND: 3}
    assert (made.layers, made.ranks) == ({"video": 2, "audio": 1}, [2, 3, 6])


def test_the_merged_file_says_what_it_is_made_of(three, tmp_path):
    out = tmp_path / "all.safetensors"
    merge_loras(three, out, [1.0, 0.5, 1.0])
    told = metadata(out)
    assert (told["merge_method"], told["trigger"], told["base"]) == ("concat", "ann, bob", "base.safetensors")
    assert json.loads(told["merge_sources"]) == ["a.safetensors", "b.safetensors", "c.safetensors"]
    assert json.loads(told["merge_multipliers"]) == [1.0, 0.5, 1.0]
    assert json.loads(told["merge_parts"])[1] == {
        "file": "b.safetensors", "ranks": [3], "alpha": 6.0, "version": "2.3", "base": "base.safetensors",
        "trigger": "bob",
    }  # fmt: skip
    assert (told["rank"], told["alpha"], told["version"]) == ("6", "6", "2.3")
    assert load_lora_state(out).loads_in_comfyui
    assert str(tmp_path) not in json.dumps(told)


def test_a_matrix_that_needs_no_factor_is_copied_bit_for_bit(tmp_path):
    halves = {Q: pair(2, seed=1)}, {K: pair(2, seed=2)}
    paths = [write_lora(tmp_path / f"{n}.safetensors", layers, dtype=torch.bfloat16) for n, layers in enumerate(halves)]
    merge_loras(paths, tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        for layers in halves:
            for layer, (a, b) in layers.items():
                assert torch.equal(file.get_tensor(f"diffusion_model.{layer}.lora_A.weight"), a.bfloat16())
                assert torch.equal(file.get_tensor(f"diffusion_model.{layer}.lora_B.weight"), b.bfloat16())


@pytest.mark.parametrize(
    ("given", "asked", "stored"),
    [
        ((torch.bfloat16, torch.bfloat16), "auto", torch.bfloat16),
        ((torch.bfloat16, torch.float16), "auto", torch.float32),
        ((torch.float8_e4m3fn, torch.bfloat16), "auto", torch.bfloat16),
        ((torch.float32, torch.float32), "fp16", torch.float16),
        ((torch.float32, torch.float32), "bfloat16", torch.bfloat16),
    ],
)
def test_the_dtype_holds_all_files_or_is_the_one_asked_for(tmp_path, given, asked, stored):
    paths = [write_lora(tmp_path / f"{n}.safetensors", {Q: pair(2)}, dtype=dtype) for n, dtype in enumerate(given)]
    merge_loras(paths, tmp_path / "out.safetensors", dtype=asked)
    entry = load_lora_state(tmp_path / "out.safetensors").entries[Q]
    assert entry.up.dtype == entry.down.dtype == stored


def test_numbers_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path):
    down, up = pair(2)
    paths = [write_lora(tmp_path / f"{n}.safetensors", {Q: (down, 1e6 * up)}) for n in range(2)]
    with pytest.raises(ConfigError, match=r"to_q of 0.safetensors holds a number that does not fit into torch.float16"):
        merge_loras(paths, tmp_path / "out.safetensors", dtype="fp16")
    assert not list(tmp_path.glob("*out*"))


def test_emitted_alphas_are_the_ranks_and_change_nothing(three, tmp_path):
    merge_loras(three, tmp_path / "plain.safetensors")
    merge_loras(three, tmp_path / "alpha.safetensors", emit_alpha=True)
    entries = load_lora_state(tmp_path / "alpha.safetensors").entries
    assert {entry.alpha for entry in entries.values()} == {6.0, 2.0, 3.0}
    assert not [text for text in inspect_lora(tmp_path / "alpha.safetensors").problems if "alpha" in text]
    plain, alpha = (changes(tmp_path / f"{name}.safetensors") for name in ("plain", "alpha"))
    assert all(torch.equal(plain[layer], alpha[layer]) for layer in plain)


def orthogonal_by_hand(one, two, fraction, ranks):
    """The definition, on full matrices; `ranks` are the effective ones."""
    projected = []
    for own, other, rank in ((one, two, ranks[1]), (two, one, ranks[0])):
        v = torch.linalg.svd(other.double())[2][: round(fraction * rank)]
        projected.append(own.double() - own.double() @ v.T @ v)
    return (projected[0] + projected[1]).float()


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_orthogonal_takes_a_share_of_the_others_own_directions(tmp_path, fraction):
    paths = [write_lora(tmp_path / f"{n}.safetensors", {Q: pair(rank, (40, 30), n)}) for n, rank in enumerate((4, 2))]
    one, two = (changes(path)[Q] for path in paths)
    merge_loras(paths, tmp_path / "out.safetensors", [1.0, 0.5], "orthogonal", fraction)
    expected = orthogonal_by_hand(one, 0.5 * two, fraction, (4, 2))
    torch.testing.assert_close(changes(tmp_path / "out.safetensors")[Q], expected, rtol=1e-4, atol=1e-4)
    # most of the content stays: k counts directions that are used, not all 30 of the layer
    assert expected.norm() > 0.7 * (one + 0.5 * two).norm()


def test_directions_that_a_lora_does_not_use_are_not_counted(tmp_path):
    a, b = pair(4, (40, 30), 1)
    b[:, 2:] = 0  # of rank 2 in truth
    paths = [
        write_lora(tmp_path / "0.safetensors", {Q: (a, b)}),
        write_lora(tmp_path / "1.safetensors", {Q: pair(3, (40, 30), 2)}),
    ]
    one, two = (changes(path)[Q] for path in paths)
    merge_loras(paths, tmp_path / "out.safetensors", method="orthogonal", k_fraction=0.5)
    torch.testing.assert_close(
        changes(tmp_path / "out.safetensors")[Q], orthogonal_by_hand(one, two, 0.5, (2, 3)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("mode", "rank"), [("sum", 6), ("max", 4), ("min", 2)])
def test_rank_modes_keep_the_best_of_that_rank_and_say_what_is_lost(tmp_path, mode, rank):
    paths = [write_lora(tmp_path / f"{n}.safetensors", {Q: pair(rank, (40, 30), n)}) for n, rank in enumerate((4, 2))]
    merge_loras(paths, tmp_path / "sum.safetensors", method="orthogonal")
    made = merge_loras(paths, tmp_path / "out.safetensors", method="orthogonal", rank_mode=mode)
    whole, cut = (changes(tmp_path / f"{name}.safetensors")[Q] for name in ("sum", "out"))
    assert made.ranks == [rank]
    values = torch.linalg.svdvals(whole)
    lost = float(values[rank:6].square().sum().sqrt() / values.norm())
    assert float((whole - cut).norm() / whole.norm()) == pytest.approx(lost, abs=1e-5)
    assert made.error.get("all", 0.0) == pytest.approx(lost, abs=1e-5)


def test_orthogonal_copies_layers_of_one_file_and_never_exceeds_a_layer(tmp_path):
    wide = {Q: pair(8, (6, 5), 1), K: pair(2, seed=2)}
    paths = [
        write_lora(tmp_path / "0.safetensors", wide),
        write_lora(tmp_path / "1.safetensors", {Q: pair(8, (6, 5), 3)}),
    ]
    made = merge_loras(paths, tmp_path / "out.safetensors", [3.0, 1.0], "orthogonal")
    assert made.ranks == [2, 5]
    torch.testing.assert_close(changes(tmp_path / "out.safetensors")[K], 3 * changes(paths[0])[K])


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        (["a"], {}, "two LoRAs or more, and 1"),
        (["a", "b", "c"], {"method": "orthogonal"}, "orthogonal merge takes two LoRAs, and 3"),
        (["a", "b"], {"multipliers": [1, 2, 3]}, "3 multipliers were given for 2"),
        (["a", "b"], {"multipliers": [float("nan")]}, "no number from -100 to 100"),
        (["a", "b"], {"multipliers": [0.0]}, "would do nothing"),
        (["a", "b"], {"multipliers": [1.0, 0.0]}, r"The multiplier of b\.safetensors is 0.* Leave it out"),
        (["a", "b", "a"], {}, "a.safetensors is named twice. Name it once, with a number that is twice as high"),
        (["a", "b"], {"method": "add"}, "method is 'add'. Choose concat or orthogonal"),
        (["a", "b"], {"rank_mode": "mean"}, "rank_mode is 'mean'"),
        (["a", "b"], {"k_fraction": 2}, "k_fraction is 2. It is a share"),
        (["a", "b"], {"rank_mode": "max"}, "count for the method orthogonal alone"),
        (["a", "b"], {"dtype": "int8"}, "dtype is 'int8'"),
        (["a", "other size"], {}, r"other size.safetensors is for another model than a.safetensors: .*to_q is 8x10"),
        (["a", "flux"], {}, "flux.safetensors is a LoRA of Flux"),
        (
            ["a", "dora"],
            {},
            r"dora.safetensors is no plain LoRA: it holds DoRA \(1 layer\). Merging works",
        ),
        (["ic1", "ic2"], {}, "reference_downscale_factor differs: 1 in ic1.safetensors, 2 in ic2.safetensors"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(three, tmp_path, files, given, message):
    write_lora(tmp_path / "other size.safetensors", {Q: pair(2, (8, 10))})
    write_lora(tmp_path / "flux.safetensors", {"double_blocks.0.img_attn.qkv": pair(2)})
    for factor in (1, 2):
        about = {"reference_downscale_factor" if factor == 1 else "ss_reference_downscale_factor": str(factor)}
        write_lora(tmp_path / f"ic{factor}.safetensors", {Q: pair(2)}, about)
    a, b = pair(2)
    at = f"diffusion_model.{Q}."
    dora = {f"{at}lora_A.weight": a, f"{at}lora_B.weight": b, f"{at}dora_scale": torch.ones(12, 1)}
    save_file(dora, tmp_path / "dora.safetensors")
    with pytest.raises(ConfigError, match=message):
        merge_loras([tmp_path / f"{name}.safetensors" for name in files], tmp_path / "out.safetensors", **given)
    assert not (tmp_path / "out.safetensors").exists()


def test_lokr_is_refused_by_name(three, tmp_path):
    save_file({f"diffusion_model.{Q}.lokr_w1": torch.ones(2, 2)}, tmp_path / "k.safetensors")
    with pytest.raises(CheckpointError, match=r"k.safetensors is no plain LoRA but LoKr \(1 layer\)"):
        merge_loras([three[0], tmp_path / "k.safetensors"], tmp_path / "out.safetensors")


def test_versions_that_differ_are_named(tmp_path):
    paths = [
        write_lora(tmp_path / f"{version}.safetensors", {Q: pair(2)}, {"ss_ltx_version": version})
        for version in ("2.0", "2.3")
    ]
    said = []
    events = Events()
    events.message = lambda text, level="info": said.append((level, text))
    made = merge_loras(paths, tmp_path / "out.safetensors", events=events)
    assert said[0][0] == "warning"
    assert "2.0.safetensors (LTX-2.0), 2.3.safetensors (LTX-2.3)" in said[0][1] == made.notes[0]
    assert "version" not in metadata(tmp_path / "out.safetensors")


def test_nothing_is_written_over_unless_told(three, tmp_path):
    out = tmp_path / "out.safetensors"
    merge_loras(three, out)
    merge_loras(three, out)  # the same again is no other
    before = out.read_bytes()
    with pytest.raises(ConfigError, match="is there already and holds something else"):
        merge_loras(three, out, [0.5])
    flipped = bytearray(before)
    flipped[-1] ^= 1
    out.write_bytes(flipped)
    told = "made in the same way of LoRAs of these names, and its numbers are others.*damaged.*delete it first"
    with pytest.raises(ConfigError, match=told):
        merge_loras(three, out)
    merge_loras(three, out, replace=True)
    assert out.read_bytes() == before
    with pytest.raises(ConfigError, match="written over itself"):
        merge_loras(three, three[0], replace=True)
    with pytest.raises(ConfigError, match=r"must end in .safetensors"):
        merge_loras(three, tmp_path / "out.pt")
    assert out.read_bytes() == before
    merge_loras(three, out, [0.5], replace=True)
    assert out.read_bytes() != before


def test_a_stop_leaves_nothing(three, tmp_path):
    events = Events()
    events.should_stop = lambda: True
    with pytest.raises(Stopped):
        merge_loras(three, tmp_path / "out.safetensors", events=events)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "c.safetensors"]


def test_the_command_line_merges(three, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    files = [str(path) for path in three]
    assert main(["lora", "merge", *files, "--multiplier", "1", "-0.5", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("out.safetensors: 3 layers (2 video, 1 audio), ranks 2 to 6\n")
    torch.testing.assert_close(changes(out)[K], changes(three[0])[K])
    more = ["--method", "orthogonal", "--k-fraction", "0.25", "--rank-mode", "max", "--emit-alpha", "--dtype", "fp32"]
    assert main(["lora", "merge", *files[:2], *more, "--json", "--replace", "--device", "cpu", "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"] == [2, 3]
    assert metadata(out)["orthogonal_k_fraction"] == "0.25"
    assert main(["lora", "merge", *files, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
