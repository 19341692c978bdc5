"""DCG-MAP-Elites: its reward, target and gradient offspring against their formulas; the judges of an archive by hand."""

import copy
import math
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stillroom.arenas import arm
from stillroom.arenas.plane import HORIZON, Plane, moved, plane
from stillroom.measure.quality_diversity import best, chart, coverage, qd_score, reproduced, shown
from stillroom.models.policies import Critics, Steering
from stillroom.parts import episodes, td3
from stillroom.parts.archive import Archive, alike
from stillroom.parts.episodes import Episodes, Worlds
from stillroom.parts.flat import flat_call, flatten
from stillroom.parts.replay import Replay
from stillroom.recipes.control.dcg_map_elites import trial
from stillroom.run import Run

FAST = replace(trial()[0], steps=3, steps_critic=4, steps_elite=3, bred=6, gradient=6, active=3, cells=16, batch=8)


def part(count=7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    fields = {"obs": 4, "action": 2, "next_obs": 4, "reached": 2, "asked": 2}
    found = {name: torch.rand(count, width, generator=draw) for name, width in fields.items()}
    return SimpleNamespace(**found, reward=torch.rand(count, generator=draw), done=(torch.arange(count) % 2).float())


def filled(size=50):
    ring, p = Replay(size, obs=4, action=2, reward=0, next_obs=4, done=0, reached=2, asked=2), part(size)
    ring.add(**vars(p))
    return ring


# --- the critic ------------------------------------------------------------------------------------------------------

def target(p, critic, actor, length=0.1, **named):
    near = alike(p.reached, p.asked, length)
    return td3.target(critic, actor, p.reward * near, p.done, p.next_obs, p.asked, **named)


def test_the_target_is_the_formula():
    torch.manual_seed(0)
    critic, actor, p = Critics(8, 16), Steering(6, 2, 16), part()
    found = target(p, critic, actor, gamma=0.9, noise=0.0)
    for i in range(7):
        near = math.exp(-math.dist(p.reached[i].tolist(), p.asked[i].tolist()) / 0.1)
        action = actor(torch.cat([p.next_obs[i], p.asked[i]]))
        after = min(critic(torch.cat([p.next_obs[i], action, p.asked[i]])).tolist())
        assert found[i].item() == pytest.approx(near * p.reward[i].item() + 0.9 * (1 - p.done[i].item()) * after, abs=1e-6)


def test_what_is_reached_counts_in_full_and_at_distance_L_one_eth():
    p, nothing, actor = part(), Critics(8, 16), Steering(6, 2, 8)
    p.done.fill_(1)
    p.reached = p.asked.clone()
    assert torch.allclose(target(p, nothing, actor, 0.25), p.reward)
    p.reached[:, 1] += 0.25
    assert torch.allclose(target(p, nothing, actor, 0.25), p.reward / math.e)
    assert torch.equal(target(p, nothing, actor, math.inf), p.reward)            # that of PGA-MAP-Elites


def test_the_targets_noise_and_its_action_are_bounded():
    seen = []

    class Looks(Critics):
        def forward(self, x):
            seen.append(x[:, 4:6])
            return super().forward(x)

    class Still(nn.Module):
        def forward(self, x):
            return torch.tensor([0.0, 0.9]).expand(len(x), 2)

    target(part(500), Looks(8, 8), Still(), noise=5.0, limit=0.5)
    assert seen[0][:, 0].abs().max() == 0.5 and seen[0][:, 0].std() > 0.3
    assert seen[0][:, 1].max() == 1.0 and seen[0][:, 1].min() == pytest.approx(0.4)


def test_the_actor_descends_what_the_first_critic_says_of_its_action():
    critic, actor, p = Critics(8, 8), Steering(6, 2, 8), part()
    said = [critic.both[0](torch.cat([o, actor(torch.cat([o, d])), d])) for o, d in zip(p.obs, p.asked, strict=True)]
    assert td3.regret(critic, actor, p.obs, p.asked).item() == pytest.approx(-torch.cat(said).mean().item(), abs=1e-6)


def test_without_conditions_no_network_sees_a_descriptor():
    """Of two networks that differ only in what they make of descriptors, the same is made."""
    found = []
    for scale in (1.0, 100.0):
        actors = plane(0).actors
        for net, at in ((actors["actor"][0], slice(4, 6)), (actors["critic"].both[0][0], slice(6, 8)),
                        (actors["critic"].both[1][0], slice(6, 8))):
            net.weight.data[:, at] *= scale
        archive, _ = replace(FAST, conditioned=False)(Run(), **actors)
        found.append((archive.elites, actors["actor"][0].weight[:, :4]))
    assert all(map(torch.equal, *found))


# --- offspring -------------------------------------------------------------------------------------------------------

def test_a_critic_that_does_not_see_the_action_changes_no_elite():
    class Blind(Critics):
        def forward(self, x):
            return super().forward(torch.cat([x[..., :4], 0 * x[..., 4:6], x[..., 6:]], -1))

    policy = Steering(4, 2, 8)
    elites = torch.randn(5, len(flatten(policy)))
    assert torch.equal(FAST.improved(elites.clone(), torch.rand(5, 2), policy, Blind(8, 8), filled()), elites)


def test_gradient_offspring_are_those_of_one_policy_after_another(monkeypatch):
    """Adam on each elite alone, its own descriptor beside its action, weights and buffers of critic and policy untouched."""
    torch.manual_seed(0)
    policy, critic = Steering(4, 2, 8), Critics(8, 8)
    elites, reached, obs = torch.randn(3, len(flatten(policy))), torch.rand(3, 2), torch.rand(3, 8, 4)
    before = copy.deepcopy([policy.state_dict(), critic.state_dict()])
    monkeypatch.setattr(Replay, "draw", lambda self, *shape: SimpleNamespace(obs=obs))
    found = FAST.improved(elites.clone(), reached, policy, critic, filled())
    for i in range(3):
        own = elites[i].clone().requires_grad_()
        opt = torch.optim.Adam([own], lr=FAST.lr_elite)
        for _ in range(3):
            opt.zero_grad()
            action = flat_call(policy, own, obs[i])
            (-critic.both[0](torch.cat([obs[i], action, reached[i].expand(8, 2)], 1)).mean()).backward(inputs=[own])
            opt.step()
        assert torch.allclose(found[i], own, atol=1e-5)
    assert all(torch.equal(x, y) for old, net in zip(before, (policy, critic), strict=True)
               for x, y in zip(old.values(), net.state_dict().values(), strict=True))
    assert all(p.grad is None for p in critic.parameters()) and not found.requires_grad


def test_every_policy_acts_with_its_own_weights():
    policy, obs, rows = Steering(4, 2, 8), torch.rand(4, 4), torch.tensor([5, 0, 0, 3])
    weights = torch.randn(6, len(flatten(policy)))
    alone = torch.stack([flat_call(policy, weights[i], o) for i, o in zip(rows, obs, strict=True)])
    assert torch.allclose(episodes.each(policy, weights, obs, rows), alone, atol=1e-6)


# --- what is remembered ----------------------------------------------------------------------------------------------

def test_only_steps_of_living_episodes_are_remembered_each_with_the_whole_episodes_descriptor():
    n, time = 3, 4
    alive = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    seen = torch.arange(n * (time + 1) * 2.0).view(n, time + 1, 2)
    played = Episodes(seen[:, :-1], torch.zeros(n, time, 1), torch.ones(n, time), seen[:, 1:], torch.zeros(n, time), alive,
                      torch.tensor([[0.1], [0.2], [0.3]]))
    ring = Replay(50, obs=2, action=1, reward=0, next_obs=2, done=0, reached=1, asked=1)
    ring.add(**played.steps(torch.tensor([[0.5], [0.6], [0.7]])))
    held = ring.draw(500)
    assert len(ring) == 7 and played.fitness.tolist() == [4, 1, 2]
    for row, at in (((0.1, 0.5), range(4)), ((0.2, 0.6), [5]), ((0.3, 0.7), [10, 11])):
        own = held.reached[:, 0] == torch.tensor(row[0])
        assert set((held.obs[own, 0] / 2).tolist()) == set(map(float, at))
        assert torch.allclose(held.asked[own], torch.tensor(row[1])) and torch.equal(held.next_obs[own], held.obs[own] + 2)


def test_the_actor_is_asked_for_what_elites_did_and_elites_for_what_they_did(monkeypatch):
    asked = []
    add = Replay.add
    monkeypatch.setattr(Replay, "add", lambda self, **f: asked.append((f["reached"], f["asked"])) or add(self, **f))
    archive, _ = replace(FAST, steps=1, steps_critic=0)(Run(), **plane(0).actors)
    assert torch.equal(*asked[0]) and not torch.equal(*asked[1])
    known = {tuple(row) for row in archive.descriptor[archive.filled].tolist()}
    assert {tuple(row) for row in asked[1][1].tolist()} <= known


def test_without_gradient_and_actor_nothing_is_learnt():
    actors = plane(0).actors
    before = flatten(actors["critic"])
    archive, _ = replace(FAST, bred=12, gradient=0, active=0)(Run(), **actors)
    assert torch.equal(flatten(actors["critic"]), before) and len(archive.filled) > 1


# --- the world and the judges ----------------------------------------------------------------------------------------

def test_walls_and_edges_stop_what_would_cross_them():
    x = torch.tensor([[0.0, 0.19], [0.29, 0.0], [0.29, -0.2], [0.99, 0.5], [0.5, 0.19]])
    v = torch.tensor([[0.0, 0.05], [0.05, 0.01], [0.05, 0.0], [0.05, 0.0], [0.0, 0.05]])
    after, speed = moved(x, v)
    assert torch.allclose(after, torch.tensor([[0.0, 0.19], [0.29, 0.01], [0.34, -0.2], [0.99, 0.5], [0.5, 0.24]]))
    assert torch.allclose(speed, torch.tensor([[0.0, 0.0], [0.0, 0.01], [0.05, 0.0], [0.0, 0.0], [0.0, 0.05]]))


def test_rest_is_the_fittest_of_all_and_ends_where_it_began():
    played = Plane().play(lambda obs, rows: torch.zeros(len(rows), 2), 3)
    assert torch.allclose(played.fitness, torch.tensor(float(HORIZON))) and torch.allclose(played.descriptor, torch.tensor(0.5))


class Mirror:
    """A task of one step: what is done is what is reached; it is worth 1, less how far it is from the middle."""

    size, actions, dims = 1, 2, 2

    def play(self, act, count):
        obs = torch.zeros(count, 1)
        action = act(obs, torch.arange(count))
        reward = 1 - action.norm(dim=1, keepdim=True)
        return Episodes(obs[:, None], action[:, None], reward, obs[:, None], torch.ones(count, 1), torch.ones(count, 1),
                        (action + 1) / 2)


def test_the_judges_by_hand():
    archive = Archive(torch.tensor([[0.1, 0.1], [0.5, 0.5], [0.9, 0.9], [0.1, 0.9]]), 1)
    archive.add(torch.zeros(3, 1), torch.tensor([3.0, -1.0, 2.0]), torch.tensor([[0.5, 0.5], [0.9, 0.9], [0.9, 0.8]]))
    assert qd_score(archive) == 5 and qd_score(archive, -1.0) == 7 and coverage(archive) == 50 and best(archive) == 3
    fitness, error = reproduced(lambda x: 2 * x[:, 1:] - 1, archive, Mirror())
    assert error.abs().max() < 1e-6 and torch.allclose(fitness, torch.tensor([1.0, 0.0]), atol=1e-6)
    assert shown(lambda x: 2 * x[:, 1:] - 1, archive, Mirror()).fitness[1:3].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert shown(lambda x: torch.zeros(len(x), 2), archive, Mirror()).filled.tolist() == [1]
    assert torch.allclose(reproduced(lambda x: torch.zeros(len(x), 2), archive, Mirror())[1], torch.tensor([0.0, 0.5]))


@pytest.mark.slow
def test_one_actor_repeats_the_archive_and_one_that_knows_no_descriptor_does_not():
    """On a plane, seed 10: 0.04 from what was asked; an actor without descriptors 0.35."""
    method = replace(trial()[0], gamma=0.99, follow=0.005, batch=64, steps_critic=30, steps_elite=10)
    found = []
    for one in (method, replace(method, bred=20, gradient=20, active=0, conditioned=False)):
        archive, actor = one(Run(seed=10), **plane(10).actors)
        found.append(reproduced(actor, archive, Plane())[1].mean())
    assert found[0] < found[1] / 3


def test_the_chart_shows_every_cell_where_it_lies_beside_a_scale():
    archive = Archive(torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]]), 1)
    archive.add(torch.zeros(3, 1), torch.tensor([0.0, 2.0, 4.0]), archive.centres[:3])
    seen = chart(archive, 4.0, 20)[0]
    corners = seen[:, [19, 19, 0, 0], [0, 19, 0, 19]].T                         # of the picture, its top row is 0
    assert corners.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert seen.shape == (3, 20, 23) and seen[:, 0, -1].sum() > 1.9 and seen[:, -1, -1].sum() < 0.1


