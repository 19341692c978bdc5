"""RDD: the theory of its bonus, and what the battery cannot ask. PPO has parts/test_ppo.py, the scales parts/test_stats.py."""

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillroom import arenas
from stillroom.errors import Refused
from stillroom.models.policies import ActorCritic, gaze
from stillroom.parts import ppo
from stillroom.recipes.control import rdd
from stillroom.recipes.control.rdd import RDD
from stillroom.run import Run

gymnasium = pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")
pytest.importorskip("minigrid", reason="the extra `rl` is not installed")

FAST = dict(horizon=16, minibatches=2, epochs=2, lr=1e-3)


def cast(seed=0, count=3, world="FrozenLake-v1"):
    env = ppo.Envs(world, count, seed=seed)
    torch.manual_seed(seed)
    return {"policy": ActorCritic(env.size, env.actions), "predictor": gaze(env.size), "target": gaze(env.size), "env": env}


class Still(gymnasium.Env):
    """One place, and no reward."""

    observation_space, action_space = gymnasium.spaces.Box(-9, 9, (3,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array([1, 2, 3], np.float32), {}

    def step(self, action):
        return np.array([1, 2, 3], np.float32), 0.0, False, False, {}


class Road(gymnasium.Env):
    """Places in a row, and no reward. One action leads on, the other back to the first; which, changes from place to place."""

    length = 8
    observation_space, action_space = gymnasium.spaces.Box(0, 1, (length,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = 0, 0
        return np.eye(self.length, dtype=np.float32)[0], {}

    def step(self, action):
        self.place, self.time = min(self.place + 1, self.length - 1) if action == self.place % 2 else 0, self.time + 1
        return np.eye(self.length, dtype=np.float32)[self.place], 0.0, False, self.time == 40, {}


class Watched(Run):
    """A run that remembers the terms of every update."""

    def __init__(self, **named):
        super().__init__(**named)
        self.terms: list[dict[str, float]] = []

    def update(self, opt, **terms):
        self.terms.append({k: v.item() for k, v in terms.items()})
        return super().update(opt, **terms)

    def values(self, name):
        return [terms[name] for terms in self.terms if name in terms]


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# --- theory ----------------------------------------------------------------------------------------------------------

class Averaging(Run):
    """A run whose predictor is a table that takes the minimum over all visits so far in every update; nothing else learns."""

    def __init__(self, table):
        super().__init__()
        self.table, self.fitted = table, []

    def update(self, opt, **terms):
        if "distil" in terms:
            slope, = torch.autograd.grad(terms["distil"], self.table)        # of a mean over numbers: 2/d · (table − drawn)
            self.table.data -= slope * self.table.numel() / 2 / (len(self.fitted) + 1)      # as many visits in every update
            self.fitted.append(self.table.detach().clone())
        return True


class Table(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.entry = nn.Parameter(torch.zeros(size))

    def forward(self, look):
        return self.entry.expand(*look.shape[:-1], -1)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_the_bonus_of_a_tabular_predictor_is_the_pseudo_count(sigma):
    """Fitted to the recipe's draws at n visits it is off by σ²/n: .25, .0625, .0156."""
    actors = cast(world=Still, count=2)
    target = gaze(actors["env"].size, out=20_000)                        # as many numbers, each a sample of its own
    nn.init.normal_(target[-1].bias)
    table = Table(20_000)
    run = Averaging(table.entry)
    RDD(steps=16, sigma=sigma, horizon=2, epochs=1, minibatches=1)(run, **actors | {"predictor": table, "target": target})
    centre = target(torch.zeros(actors["env"].size))                     # what never varies is zero when whitened
    for visits in (4, 16, 64):
        bonus = (run.fitted[visits // 4 - 1] - centre).square().mean().item()
        assert bonus == pytest.approx(sigma**2 / visits, rel=0.04), visits


def test_a_predictor_taught_by_the_recipe_finds_the_mean_and_not_the_draws():
    """One place, many visits: the error to the draws stays σ², the bonus falls far below."""
    run, actors = Watched(), cast(world=Still)
    nn.init.normal_(actors["target"][-1].bias)                           # seen as zeros, it would be zero otherwise
    RDD(steps=40, lr_predictor=3e-2, **{**FAST, "lr": 0.0})(run, **actors)
    look = torch.zeros(1, actors["env"].size)
    bonus = (actors["predictor"](look) - actors["target"](look)).square().mean().item()
    assert run.values("distil")[0] > 1.5
    assert sum(run.values("distil")[-20:]) / 20 == pytest.approx(1.0, rel=0.05)
    assert bonus < 0.05


# --- the recipe ------------------------------------------------------------------------------------------------------

def test_without_noise_a_step_is_that_of_rnd_written_out():
    """σ = 0, one pass over one rollout, against Burda et al. 2018 in plain PyTorch."""
    run, method = Watched(), RDD(steps=1, sigma=0.0, novelty=0.7, gamma=0.98, trace=0.9, limit=2.0,
                                 horizon=16, epochs=1, minibatches=1)
    made = method(run, **cast())
    actors = cast()
    policy, predictor, target, env = (actors[k] for k in ("policy", "predictor", "target", "env"))
    Run()._reseed("loop", 0, 0)
    obs, look, reward, done, value, logp, action = [], [], [], [], [], [], []
    with torch.no_grad():
        for _ in range(16):
            chances, v = policy(env.obs)
            act = chances.sample()
            obs.append(env.obs)
            after, r, over, cut = env.step(act)
            assert not cut.any()
            now = (after, r, over, v, chances.log_prob(act), act)
            for column, entry in zip((look, reward, done, value, logp, action), now, strict=True):
                column.append(entry)
        value.append(policy(env.obs)[1])
        seen = torch.stack(look).flatten(0, 1)
        white = ((torch.stack(look) - seen.mean(0)) / (seen.var(0, correction=0) + 1e-8).sqrt()).clamp(-2, 2)
        surprise = (predictor(white) - target(white)).square().mean(-1)              # [time, envs]
        sums, running = [], torch.zeros(3)
        for s in surprise:
            running = 0.99 * running + s
            sums.append(running)
        novel = surprise / torch.stack(sums).std(correction=0)
        gains, goals = [], []
        for stream, (rewards, gamma) in enumerate(((torch.stack(reward), 0.98), (novel, 0.99))):
            gain, carried = [None] * 16, torch.zeros(3)
            for t in reversed(range(16)):
                on = 1.0 if stream else 1.0 - done[t].float()                        # novelty does not end with the episode
                delta = rewards[t] + gamma * on * value[t + 1][stream] - value[t][stream]
                gain[t] = carried = delta + gamma * 0.9 * on * carried
            gains.append(torch.stack(gain))
            goals.append(gains[-1] + torch.stack(value)[:-1, stream])
        gain = gains[0] + 0.7 * gains[1]
    assert run.values("distil")[0] == pytest.approx(surprise.mean().item(), rel=1e-4)
    assert run.history[0]["bonus"] == pytest.approx(novel.mean().item(), rel=1e-3)
    expected = sum((torch.stack(value)[:-1, s] - goals[s]).square().mean() for s in range(2)) / 4
    assert run.values("value")[0] == pytest.approx(expected.item(), rel=1e-3)
    moved = ActorCritic(env.size, env.actions)
    moved.load_state_dict(policy.state_dict())
    opt = torch.optim.Adam(moved.parameters(), lr=3e-4, eps=1e-5)                    # moved by the sum of both gains
    chances, v = moved(torch.stack(obs).flatten(0, 1))
    scaled = ((gain - gain.mean()) / (gain.std() + 1e-8)).flatten()
    ratio = (chances.log_prob(torch.stack(action).flatten()) - torch.stack(logp).flatten()).exp()
    goal = torch.stack(goals).flatten(1)
    loss = -(ratio * scaled).mean() + 0.25 * (v - goal).square().sum(0).mean() - 0.001 * chances.entropy().mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(moved.parameters(), 0.5)
    opt.step()
    far = max((a - b).abs().max().item() for a, b in zip(weights(made), weights(moved), strict=True))
    assert far < 2e-5, far


def test_noise_adds_its_variance_to_the_predictors_loss_and_nothing_to_the_rest():
    first = {}
    for sigma in (0.0, 1.0, 10.0):
        run = Watched()
        RDD(steps=1, sigma=sigma, epochs=1, minibatches=1, horizon=64)(run, **cast())
        first[sigma] = run
    distil = {sigma: run.values("distil")[0] for sigma, run in first.items()}
    assert distil[1.0] - distil[0.0] == pytest.approx(1.0, rel=0.05)     # E‖f − c‖² = ‖f − μ‖² + σ²
    assert distil[10.0] - distil[0.0] == pytest.approx(100.0, rel=0.05)
    assert first[0.0].history[0]["bonus"] == first[1.0].history[0]["bonus"] == first[10.0].history[0]["bonus"]


def test_the_bonus_is_measured_to_the_mean_whatever_the_noise():
    """A predictor that is the random network: no bonus, though every target is far away."""
    actors = cast()
    actors["predictor"] = copy.deepcopy(actors["target"])
    run = Run()
    RDD(steps=1, sigma=10.0, **FAST)(run, **actors)
    assert run.history[0]["bonus"] == 0
    assert run.history[0]["distil"] > 50


def test_a_new_target_is_drawn_at_every_visit_and_used_in_all_passes_over_it():
    run = Watched()
    RDD(steps=2, epochs=2, horizon=8, minibatches=1, lr=0.0, lr_predictor=0.0)(run, **cast(world=Still))
    first, again, later, later_again = run.values("distil")              # nothing learns, one place: only draws can differ
    assert first == pytest.approx(again, rel=1e-5) and later == pytest.approx(later_again, rel=1e-5) and abs(first - later) > 1e-4


def test_the_random_network_is_never_moved():
    actors = cast()
    before = weights(actors["target"])
    RDD(steps=3, **FAST)(Run(), **actors)
    assert same(before, weights(actors["target"])) and not any(p.requires_grad for p in actors["target"].parameters())


def test_novelty_alone_leads_to_where_nobody_was():
    """A road without reward: who never turns back sees more of it."""
    def end(novelty):
        actors = cast(world=Road, count=8)
        RDD(steps=20, novelty=novelty, lr_predictor=1e-3, horizon=20, epochs=4, minibatches=2, lr=1e-2)(Run(), **actors)
        places = torch.arange(Road.length - 1)
        return actors["policy"](torch.eye(Road.length))[0].probs[places, places % 2].prod().item()      # of walking to the end
    ours, alone = end(1.0), end(0.0)
    assert ours > 0.3 and alone < 0.05, (ours, alone)


def test_inner_epochs_refuse_accumulation():
    with pytest.raises(Refused, match="accumulate"):
        RDD(steps=1, **FAST)(Run(accumulate=2), **cast())


def test_under_bf16_policy_and_predictor_learn_and_stay_in_fp32():
    actors = cast()
    before = weights(actors["policy"]), weights(actors["predictor"])
    policy = RDD(steps=2, **FAST)(Run(precision="bf16"), **actors)
    assert not any(torch.equal(a, b) for a, b in zip(before[0], weights(policy), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before[1], weights(actors["predictor"]), strict=True))
    assert all(p.dtype == torch.float32 for p in policy.parameters())


class Stop(Exception):
    pass


class Stopping(Run):
    """A run that dies before a step, having saved after every one before."""

    def __init__(self, folder, at):
        super().__init__(folder, save_every=-1.0)
        self.at = at

    def loop(self, *args, **named):
        for content in super().loop(*args, **named):
            if self.step == self.at:
                raise Stop
            yield content


@pytest.mark.parametrize("world", ["FrozenLake-v1", "CartPole-v1", "minigrid:MiniGrid-DoorKey-5x5-v0"])
def test_a_stop_anywhere_goes_on_bit_for_bit_also_the_environments(world, tmp_path):
    method, actors = RDD(steps=7, **FAST), cast(world=world)
    whole, worlds = weights(method(Run(), **actors)), actors["env"].state_dict()
    for at in (1, 3, 6):
        with pytest.raises(Stop):
            method(Stopping(tmp_path / str(at), at), **cast(world=world))
        torch.rand(5)
        actors = cast(world=world)
        assert same(whole, weights(method(Run(tmp_path / str(at), resume=True), **actors))), at
        again = actors["env"].state_dict()
        assert again["played"] == worlds["played"] and again["episodes"] == worlds["episodes"]
        assert torch.equal(again["obs"], worlds["obs"])


@pytest.mark.parametrize("missing", ["gymnasium", "minigrid"])
def test_without_the_extra_the_trial_names_it(missing, monkeypatch):
    import importlib

    importlib.import_module("stillroom.arenas.maze")
    maze = sys.modules["stillroom.arenas.maze"]
    maze._rooms.cache_clear()
    for name in [n for n in sys.modules if n == missing or n.startswith(f"{missing}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Refused, match=r"(?s)not installed.*stillroom\[rl\]"):
        rdd.trial(0)
    maze._rooms.cache_clear()


# --- the arena -------------------------------------------------------------------------------------------------------

def test_the_world_is_minigrids_own_seen_as_a_standpoint():
    from minigrid.envs import MultiRoomEnv

    env = arenas.maze(0).actors["env"]
    inner = env.envs[0]
    assert isinstance(inner, MultiRoomEnv) and len(inner.rooms) == inner.maxNumRooms and inner.action_space.n == 7
    assert (env.obs.sum(1) == 5).all() and (env.obs == env.obs[0]).all()  # place, row, direction, thing, its state; one world
    x, y = inner.agent_pos
    assert env.obs[0, x] == 1 and env.obs[0, inner.width + y] == 1
    before = env.obs.clone()
    turned = env.step(torch.zeros(len(env), dtype=torch.long))[0]        # to the left: another direction, and what stands there
    assert (turned != before)[:, inner.width + inner.height :].any(1).all() and not (turned != before)[:, : inner.width].any()
    assert arenas.maze(1).actors["env"].obs.shape == env.obs.shape


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_novelty_sees_more_of_the_world_than_ppo_alone_or_chance_in_as_many_frames(seed):
    _, cast = rdd.trial(seed)
    ours, alone, chance = (cast.learn(replace(rdd.SMALL, **other)) for other in ({}, {"novelty": 0.0}, {"lr": 0.0}))
    assert ours.seen > 1.2 * max(alone.seen, chance.seen), (ours.seen, alone.seen, chance.seen)


@pytest.mark.slow
def test_on_the_same_visits_the_bonus_ranks_states_by_their_counts():
    _, cast = rdd.trial(0)
    chance = replace(rdd.SMALL, lr=0.0)
    ours, rnd = cast.learn(chance), cast.learn(replace(chance, sigma=0.0))
    assert ours.seen == rnd.seen and ours.order > 0.85 and ours.order != rnd.order, (ours.order, rnd.order)
