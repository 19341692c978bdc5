"""The archive, variation, the ring of transitions and whole episodes, each against its definition in loops."""

import pytest
import torch

from stillroom import saved
from stillroom.errors import Refused
from stillroom.parts.archive import Archive, cells, isoline
from stillroom.parts.episodes import Worlds
from stillroom.parts.replay import Replay


def test_every_cell_keeps_the_fittest_that_came_as_a_loop_would_have_it():
    torch.manual_seed(0)
    archive, held = Archive(torch.rand(6, 2), 3), {}
    for _ in range(5):
        weights, fitness, descriptor = torch.randn(20, 3), torch.randint(6, (20,)).float(), torch.rand(20, 2)
        before, added = archive.fitness.clone(), archive.add(weights, fitness, descriptor)
        for i in range(20):
            cell = (descriptor[i] - archive.centres).norm(dim=1).argmin().item()
            if cell not in held or fitness[i] > held[cell][0]:
                held[cell] = fitness[i], descriptor[i], weights[i]
        assert (archive.fitness >= before).all()
        assert set(archive.filled.tolist()) == set(held) and int(added.sum()) <= len(held)
        for cell, (best, where, who) in held.items():
            assert archive.fitness[cell] == best
            assert torch.equal(archive.descriptor[cell], where) and torch.equal(archive.elites[cell], who)


def test_of_equals_the_one_that_was_there_stays():
    archive = Archive(torch.tensor([[0.2], [0.8]]), 1)
    assert archive.add(torch.tensor([[1.0], [2.0]]), torch.ones(2), torch.tensor([[0.1], [0.15]])).tolist() == [True, False]
    assert archive.add(torch.tensor([[3.0]]), torch.ones(1), torch.tensor([[0.2]])).tolist() == [False]
    assert archive.elites[0] == 1 and archive.filled.tolist() == [0]
    drawn, where = archive.draw(5)
    assert (drawn == 1).all() and torch.allclose(where, torch.tensor(0.1))


def test_a_saved_archive_is_the_same_archive(tmp_path):
    archive = Archive(torch.rand(4, 2), 3)
    archive.add(torch.randn(5, 3), torch.rand(5), torch.rand(5, 2))
    saved.save({"archive": archive}, tmp_path)
    again = saved.load(tmp_path)["archive"]
    assert all(map(torch.equal, archive.buffers(), again.buffers()))


def test_cells_are_of_about_one_size():
    torch.manual_seed(0)
    centres = cells(32, 2, 10_000)
    assert ((centres > 0) & (centres < 1)).all()
    share = torch.cdist(torch.rand(20_000, 2), centres).argmin(1).bincount(minlength=32) / 20_000
    assert (share > 0.4 / 32).all() and (share < 2 / 32).all()


def test_twins_have_children_spread_evenly_and_others_along_their_line():
    torch.manual_seed(0)
    one = torch.randn(1, 4).expand(20_000, -1)
    spread = (isoline(one, one, 0.1, 5.0) - one).T.cov()
    assert torch.allclose(spread, 0.01 * torch.eye(4), atol=1e-3)
    other = one + torch.tensor([2.0, 0, 0, 0])
    spread = (isoline(one, other, 0.0, 0.05) - one).T.cov()
    assert spread[0, 0].item() == pytest.approx(0.01, rel=0.05) and spread[1:].abs().max() < 1e-10


def test_the_ring_holds_the_last_and_draws_whole_transitions():
    ring = Replay(5, x=2, y=0)
    for start, count in ((0, 3), (3, 4), (7, 12)):                      # the last are more than there is place for
        n = torch.arange(start, start + count).float()
        ring.add(x=torch.stack([n, -n], 1), y=n)
        last = set(range(max(0, start + count - 5), start + count))
        drawn = ring.draw(40, 10)
        assert set(drawn.y.flatten().tolist()) == last and len(ring) == len(last)
        assert torch.equal(drawn.x, torch.stack([drawn.y, -drawn.y], -1))


# --- gymnasium -------------------------------------------------------------------------------------------------------

def worlds(name="Hopper-v5", **named):
    pytest.importorskip("mujoco", reason="the extra `rl` is not installed")
    return Worlds(name, lambda env, info: [info["x_position"]], [-1.0], [1.0], **{"horizon": 30, "side": 3} | named)


def push(obs, rows):
    return torch.stack([(rows / 4 - 0.5), obs[:, 0].tanh(), (0.3 * rows).cos()], 1)


@pytest.mark.parametrize("last", [True, False])
def test_an_episode_is_that_of_a_plain_loop(last):
    import gymnasium

    task = worlds(last=last)
    torch.manual_seed(0)
    played = task.play(push, 5)
    torch.manual_seed(0)
    seeds = torch.randint(2**31, (5,)).tolist()
    env = gymnasium.make("Hopper-v5")
    for i in range(5):
        obs, total, moments = env.reset(seed=seeds[i])[0], 0.0, []
        for t in range(30):
            action = push(torch.as_tensor(obs, dtype=torch.float32)[None], torch.tensor([i]))[0]
            assert torch.allclose(played.obs[i, t], torch.as_tensor(obs).float()), (i, t)
            obs, reward, ended, _, info = env.step(action.numpy())
            total, moments = total + reward, [*moments, info["x_position"]]
            assert played.done[i, t] == ended and played.alive[i, t] == 1
            assert torch.allclose(played.next_obs[i, t], torch.as_tensor(obs).float())
            if ended:
                break
        assert played.alive[i].sum() == t + 1
        assert played.fitness[i].item() == pytest.approx(total, rel=1e-4)
        where = moments[-1] if last else sum(moments) / len(moments)
        assert played.descriptor[i].item() == pytest.approx((where + 1) / 2, abs=1e-5)
    assert played.done.sum() > 0, "no hopper fell: nothing was tested"


def test_no_episode_reaches_into_another():
    task = worlds()
    torch.manual_seed(3)
    first = task.play(push, 4)
    task.play(lambda obs, rows: torch.ones(len(obs), 3), 2)
    torch.manual_seed(3)
    again = task.play(push, 4)
    assert torch.equal(first.obs, again.obs) and torch.equal(first.reward, again.reward)


def test_an_environment_without_continuous_actions_is_refused():
    pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")
    with pytest.raises(Refused, match="no boxes of numbers"):
        Worlds("CartPole-v1", lambda env, info: [0.0], [0.0], [1.0], side=1)