mujoco = pytest.mark.skipif(find_spec("mujoco") is None, reason="the extra `rl` is not installed")


@mujoco
def test_the_trials_arm_is_gymnasiums_own_under_a_twentieth_of_its_force():
    """Its joints and its tip after the same forces, and what they cost."""
    import gymnasium

    task, policy = trial(3)[1].actors["task"], Steering(6, 2, 8)
    torch.manual_seed(5)
    with torch.no_grad():
        played = task.play(lambda obs, rows: 3 * policy(obs), 2)
    torch.manual_seed(5)
    seeds = torch.randint(2**31, (2,)).tolist()
    env = gymnasium.make("Reacher-v5")
    for i, seed in enumerate(seeds):
        env.reset(seed=seed)
        for force in played.action[i].clamp(-1, 1).numpy():
            obs = env.step(0.05 * force)[0]
        joints = torch.tensor([*obs[:4], *(0.2 * obs[6:8])], dtype=torch.float32)
        assert torch.allclose(played.next_obs[i, -1], joints, atol=1e-4) and played.alive.all() and not played.done.any()
        assert torch.allclose(played.descriptor[i], torch.tensor(obs[8:10] + obs[4:6]).float() / 0.42 + 0.5, atol=1e-4)
    assert torch.allclose(played.reward, 1 - played.action.square().mean(-1), atol=1e-4) and played.action.abs().max() < 1


