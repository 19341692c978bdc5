"""Running statistics against the same numbers computed at once, in float64."""

import torch

from stillroom.parts.stats import ReturnScale, RunningMean


def test_pieces_of_any_size_give_the_statistics_of_the_whole():
    x = 3 + 2 * torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    seen = RunningMean((4,))
    for part in (x[:1], x[1:8], x[8:8], x[8:700].view(2, 346, 4), x[700:]):
        seen.update(part)
    assert int(seen.count) == 1000
    torch.testing.assert_close(seen.mean.double(), x.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen.var.double(), x.double().var(0, correction=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen.std, seen.var.sqrt())


def test_far_from_zero_it_does_not_cancel():
    x = 1e4 + torch.randn(4096, generator=torch.Generator().manual_seed(0))
    seen = RunningMean()
    for part in x.split(7):
        seen.update(part)
    assert abs(seen.var.item() / x.double().var(correction=0).item() - 1) < 2e-2


def test_normalising_gives_zero_and_one_and_keeps_to_the_limit():
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.0]) + 5
    seen = RunningMean((3,))
    seen.update(x)
    z = seen.normalise(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    assert seen.normalise(torch.full((1, 3), 1e6), 5.0).max() == 5
    assert seen.normalise(torch.full((1, 3), -1e6), 5.0).min() == -5


def test_before_anything_was_seen_it_changes_nothing():
    x = torch.randn(4, 2)
    torch.testing.assert_close(RunningMean((2,)).normalise(x), x)


def test_returns_are_scaled_by_the_deviation_of_their_discounted_sum():
    reward = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    scale, sums, running = ReturnScale(3, gamma=0.9), [], torch.zeros(3, dtype=torch.float64)
    for r in reward.double():                        # Burda et al. 2018, sec. 2.4, written out
        running = 0.9 * running + r
        sums.append(running)
    torch.testing.assert_close(scale(reward).double(), reward.double() / torch.stack(sums).std(correction=0), rtol=1e-5, atol=0)
    torch.testing.assert_close(scale.running.double(), running, rtol=1e-5, atol=0)


def test_two_halves_of_a_stream_are_counted_as_one():
    reward = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    whole, halves = ReturnScale(2), ReturnScale(2)
    whole(reward)
    halves(reward[:17])
    halves(reward[17:])
    torch.testing.assert_close(whole.seen.std, halves.seen.std, rtol=1e-5, atol=0)
    torch.testing.assert_close(whole.running, halves.running)


def test_a_constant_stream_settles():
    scale, last = ReturnScale(1), []
    for _ in range(60):
        last.append(scale(torch.ones(100, 1)).mean().item())
    assert abs(last[-1] / last[-2] - 1) < 0.02


def test_the_scale_of_the_rewards_does_not_matter():
    reward = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ReturnScale(4)(reward), ReturnScale(4)(1000 * reward), rtol=1e-4, atol=0)


def test_state_goes_on_where_it_was():
    reward = torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
    one = ReturnScale(2)
    one(reward[:30])
    other = ReturnScale(2)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(reward[30:]), other(reward[30:]))
