"""Judges, against numbers made by hand."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stillroom.measure import Proof, accuracy, agreement, calibration_error, predict


def test_accuracy_and_agreement_count():
    logits = torch.eye(4)
    said = nn.Identity()
    assert accuracy(said, TensorDataset(logits, torch.tensor([0, 1, 2, 0]))) == 75.0
    other = nn.Linear(4, 4, bias=False)
    other.weight.data = torch.eye(4)[[1, 0, 2, 3]]
    assert agreement(said, other, TensorDataset(logits, torch.zeros(4))) == 50.0


def test_predict_is_in_eval_mode_and_puts_the_mode_back():
    net = nn.Dropout(0.9)
    x = torch.ones(600, 3)
    assert torch.equal(predict(net, x), x) and net.training


def test_calibration_error_of_known_cases():
    sure = torch.tensor([[50.0, 0.0]] * 4)
    assert calibration_error(sure, torch.tensor([0, 0, 0, 0])) == pytest.approx(0.0, abs=1e-4)
    assert calibration_error(sure, torch.tensor([0, 0, 1, 1])) == pytest.approx(50.0, abs=1e-4)
    p = torch.tensor([[0.7, 0.3]] * 10).log()                       # says 70 %, is right 7 times of ten
    assert calibration_error(p, torch.tensor([0] * 7 + [1] * 3)) == pytest.approx(0.0, abs=1e-4)
    assert calibration_error(p, torch.tensor([0] * 4 + [1] * 6)) == pytest.approx(30.0, abs=1e-4)


def test_calibration_error_equals_the_sum_written_out():
    torch.manual_seed(0)
    logits, y = torch.randn(500, 5) * 2, torch.randint(5, (500,))
    p, said = logits.softmax(-1).max(-1)
    total = 0.0
    for b in range(15):
        inside = (p > b / 15) & (p <= (b + 1) / 15)
        if inside.any():
            total += inside.sum().item() / 500 * abs((said == y)[inside].float().mean().item() - p[inside].mean().item())
    assert calibration_error(logits, y) == pytest.approx(100 * total, abs=1e-3)


@pytest.mark.parametrize(("ours", "beats", "better", "holds"), [
    (2, 1, "higher", True), (1, 1, "higher", False), (1, 2, "lower", True)])
def test_a_proof_holds_when_it_is_strictly_better(ours, beats, better, holds):
    assert Proof(ours, beats, "x", better).holds is holds