@mujoco
def test_an_episode_ends_when_the_poles_fall():
    """Played side by side as in gymnasium's own loop: as long, as much reward, and the mean of what was described."""
    import gymnasium

    def described(env, info):
        return env.unwrapped.data.qpos[0], abs(env.unwrapped.data.qvel[0])

    task = Worlds("InvertedDoublePendulum-v5", described, [-0.6, 0.0], [0.6, 2.0], horizon=100, side=4)
    policy, env = Steering(9, 1, 8), gymnasium.make("InvertedDoublePendulum-v5")
    torch.manual_seed(5)
    with torch.no_grad():
        played = task.play(lambda obs, rows: policy(obs), 6)
        torch.manual_seed(5)
        for i, seed in enumerate(torch.randint(2**31, (6,)).tolist()):
            (obs, _), ended, earned, moments = env.reset(seed=seed), False, 0.0, []
            while not ended and len(moments) < 100:
                obs, reward, ended, _, _ = env.step(policy(torch.tensor(obs, dtype=torch.float32)).numpy())
                earned += reward
                moments.append(described(env, {}))
            assert played.alive[i].sum() == len(moments) < 100 and played.done[i].sum() == played.done[i, len(moments) - 1] == 1
            assert played.fitness[i].item() == pytest.approx(earned, rel=1e-4)
            x, speed = torch.tensor(moments).mean(0).tolist()
            wanted = torch.tensor([(x + 0.6) / 1.2, speed / 2]).clamp(0, 1)
            assert torch.allclose(played.descriptor[i], wanted.float(), atol=1e-4)


@mujoco
@pytest.mark.parametrize("last", [False, True])
def test_a_real_body_is_played_and_two_runs_are_one(last):
    task = Worlds("HalfCheetah-v5", lambda env, info: [info["x_velocity"], env.unwrapped.data.qpos[1]], [-3.0, -0.5], [3.0, 0.5],
                  horizon=10, last=last, side=4)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        nets = {"policy": Steering(17, 6, 8), "actor": Steering(19, 6, 8), "critic": Critics(25, 8)}
        archive, actor = replace(FAST, memory=2000)(Run(), task=task, **nets)
        found.append((archive.elites, flatten(actor)))
    assert all(map(torch.equal, *found)) and len(archive.filled) > 1


def test_without_mujoco_the_trial_is_a_point_on_a_plane(monkeypatch):
    monkeypatch.setattr(arm, "find_spec", lambda name: None)
    cast = trial(0)[1]
    assert isinstance(cast.actors["task"], Plane) and not cast.real
