"""Sharing the card with ComfyUI's models, on a card of 16 GB that is only counted."""

from __future__ import annotations

import pytest
import torch
from fake_comfy import LoadedModel, ModelPatcher

GB = 2**30
CARD = torch.device("cuda", 0)


class Other(ModelPatcher):
    """A model of ComfyUI's that holds `size` bytes of the card."""

    def __init__(self, size):
        super().__init__(torch.nn.Module(), CARD, torch.device("cpu"), size)
        self.held = size

    def model_size(self):
        return self.size

    def loaded_size(self):
        return self.held

    def partially_load(self, device, extra):
        self.held = self.size
        return self.size

    def partially_unload(self, device, amount):
        return 0

    def detach(self):
        self.held = 0


class Owner:
    """Stands for the trainer: remembers where it was moved."""

    def __init__(self):
        self.moves = []

    def to(self, device):
        self.moves.append(torch.device(device))


@pytest.fixture
def events(nodes):
    return nodes.host.ComfyEvents("7")


@pytest.fixture
def other(comfy):
    model = Other(10 * GB)
    comfy.loaded.insert(0, LoadedModel(model))
    return model


def test_room_is_made_by_unloading_what_comfyui_holds(events, comfy, other):
    events.make_room(4 * GB, CARD)
    assert other.held == 10 * GB  # 6 GB are free: enough for 4 and what inference needs
    events.make_room(8 * GB, CARD)
    assert other.held == 0
    assert comfy.emptied > 0


def test_ram_that_comfyui_has_locked_or_keeps_is_asked_for_where_it_can_be(events, comfy, monkeypatch):
    import comfy.model_management as management

    asked = []
    events.make_room(GB, CARD, 7 * GB)  # this ComfyUI gives back no RAM

    def newer(memory_required, device, keep_loaded=(), for_dynamic=False, pins_required=0, ram_required=0):
        asked.append((pins_required, ram_required))

    monkeypatch.setattr(management, "free_memory", newer)
    events.make_room(GB, CARD, 7 * GB)
    events.make_room(GB, CARD)
    assert asked == [(7 * GB, 7 * GB), (0, 0)]


def test_what_comfyui_leaves_free_and_lets_be_locked_is_kept(events, comfy, monkeypatch):
    import comfy.model_management as management

    assert events.may_lock() is None
    assert events.kept_free(torch.device("cpu")) is None
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 2 * GB, raising=False)
    monkeypatch.setattr(management, "MAX_PINNED_MEMORY", 20 * GB, raising=False)
    monkeypatch.setattr(management, "TOTAL_PINNED_MEMORY", 8 * GB, raising=False)
    assert (events.kept_free(CARD), events.may_lock()) == (2 * GB, 12 * GB)
    events.locked(5 * GB)
    assert (management.TOTAL_PINNED_MEMORY, events.may_lock()) == (13 * GB, 12 * GB)
    events.locked(3 * GB)
    assert management.TOTAL_PINNED_MEMORY == 11 * GB
    events.close()
    assert management.TOTAL_PINNED_MEMORY == 8 * GB


def test_what_the_trainer_holds_is_counted_and_not_unloaded_for_itself(events, comfy):
    owner = Owner()
    events.holding(owner, 12 * GB, CARD)
    assert [entry.model.loaded_size() for entry in comfy.loaded] == [12 * GB]
    events.make_room(3 * GB, CARD)
    assert owner.moves == []
    assert comfy.loaded[0].model.loaded_size() == 12 * GB


def test_comfyui_can_take_the_memory_back_and_the_trainer_moves_to_ram(events, comfy):
    import comfy.model_management as management

    owner = Owner()
    events.holding(owner, 12 * GB, CARD)
    management.load_models_gpu([Other(10 * GB)])
    assert owner.moves == []  # it came with its bytes on the card already
    newcomer = Other(10 * GB)
    newcomer.held = 0
    management.load_models_gpu([newcomer])
    assert owner.moves == [torch.device("cpu")]


def test_holding_more_of_the_same_owner_updates_the_count(events, comfy):
    owner = Owner()
    events.holding(owner, 2 * GB, CARD)
    events.holding(owner, 5 * GB, CARD)
    assert [entry.model.model_size() for entry in comfy.loaded] == [5 * GB]


def test_nothing_of_ours_stays_on_the_list_after_the_job(events, comfy, other):
    events.holding(Owner(), 2 * GB, CARD)
    second = Owner()
    events.holding(second, 1 * GB, CARD)
    events.holding(second, 0, CARD)
    assert len(comfy.loaded) == 2
    events.close()
    assert [entry.model for entry in comfy.loaded] == [other]


def test_the_cpu_needs_no_room(events, comfy, other):
    events.make_room(100 * GB, torch.device("cpu"))
    events.holding(Owner(), 100 * GB, torch.device("cpu"))
    assert other.held == 10 * GB
    assert len(comfy.loaded) == 1
