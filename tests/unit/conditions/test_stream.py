"""What the model is shown of a stream takes no memory that grows with the square of its tokens."""

import dataclasses

import torch

from ltx2_train.conditions.reference import Lead, audio_lead
from ltx2_train.conditions.settings import AudioReference
from ltx2_train.conditions.stream import as_modality
from ltx2_train.models.positions import audio_positions
from ltx2_train.shapes import AudioLatentShape

STEPS = 8000


def shown(learned=None, given=None, reference=None):
    return as_modality(
        torch.zeros(2, STEPS, 128),
        torch.ones(2),
        audio_positions(AudioLatentShape(STEPS)),
        torch.zeros(2, 4, 8),
        given=given,
        learned=learned,
        reference=reference,
    )


def test_masks_are_rows_of_tokens_and_never_squares():
    learned = torch.ones(2, STEPS, dtype=torch.bool)
    learned[1, -5:] = False
    given = torch.arange(STEPS).expand(2, -1) < 100
    lead = audio_lead(torch.zeros(8, 50, 16), AudioReference(hide_from_video=True, hide_text=True))
    lead = dataclasses.replace(lead, tokens=lead.tokens.expand(2, -1, -1))
    modality = shown(learned, given, lead)
    assert modality.attention_mask.shape == (2, 1, STEPS + 50)
    assert modality.attention_mask[1].sum() == STEPS + 50 - 5  # nobody attends to padding, all to the reference
    masks = (modality.attention_mask, modality.given)
    assert sum(mask.numel() * mask.element_size() for mask in masks) < 100_000
    assert modality.given[:, : 50 + 100].all()
    assert (modality.unseen, modality.textless) == (50, 50)  # left out of the products, so neither has a mask


def test_without_conditions_nothing_is_stored():
    plain = shown()
    assert plain.attention_mask is plain.given is plain.timesteps is plain.lead is None


def test_the_first_frame_of_the_target_is_marked_behind_its_reference_and_sound_never():
    lead = Lead(torch.zeros(2, 50, 128), torch.zeros(1, 3, 50, 2), (5, 2, 5))
    arguments = (torch.zeros(2, 12, 128), torch.ones(2), torch.zeros(1, 3, 12, 2), torch.zeros(2, 4, 8))
    assert as_modality(*arguments, first=6).single == slice(0, 6)
    assert as_modality(*arguments, first=6, reference=lead).single == slice(50, 56)
    assert as_modality(*arguments).single is None
