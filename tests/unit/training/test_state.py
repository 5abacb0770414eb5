"""A state comes back as it was, and a damaged one says so."""

import pytest
import torch

from ltx2_train.errors import RunError
from ltx2_train.files import write_tensors
from ltx2_train.training.state import (
    list_states,
    load_state,
    random_state,
    read_tree,
    restore_random_state,
    save_state,
    state_name,
)
from ltx2_train.weights.reader import TensorFile


def test_nested_content_comes_back_equal(tmp_path):
    content = {
        "step": 7,
        "place": [1, 2],
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}, 1: {}},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "foreach": None, "params": [0, 1]}],
        },
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
    path = save_state(tmp_path / state_name(7), content)
    back = load_state(path)
    assert back["place"] == [1, 2]
    assert list(back["optimizer"]["state"]) == [0, 1]
    assert back["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
    assert isinstance(back["optimizer"]["param_groups"][0]["betas"], tuple)
    assert torch.equal(back["optimizer"]["state"][0]["exp_avg"], content["optimizer"]["state"][0]["exp_avg"])
    assert torch.equal(back["bytes"], content["bytes"])


def test_states_are_listed_by_step(tmp_path):
    for step in (250, 30, 1000):
        save_state(tmp_path / state_name(step), {"step": step})
    (tmp_path / "state_x.safetensors").write_bytes(b"")
    assert [step for step, _ in list_states(tmp_path)] == [30, 250, 1000]


@pytest.mark.parametrize("left", [0, 5, 30, 500])
def test_a_cut_off_state_is_refused_with_its_name_and_not_as_a_download(tmp_path, left):
    path = save_state(tmp_path / state_name(1), {"a": torch.zeros(1000)})
    assert read_tree(path) == {"a": None}
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(RunError, match=r"state_00000001.*damaged") as caught:
        load_state(path)
    with pytest.raises(RunError, match="damaged"):
        read_tree(path)
    assert f"{left} bytes" in str(caught.value)
    assert "download" not in str(caught.value)


def test_what_is_no_state_is_called_so(tmp_path):
    write_tensors(tmp_path / "s.safetensors", {"a": torch.zeros(1)}, {"format": "other"})
    with pytest.raises(RunError, match="not a training state"):
        load_state(tmp_path / "s.safetensors")
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"neither tensors nor anything else")
    with pytest.raises(RunError, match="does not begin as a safetensors file"):
        load_state(path)


def test_the_generator_goes_on_where_it_was(tmp_path):
    saved = save_state(tmp_path / "s.safetensors", {"random": random_state()})
    first = torch.rand(3)
    restore_random_state(load_state(saved)["random"])
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("place", ["tensor", "tree"])
def test_a_byte_that_changed_is_seen(tmp_path, place):
    path = save_state(
        tmp_path / state_name(1), {"a": torch.arange(1000), "word": "needle", "b": torch.ones(3).bfloat16()}
    )
    assert load_state(path)["b"].dtype == torch.bfloat16
    data = bytearray(path.read_bytes())
    data[-2000 if place == "tensor" else data.index(b"needle")] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="damaged.* other bytes than were written"):
        load_state(path)


def test_states_of_older_versions_have_no_check_sums(tmp_path):
    path = save_state(tmp_path / state_name(1), {"step": 1, "a": torch.arange(5)})
    with TensorFile(path) as file:
        said = {name: file.metadata[name] for name in ("format", "tree")}
        write_tensors(path, {"a": file.read("a")}, said)
    assert torch.equal(load_state(path)["a"], torch.arange(5))


def test_a_state_under_the_name_of_another_step_is_called_so(tmp_path):
    path = save_state(tmp_path / state_name(12), {"step": 12}).rename(tmp_path / state_name(16))
    for read in (load_state, read_tree):
        with pytest.raises(RunError, match=r"saved after step 12, not 16. Name it state_00000012.safetensors"):
            read(path)
