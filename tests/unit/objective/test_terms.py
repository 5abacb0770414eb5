"""The table of loss terms: what is minimised, and what is logged of it."""

import torch

from ltx2_train.objective.terms import Term, total


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, requires_grad=True)


def test_the_loss_is_the_weighted_sum_sample_by_sample():
    video, audio = values(1.0, 2.0, 3.0), values(10.0, 20.0, 30.0)
    terms = {"video": Term(video), "audio": Term(audio, [0.5, 0.0, 2.0]), "more": Term(values(4.0, 4.0, 4.0), 0.25)}
    loss = total(terms)
    assert loss.tolist() == [1 + 5 + 1, 2 + 0 + 1, 3 + 60 + 1]
    loss.sum().backward()
    assert video.grad is not None
    assert audio.grad is not None
    assert video.grad.tolist() == [1, 1, 1]
    assert audio.grad.tolist() == [0.5, 0.0, 2.0]


def test_a_weight_may_be_a_tensor_of_another_kind():
    assert Term(values(1.0, 2.0), torch.tensor([2, 3])).weighted().tolist() == [2.0, 6.0]


def test_what_is_measured_has_no_weight_no_gradient_and_only_the_samples_of_its_rows():
    term = Term(values(1.0, 2.0, 3.0), 7.0, rows=torch.tensor([0, 2]))
    measured = term.measured()
    assert measured is not None
    assert measured.tolist() == [1.0, 3.0]
    assert not measured.requires_grad
    assert term.weighted().tolist() == [7.0, 14.0, 21.0], "rows are for the record, not for the gradient"
    assert Term(values(1.0), rows=torch.tensor([], dtype=torch.long)).measured() is None
